"""TensorRT on a GPU: its answers beside the CPU's in every precision, contexts, graphs, the cache, shapes out of range.

In a rehearsal (see conftest.py) a FAKE library stands in TensorRT's place.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FAKE_GPU, FakeLibrary
from gpu_graphs import GpuGraph, cosine, faults_side_by_side, feeds_of, model_of, reference_graph

from headrace_server.config import BatchPolicy, EngineOptions, ShapeProfile, TensorRtOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.factory import create_engine
from headrace_server.engines.request import EngineRequest
from headrace_server.engines.tensorrt.opening import open_on
from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import read_onnx_header

pytestmark = pytest.mark.gpu

SMALLEST_COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "int8": 0.98, "fp8": 0.97}
NAMES = ("input_ids", "attention_mask", "token_type_ids")
PROFILES = tuple(
    ShapeProfile(
        min=dict.fromkeys(NAMES, (1, 1)), opt=dict.fromkeys(NAMES, (8, n)), max=dict.fromkeys(NAMES, (32, 2 * n))
    )
    for n in (32, 64)
)
GraphOf = Callable[[str, str], GpuGraph]
Compiled = Callable[..., Engine]


@pytest.fixture(scope="session")
def plans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that all tests here share: a graph is compiled once."""
    return tmp_path_factory.mktemp("plans")


@pytest.fixture
def compiled(rehearsal: bool, plans: Path) -> Iterator[Compiled]:
    """An engine on the GPU; options of TensorRT by name."""
    opened: list[Engine] = []

    def open_(graph: Path, num_workers: int = 1, cache: Path = plans, **tensorrt: object) -> Engine:
        if "efficientnet" not in str(graph):
            tensorrt.setdefault("profiles", PROFILES)
        model = model_of(graph, batching=BatchPolicy(max_batch_size=32))
        options = EngineOptions(
            device="tensorrt:0",
            num_workers=num_workers,
            cache=cache,
            tensorrt=TensorRtOptions(**tensorrt),  # type: ignore[arg-type]
        )
        if rehearsal:
            library = FakeLibrary()
            library.cuda.use_device()
            request = EngineRequest(
                model=model, header=read_onnx_header(graph), device="tensorrt:0", precision="auto", num_threads=1,
                num_workers=num_workers, options=options,
            )  # fmt: skip
            opened.append(open_on(request, device=FAKE_GPU, library=library, cuda=library.cuda))
        else:
            opened.append(create_engine(model, options, ThreadBudget(num_cores=4)))
        return opened[-1]

    yield open_
    for engine in opened:
        engine.close()


@pytest.mark.parametrize("precision", SMALLEST_COSINE)
@pytest.mark.parametrize("model", ["minilm", "efficientnet-lite0"])
def test_answers_are_the_cpus_within_their_precision(
    graph_of: GraphOf, compiled: Compiled, rehearsal: bool, model: str, precision: str
) -> None:
    if rehearsal and precision in ("bf16", "fp8"):
        pytest.skip(f"rehearsal: the CPU provider has no operators of {precision}")
    graph = graph_of(model, precision)
    engine, reference = compiled(graph.graph), reference_graph(graph)
    assert (engine.info.engine, engine.info.device, engine.info.precision) == ("tensorrt", "tensorrt:0", precision)
    for rows in (1, 3, 8, 1):
        feeds = feeds_of(model, rows)
        assert cosine(engine.run(feeds), reference.run(feeds)) >= SMALLEST_COSINE[precision]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
@pytest.mark.parametrize("graphs", [False, True], ids=["eager", "graphs"])
def test_contexts_side_by_side_get_their_own_answers(
    graph_of: GraphOf, compiled: Compiled, num_workers: int, graphs: bool
) -> None:
    graph = graph_of("minilm", "fp32")
    engine, alone = compiled(graph.graph, num_workers=num_workers, cuda_graphs=graphs), reference_graph(graph)
    feeds = [feeds_of("minilm", 1 + caller % 3, 16 + 48 * (caller % 2), seed=caller) for caller in range(8)]
    expected = [alone.run(each) for each in feeds]
    assert faults_side_by_side(engine, feeds, expected, num_steps=20) == []


