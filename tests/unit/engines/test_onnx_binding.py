"""Bound runs and graph runs on the real runtime, ON THE CPU: no GPU is here, and no graph is recorded.

What is shown is ours: buffers that stay, shapes that change, answers that nobody overwrites. tests/gpu has the rest.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_graphs
from onnx import TensorProto, helper, numpy_helper

from headrace_server.engines.machine.capture_gate import CaptureGate
from headrace_server.engines.machine.host_memory import HostBuffers, PageableMemory
from headrace_server.engines.onnx.bound_runs import BoundRuns, can_be_bound, said_shape
from headrace_server.engines.onnx.engine import OnnxEngine
from headrace_server.engines.onnx.graph_runs import GraphRuns
from headrace_server.engines.onnx.session import CPU, load_runtime, open_session
from headrace_server.engines.onnx.types import graph_tensor
from headrace_server.errors import Reason, ServingError


def counted(memory: list[int]) -> Any:
    """Memory that writes down what was taken."""

    class Counted(PageableMemory):
        def take(self, num_bytes: int) -> Any:
            memory.append(num_bytes)
            return super().take(num_bytes)

    return Counted()


def loaded(graph: Path, runs: Callable[..., Any], num_workers: int = 2) -> OnnxEngine:
    return OnnxEngine(
        graph, device="cpu", provider=CPU, precision="fp32", num_threads=1, num_workers=num_workers, runs=runs
    )


def bound(graph: Path, memory: Any = None, num_workers: int = 2) -> OnnxEngine:
    make = partial(BoundRuns, runtime=load_runtime(), memory=memory or PageableMemory(), num_workers=num_workers)
    return loaded(graph, make, num_workers)


def graphed(graph: Path, made: list[GraphRuns], num_workers: int = 2, max_graphs: int = 3) -> OnnxEngine:
    def make(session: Any, *_: Any) -> GraphRuns:
        more = [open_session(graph, device="cpu", provider=CPU, num_threads=1) for _ in range(num_workers - 1)]
        made.append(
            GraphRuns(
                [session, *more], runtime=load_runtime(), memory=PageableMemory(), device=("cpu", 0),
                max_graphs=max_graphs, gate=CaptureGate(),
            )
        )  # fmt: skip
        return made[-1]

    return loaded(graph, make, num_workers)


@pytest.fixture(params=["bound", "graphs"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> OnnxEngine:
    graph = small_graphs.doubler(tmp_path)
    return bound(graph) if request.param == "bound" else graphed(graph, [])


def rows(count: int, value: float = 1.0) -> dict[str, np.ndarray]:
    return {"x": np.full((count, 4), value, np.float32)}


def test_answers_of_changing_shapes_are_those_of_plain_runs(engine: OnnxEngine) -> None:
    for count in (1, 7, 2, 1, 0, 5, 7, 300, 2):
        x = np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)
        answers = engine.run({"x": x})
        np.testing.assert_array_equal(answers["twice"], x * 2)
        np.testing.assert_array_equal(answers["thrice"], x * 3)
        np.testing.assert_array_equal(engine.run({"x": x}, ["thrice"])["thrice"], x * 3)


def test_an_answer_is_not_written_to_by_later_runs(engine: OnnxEngine) -> None:
    engine.run(rows(3))
    kept = [engine.run(rows(3, value))["twice"] for value in range(20)]
    gc.collect()
    assert [answer[0, 0] for answer in kept] == [2 * value for value in range(20)]


def test_a_feed_that_lies_apart_in_memory_is_read_right(engine: OnnxEngine) -> None:
    x = np.arange(24, dtype=np.float32).reshape(6, 4)[::2]
    for _ in range(3):
        np.testing.assert_array_equal(engine.run({"x": x})["twice"], x * 2)


def test_a_callers_array_is_never_written_to(engine: OnnxEngine) -> None:
    x = np.ones((2, 4), np.float32)
    engine.run({"x": x})
    engine.run(rows(2, 5.0))
    np.testing.assert_array_equal(x, np.ones((2, 4)))


def test_more_callers_than_workers_get_their_own_answers(engine: OnnxEngine) -> None:
    wrong: list[object] = []

    def ask(value: int) -> None:
        for step in range(60):
            answer = engine.run(rows(1 + step % 3, value))["twice"]
            if not (answer == 2 * value).all() or len(answer) != 1 + step % 3:
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(value,)) for value in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_buffers_are_taken_a_few_times_and_kept(tmp_path: Path) -> None:
    taken: list[int] = []
    engine = bound(small_graphs.doubler(tmp_path), counted(taken), num_workers=1)
    for count in (*range(1, 301), *range(300, 0, -1)):
        engine.run(rows(count))
    assert taken == [
        4096,
        4096,
        4096,
        8192,
        8192,
        8192,
    ]  # an input, two outputs; 257 rows are more than 4096 bytes


def test_a_graph_that_errs_about_its_shapes_is_answered_all_the_same(tmp_path: Path) -> None:
    # It says that as many rows come out as go in, and gives those that are not zero.
    nodes = [
        helper.make_node("Cast", ["x"], ["keep"], to=TensorProto.BOOL),
        helper.make_node("Compress", ["x", "keep"], ["y"], axis=0),
    ]
    graph = small_graphs.save(
        tmp_path, nodes, [small_graphs.value("x", TensorProto.FLOAT, ["n"])],
        [small_graphs.value("y", TensorProto.FLOAT, ["n"])],
    )  # fmt: skip
    engine = bound(graph)
    for values in ([1, 0, 2], [0, 0, 3], [4, 5, 0]):
        x = np.array(values, np.float32)
        np.testing.assert_array_equal(engine.run({"x": x})["y"], x[x != 0])


def test_what_a_caller_does_wrong_is_told_as_for_plain_runs(tmp_path: Path) -> None:
    for engine in (bound(small_graphs.embedding_table(tmp_path)), graphed(small_graphs.embedding_table(tmp_path), [])):
        engine.run({"ids": np.array([[0]])})
        with pytest.raises(ServingError) as caught:
            engine.run({"ids": np.array([[7, 1]])})
        assert caught.value.reason is Reason.INVALID_INPUT
        assert engine.run({"ids": np.array([[1]])})["y"].tolist() == [[[4, 5, 6, 7]]]


def test_a_worker_keeps_no_more_graphs_than_it_may(tmp_path: Path) -> None:
    made: list[GraphRuns] = []
    engine = graphed(small_graphs.doubler(tmp_path), made, num_workers=1, max_graphs=3)
    for count in (1, 2, 1, 2, 3, 4, 5, 4, 1):
        assert engine.run(rows(count, count))["twice"].tolist() == [[2 * count] * 4] * count
    assert made[0].num_graphs == 3


def test_threads_of_graphs_end_with_the_engine(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    engine = graphed(small_graphs.doubler(tmp_path), [])
    engine.run(rows(1))
    started = set(threading.enumerate()) - before
    assert started
    engine.close()
    del engine
    gc.collect()
    for thread in started:
        thread.join(30)
    assert not [thread for thread in started if thread.is_alive()]


def test_shapes_are_said_by_names_that_inputs_give_a_size() -> None:
    inputs = {"x": graph_tensor("x", "tensor(float)", ["n", "s"])}
    feeds = {"x": np.zeros((2, 5), np.float32)}

    def said(*shape: int | str | None) -> tuple[int, ...] | None:
        return said_shape(graph_tensor("y", "tensor(float)", shape), inputs, feeds)  # type: ignore[arg-type]

    assert said("n", "s", 384) == (2, 5, 384)
    assert said("n", "other") is None
    assert said("n", None) is None
    assert said() is None


def test_strings_and_dictionaries_are_not_bound(tmp_path: Path) -> None:
    number, text, maps = (
        {"x": graph_tensor("x", kind, ["n"])}
        for kind in ("tensor(float)", "tensor(string)", "seq(map(string,tensor(float)))")
    )
    assert can_be_bound(number, number)  # type: ignore[arg-type]
    for other in (text, maps, {"x": graph_tensor("x", "tensor(bfloat16)", ["n"])}):
        assert not can_be_bound(number, other)  # type: ignore[arg-type]


def test_a_view_of_no_elements_has_its_shape() -> None:
    view = HostBuffers(PageableMemory()).view("x", (0, 7), np.dtype(np.int64))
    assert (view.shape, view.dtype) == ((0, 7), np.int64)


def test_weights_as_outputs_are_given_as_they_are(tmp_path: Path) -> None:
    weights = [numpy_helper.from_array(np.float32([3]), "w")]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"]), helper.make_node("Identity", ["w"], ["same"])]
    values = [small_graphs.value(name, TensorProto.FLOAT, [1]) for name in ("x", "y", "same")]
    engine = bound(small_graphs.save(tmp_path, nodes, values[:1], values[1:], weights))
    for _ in range(3):
        assert engine.run({"x": np.float32([1])})["same"].tolist() == [3]
