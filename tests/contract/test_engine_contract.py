"""What every Engine promises, run on every engine that this machine has. A new engine is one more entry in ENGINES."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from fake_tensorrt import FAKE_GPU, FakeLibrary
from onnx import TensorProto, helper, numpy_helper

from headrace_server.config import EngineOptions, ShapeProfile, TensorRtOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.factory import create_engine
from headrace_server.engines.machine.capture_gate import CaptureGate
from headrace_server.engines.machine.host_memory import PageableMemory
from headrace_server.engines.onnx.bound_runs import BoundRuns
from headrace_server.engines.onnx.engine import OnnxEngine
from headrace_server.engines.onnx.graph_runs import GraphRuns
from headrace_server.engines.onnx.openvino import installed_openvino
from headrace_server.engines.onnx.session import CPU, load_runtime, open_session
from headrace_server.engines.request import EngineRequest
from headrace_server.engines.tensorrt.opening import open_on
from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Model, Task
from headrace_server.models.onnx_header import read_onnx_header


def scale_and_shift(folder: Path) -> Path:
    """x f32[n, 3] → scaled = 2x, shifted = x + 1."""
    weights = [numpy_helper.from_array(np.float32(value), name) for name, value in (("two", 2), ("one", 1))]
    nodes = [helper.make_node("Mul", ["x", "two"], ["scaled"]), helper.make_node("Add", ["x", "one"], ["shifted"])]
    x, *outputs = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "scaled", "shifted")
    )
    model = helper.make_model(
        helper.make_graph(nodes, "graph", [x], outputs, weights), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 8
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


def on(device: str) -> Callable[[Path, int], Engine]:
    """Makes an engine of the graph on one device; skips where the device is not there."""

    def make(folder: Path, num_workers: int) -> Engine:
        if device == "openvino" and not installed_openvino():
            pytest.skip("onnxruntime-ep-openvino is not installed (pip install 'headrace[openvino]')")
        graph = scale_and_shift(folder)
        model = Model(
            name="m", version="1", tasks=frozenset({Task.INFER}), folder=folder, graph=graph, format="onnx", inputs=(),
            outputs=(), pipelines={},
        )  # fmt: skip
        options = EngineOptions(device=device, precision="fp32", num_workers=num_workers)
        return create_engine(model, options, ThreadBudget(num_cores=2))

    return make


def through_buffers(folder: Path, num_workers: int) -> Engine:
    """As on CUDA, with plain memory, and the CPU in the GPU's place."""
    runs = partial(BoundRuns, runtime=load_runtime(), memory=PageableMemory(), num_workers=num_workers)
    return OnnxEngine(
        scale_and_shift(folder), device="cpu", provider=CPU, precision="fp32", num_threads=1, num_workers=num_workers,
        runs=runs,
    )  # fmt: skip


def by_graphs(folder: Path, num_workers: int) -> Engine:
    """As on CUDA with graphs, the CPU in the GPU's place: each shape has its tensors, and nothing is recorded."""
    graph = scale_and_shift(folder)

    def runs(session: Any, *_: Any) -> GraphRuns:
        more = [open_session(graph, device="cpu", provider=CPU, num_threads=1) for _ in range(num_workers - 1)]
        return GraphRuns(
            [session, *more], runtime=load_runtime(), memory=PageableMemory(), device=("cpu", 0), max_graphs=8,
            gate=CaptureGate(),
        )  # fmt: skip

    return OnnxEngine(
        graph, device="cpu", provider=CPU, precision="fp32", num_threads=1, num_workers=num_workers, runs=runs
    )


_SHAPES = {"x": (1, 3)}, {"x": (8, 3)}, {"x": (64, 3)}
_TENSORRT = TensorRtOptions(profiles=(ShapeProfile(min=_SHAPES[0], opt=_SHAPES[1], max=_SHAPES[2]),))


def on_a_fake_tensorrt(use_graphs: bool) -> Callable[[Path, int], Engine]:
    """TensorRT's engine, on a FAKE library and a FAKE GPU."""

    def make(folder: Path, num_workers: int) -> Engine:
        graph, library = scale_and_shift(folder), FakeLibrary()
        model = Model(
            name="m", version="1", tasks=frozenset({Task.INFER}), folder=folder, graph=graph, format="onnx", inputs=(),
            outputs=(), pipelines={},
        )  # fmt: skip
        request = EngineRequest(
            model=model, header=read_onnx_header(graph), device="tensorrt:0", precision="fp32", num_threads=1,
            num_workers=num_workers,
            options=EngineOptions(cache=folder / "cache", tensorrt=replace(_TENSORRT, cuda_graphs=use_graphs)),
        )  # fmt: skip
        library.cuda.use_device()
        return open_on(request, device=FAKE_GPU, library=library, cuda=library.cuda)

    return make