def test_graphs_answer_as_runs_without_them_shape_by_shape(graph_of: GraphOf, compiled: Compiled) -> None:
    graph = graph_of("minilm", "fp32").graph
    eager, graphed = compiled(graph), compiled(graph, cuda_graphs=True)
    for seed in range(3):
        for rows, length in ((1, 16), (2, 32), (1, 16), (8, 64), (4, 100), (2, 32), (1, 16)):
            feeds = feeds_of("minilm", rows, length, seed)
            found, wanted = graphed.run(feeds), eager.run(feeds)
            np.testing.assert_allclose(found["last_hidden_state"], wanted["last_hidden_state"], atol=1e-3)


def test_the_same_row_alone_or_batched(graph_of: GraphOf, compiled: Compiled) -> None:
    engine = compiled(graph_of("minilm", "fp32").graph)
    feeds = feeds_of("minilm", 17, 48)
    together = engine.run(feeds)["last_hidden_state"]
    for row in range(17):
        alone = engine.run({name: feed[row : row + 1] for name, feed in feeds.items()})["last_hidden_state"]
        np.testing.assert_allclose(alone[0], together[row], atol=2e-3)


@pytest.mark.parametrize(("rows", "length"), [(33, 32), (1, 129), (0, 16)])
def test_shapes_out_of_range_are_the_callers_fault_or_empty_and_break_nothing(
    graph_of: GraphOf, compiled: Compiled, rows: int, length: int
) -> None:
    engine = compiled(graph_of("minilm", "fp32").graph)
    feeds = dict.fromkeys(NAMES, np.ones((rows, length), np.int64))
    if rows == 0:
        assert engine.run(feeds)["last_hidden_state"].shape[0] == 0
    else:
        with pytest.raises(ServingError) as caught:
            engine.run(feeds)
        assert caught.value.reason is Reason.INVALID_INPUT
        assert "[32, 128]" in caught.value.message
    assert engine.run(feeds_of("minilm", 2))["last_hidden_state"].shape[0] == 2


def test_a_cached_plan_loads_faster_than_it_was_built_and_a_damaged_one_is_built_again(
    graph_of: GraphOf, compiled: Compiled, rehearsal: bool, tmp_path: Path
) -> None:
    graph, feeds = graph_of("minilm", "fp32").graph, feeds_of("minilm", 4)
    seconds, answers = [], []
    for damage in (False, False, True, False):
        for plan in tmp_path.glob("tensorrt/*.plan") if damage else ():
            plan.write_bytes(plan.read_bytes()[:-100])
        started = time.perf_counter()
        answers.append(compiled(graph, cache=tmp_path).run(feeds))
        seconds.append(time.perf_counter() - started)
    assert all(cosine(each, answers[0]) > 0.9999 for each in answers)
    assert len(list(tmp_path.glob("tensorrt/*.plan"))) == 1
    if not rehearsal:
        assert seconds[1] < seconds[0] / 2
        assert seconds[3] < seconds[2] / 2


def test_a_run_under_load_that_is_terminated_leaves_the_engine_usable(graph_of: GraphOf, compiled: Compiled) -> None:
    engine = compiled(graph_of("minilm", "fp32").graph, num_workers=2)
    said: list[Reason] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                engine.run(feeds_of("minilm", 8, 64))
            except ServingError as error:
                said.append(error.reason)
                return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    engine.terminate()  # type: ignore[attr-defined]
    time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert set(said) <= {Reason.SHUTTING_DOWN}
    assert said
    assert engine.run(feeds_of("minilm", 1))["last_hidden_state"].shape[0] == 1


def test_latency_is_printed(
    graph_of: GraphOf, compiled: Compiled, rehearsal: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = []
    for precision in ("fp32", "fp16") if rehearsal else SMALLEST_COSINE:
        graph = graph_of("minilm", precision).graph
        for graphs in (False, True):
            engine = compiled(graph, cuda_graphs=graphs)
            for rows, length in ((1, 32), (8, 32), (32, 128)):
                feeds, times = feeds_of("minilm", rows, length), []
                for _ in range(3 if rehearsal else 120):
                    started = time.perf_counter()
                    engine.run(feeds)
                    times.append(time.perf_counter() - started)
                p50, p99 = np.percentile(times[len(times) // 6 :], [50, 99]) * 1e3
                way = "graphs" if graphs else "eager"
                lines.append(f"minilm {precision} {way} {rows} × {length}: p50 {p50:.3f} ms, p99 {p99:.3f} ms")
    with capsys.disabled():
        print("\n" + "\n".join(lines))
