"""Versions of a small text classifier that go wrong each in its own way, and callers of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from unit.models.small_models import VOCABULARY, encoder, write_classifier

__all__ = ["asking", "disagreeing", "failing_on", "not_a_number_on", "slow", "wait_until", "write_versions"]


def write_versions(folder: Path, model: str = "mood", **versions: onnx.ModelProto) -> Path:
    """A classifier of three labels with these versions: "v2=graph" is version 2; version 1 is the usual one."""
    write_classifier(folder / model / "1")
    for name, graph in versions.items():
        write_classifier(folder / model / name.removeprefix("v"), onnx___model__onnx=graph)
    return folder


def disagreeing() -> onnx.ModelProto:
    """Other weights: what was the best label is the worst."""
    graph = encoder(head="logits")
    (matrix,) = (each for each in graph.graph.initializer if each.name == "matrix")
    matrix.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(matrix), "matrix"))
    return graph


def failing_on(word: str) -> onnx.ModelProto:
    """A run raises where a text holds the word: a reshape that only fits when there is none."""
    graph = encoder(head="logits")
    _constants(graph, word=np.int64(VOCABULARY.index(word)), six=np.full(1, 6, np.int64), sixth=np.zeros(6, np.float32))
    nodes = [
        helper.make_node("Equal", ["input_ids", "word"], ["is_word"]),
        helper.make_node("Cast", ["is_word"], ["is_word_i"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["is_word_i"], ["num_words"], keepdims=0),
        helper.make_node("Add", ["six", "num_words"], ["length"]),
        helper.make_node("Reshape", ["sixth", "length"], ["reshaped"]),
        helper.make_node("ReduceSum", ["reshaped"], ["nothing"], keepdims=0),
    ]
    return _added(graph, nodes)


def not_a_number_on(word: str) -> onnx.ModelProto:
    """The logits are NaN where a text holds the word."""
    graph = encoder(head="logits")
    _constants(
        graph,
        word=np.int64(VOCABULARY.index(word)),
        axis=np.ones(1, np.int64),
        zero=np.zeros((), np.float32),
        nan=np.full((), np.nan, np.float32),
    )
    nodes = [
        helper.make_node("Equal", ["input_ids", "word"], ["is_word"]),
        helper.make_node("Cast", ["is_word"], ["is_word_f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["is_word_f"], ["has_word_f"], axes=[1], keepdims=1),
        helper.make_node("Cast", ["has_word_f"], ["has_word"], to=TensorProto.BOOL),
        helper.make_node("Where", ["has_word", "nan", "zero"], ["nothing"]),
    ]
    return _added(graph, nodes)


def slow(num_products: int, size: int = 512) -> onnx.ModelProto:
    """Heavy work beside the usual: a chain of matrix products; of size 512 each takes some milliseconds."""
    graph = encoder(head="logits")
    _constants(graph, heavy=np.full((size, size), 1 / size, np.float32), none=np.zeros((), np.float32))
    nodes = [
        helper.make_node("ReduceSum", ["usual"], ["all"], keepdims=0),
        helper.make_node("Add", ["heavy", "all"], ["work_0"]),
        *(helper.make_node("MatMul", [f"work_{at}", "heavy"], [f"work_{at + 1}"]) for at in range(num_products)),
        helper.make_node("ReduceSum", [f"work_{num_products}"], ["worked"], keepdims=0),
        helper.make_node("Mul", ["worked", "none"], ["nothing"]),
    ]
    return _added(graph, nodes)


def _constants(graph: onnx.ModelProto, **values: Any) -> None:
    graph.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())


def _added(graph: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    """The graph whose logits are the "usual" ones and "nothing", which these nodes compute."""
    nodes_of = graph.graph.node
    (last,) = (node for node in nodes_of if "logits" in node.output)
    last.output[0] = "usual"
    nodes_of.extend([*nodes, helper.make_node("Add", ["usual", "nothing"], ["logits"])])
    onnx.checker.check_model(graph)
    return graph


@contextmanager
def asking(ask: Callable[[int], object], num_callers: int = 2) -> Iterator[None]:
    """While the block runs, callers ask again and again; `ask` is given a number that grows."""
    stop = threading.Event()
    numbers = iter(range(1 << 60))

    def call() -> None:
        while not stop.is_set():
            ask(next(numbers))

    threads = [threading.Thread(target=call) for _ in range(num_callers)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