ENGINES: dict[str, Callable[[Path, int], Engine]] = {
    "cpu": on("cpu"),
    "openvino": on("openvino"),
    "buffers on the cpu": through_buffers,
    "graphs on the cpu": by_graphs,
    "fake tensorrt": on_a_fake_tensorrt(use_graphs=False),
    "fake tensorrt, graphs": on_a_fake_tensorrt(use_graphs=True),
    "cuda": on("cuda:0"),
}
NEED_A_GPU = ("cuda",)


@pytest.fixture(params=[pytest.param(name, marks=[pytest.mark.gpu] * (name in NEED_A_GPU)) for name in ENGINES])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    loaded = ENGINES[request.param](tmp_path, 4)
    yield loaded
    loaded.close()


def batch(*values: float) -> dict[str, np.ndarray]:
    return {"x": np.array([[value] * 3 for value in values], np.float32)}


def test_it_is_an_engine_and_says_what_it_is(engine: Engine) -> None:
    assert isinstance(engine, Engine)
    info = engine.info
    assert info.engine
    assert info.runtime_version
    assert info.provider
    assert info.device.split(":")[0] in ("cpu", "openvino", "cuda", "tensorrt")
    assert info.precision == "fp32"
    assert info.num_workers == 4
    assert info.num_threads >= 1
    assert info.load_time_ms > 0


def test_its_signature_is_the_graphs(engine: Engine) -> None:
    assert [str(spec) for spec in engine.inputs] == ["x float32[?,3]"]
    assert [str(spec) for spec in engine.outputs] == ["scaled float32[?,3]", "shifted float32[?,3]"]


def test_outputs_come_by_name_and_only_those_wanted(engine: Engine) -> None:
    everything = engine.run(batch(1, 2))
    np.testing.assert_array_equal(everything["scaled"], [[2, 2, 2], [4, 4, 4]])
    np.testing.assert_array_equal(everything["shifted"], [[2, 2, 2], [3, 3, 3]])
    assert engine.run(batch(1), ["shifted"]).keys() == {"shifted"}


def test_the_same_row_alone_or_batched(engine: Engine) -> None:
    rows = np.random.default_rng(1).standard_normal((17, 3)).astype(np.float32)
    together = engine.run({"x": rows})["scaled"]
    for index in range(17):
        np.testing.assert_allclose(engine.run({"x": rows[index : index + 1]})["scaled"][0], together[index], rtol=1e-6)


def test_an_empty_batch_gives_empty_outputs(engine: Engine) -> None:
    assert engine.run({"x": np.zeros((0, 3), np.float32)})["scaled"].shape == (0, 3)


@pytest.mark.parametrize(
    "feeds",
    [
        {},
        {"y": np.ones((1, 3), np.float32)},
        {"x": np.ones((1, 3), np.int64)},
        {"x": np.ones((1, 4), np.float32)},
        {"x": np.ones(3, np.float32)},
    ],
    ids=["missing", "misnamed", "wrong dtype", "wrong shape", "wrong rank"],
)
def test_feeds_that_do_not_fit_are_the_callers_fault(engine: Engine, feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(ServingError) as caught:
        engine.run(feeds)
    assert caught.value.reason is Reason.INVALID_INPUT
    assert caught.value.violations
    np.testing.assert_array_equal(engine.run(batch(1))["scaled"], [[2, 2, 2]])  # and nothing is broken by it


def test_outputs_stay_as_they_were_while_later_runs_go_on(engine: Engine) -> None:
    first = engine.run(batch(1))["scaled"]
    for value in range(2, 50):
        engine.run(batch(value))
    np.testing.assert_array_equal(first, [[2, 2, 2]])


def test_as_many_callers_as_workers_may_run_at_once(engine: Engine) -> None:
    wrong: list[object] = []

    def ask(value: float) -> None:
        for _ in range(100):
            result = engine.run(batch(value, -value))["scaled"]
            if result.tolist() != [[2 * value] * 3, [-2 * value] * 3]:
                wrong.append(result)

    threads = [threading.Thread(target=ask, args=(float(value),)) for value in range(engine.info.num_workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []


def test_after_close_a_run_is_told_that_the_model_is_leaving(engine: Engine) -> None:
    engine.close()
    engine.close()
    with pytest.raises(ServingError) as caught:
        engine.run(batch(1))
    assert caught.value.reason is Reason.SHUTTING_DOWN
