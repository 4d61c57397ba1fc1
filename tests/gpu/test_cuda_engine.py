"""ONNX Runtime's CUDA provider on a GPU: its answers beside the CPU's, workers, memory, graphs, refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gpu_graphs import GpuGraph, cosine, faults_side_by_side, feeds_of, model_of, reference_graph

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.factory import create_engine
from headrace_server.engines.machine.cuda_devices import find_cuda
from headrace_server.errors import Reason, ServingError

pytestmark = pytest.mark.gpu

# Rounded as the precision rounds, and added in another order.
SMALLEST_COSINE = {"fp32": 0.99999, "fp16": 0.999, "bf16": 0.99, "int8": 0.99}

GraphOf = Callable[[str, str], GpuGraph]
Opened = Callable[..., Engine]


@pytest.mark.parametrize("precision", SMALLEST_COSINE)
@pytest.mark.parametrize("model", ["minilm", "efficientnet-lite0"])
def test_answers_are_the_cpus_within_their_precision(
    graph_of: GraphOf, opened: Opened, rehearsal: bool, model: str, precision: str
) -> None:
    if rehearsal and precision == "bf16":
        pytest.skip("rehearsal: the CPU provider has no operators of bf16")
    graph = graph_of(model, precision)
    engine, reference = opened(graph.graph), reference_graph(graph)
    if not rehearsal:
        assert engine.info.provider == "CUDAExecutionProvider"
        assert engine.info.device == "cuda:0"
        nodes = dict(engine.info.nodes_by_provider)
        assert nodes["CUDAExecutionProvider"] > 0.8 * sum(nodes.values()), nodes
    assert engine.info.precision == precision
    for rows in (1, 3, 8, 1):
        feeds = feeds_of(model, rows)
        assert cosine(engine.run(feeds), reference.run(feeds)) >= SMALLEST_COSINE[precision]


def test_tf32_is_off_unless_it_is_asked_for_and_then_said(graph_of: GraphOf, opened: Opened, rehearsal: bool) -> None:
    if rehearsal:
        pytest.skip("rehearsal: the CPU has no TF32")
    graph = graph_of("minilm", "fp32")
    plain, rounded, reference = opened(graph.graph), opened(graph.graph, tf32=True), reference_graph(graph)
    feeds = feeds_of("minilm", 8, 128)
    expected = reference.run(feeds)
    assert (plain.info.precision, rounded.info.precision) == ("fp32", "tf32")
    off = [
        np.abs(engine.run(feeds)["last_hidden_state"] - expected["last_hidden_state"]).max()
        for engine in (plain, rounded)
    ]
    assert off[0] < 1e-3
    assert off[0] < off[1]


@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_workers_side_by_side_get_their_own_answers(graph_of: GraphOf, opened: Opened, graphs: bool) -> None:
    graph = graph_of("minilm", "fp32")
    engine, alone = opened(graph.graph, num_workers=4, cuda_graphs=graphs), reference_graph(graph)
    feeds = [feeds_of("minilm", 1 + caller % 3, 16 + 16 * (caller % 2), seed=caller) for caller in range(8)]
    expected = [alone.run(each) for each in feeds]
    assert faults_side_by_side(engine, feeds, expected, num_steps=30) == []


def test_graphs_answer_as_runs_without_them_shape_by_shape(graph_of: GraphOf, opened: Opened) -> None:
    graph = graph_of("minilm", "fp32")
    eager, graphed = opened(graph.graph), opened(graph.graph, cuda_graphs=True, max_graphs=3)
    for seed in range(3):
        for rows, length in ((1, 16), (2, 32), (1, 16), (8, 64), (4, 16), (2, 32)):  # the fourth shape is one too many
            feeds = feeds_of("minilm", rows, length, seed=seed)
            a, b = (engine.run(feeds)["last_hidden_state"] for engine in (eager, graphed))
            np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_graph_with_parts_on_the_cpu_is_refused_with_cuda_graphs(
    tmp_path: Path, opened: Opened, rehearsal: bool
) -> None:
    if rehearsal:
        pytest.skip("rehearsal: on the CPU nothing is recorded")
    from onnx import TensorProto
    from unit.engines.small_graphs import helper, save, value

    # NonZero's shape is known on the GPU alone, so that what follows waits for the CPU.
    nodes = [helper.make_node("NonZero", ["x"], ["at"]), helper.make_node("Unique", ["x"], ["y"])]
    outputs = [value("at", TensorProto.INT64, [1, "n"]), value("y", TensorProto.FLOAT, ["m"])]
    graph = save(tmp_path, nodes, [value("x", TensorProto.FLOAT, ["k"])], outputs)
    with pytest.raises(ServingError) as caught:
        opened(graph, cuda_graphs=True)
    assert caught.value.reason in (Reason.UNSUPPORTED, Reason.DEVICE_UNAVAILABLE)
    assert "set it to false" in caught.value.message or "nodes" in caught.value.message


def test_a_limit_of_memory_is_kept(graph_of: GraphOf, opened: Opened, rehearsal: bool) -> None:
    if rehearsal:
        pytest.skip("rehearsal: the limit is the GPU's")
    graph = graph_of("minilm", "fp32").graph
    with pytest.raises(ServingError) as caught:
        opened(graph, arena_mb=8)  # the weights are 90 MB
    assert caught.value.reason is Reason.MEMORY_EXHAUSTED
    assert "8 MB of engine.cuda.arena_mb" in caught.value.message
    engine = opened(graph, arena_mb=512)
    engine.run(feeds_of("minilm", 4))
    with pytest.raises(ServingError):
        engine.run(feeds_of("minilm", 512, 512))
    engine.run(feeds_of("minilm", 4))  # and nothing is broken by it


def test_a_gpu_that_is_not_there_is_refused_by_number(graph_of: GraphOf, rehearsal: bool) -> None:
    if rehearsal:
        pytest.skip("rehearsal: tests/unit/engines/test_onnx_cuda.py shows it")
    count = len(find_cuda().devices)
    model = model_of(graph_of("minilm", "fp32").graph)
    with pytest.raises(ServingError) as caught:
        create_engine(model, EngineOptions(device=f"cuda:{count}"), ThreadBudget(num_cores=1))
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE
    assert f"the GPU of number {count} is asked for, and there are {count}" in caught.value.message


def test_a_closed_engine_gives_its_memory_back_and_another_can_be_opened(graph_of: GraphOf, opened: Opened) -> None:
    graph = graph_of("minilm", "fp32").graph
    for _ in range(10):
        engine = opened(graph, num_workers=2)
        engine.run(feeds_of("minilm", 2))
        engine.close()
