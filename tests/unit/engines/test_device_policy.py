"""What `auto` measures, refuses, chooses and keeps: by a stand-in where an engine must be slow, or answer otherwise."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_graphs
from onnx import TensorProto, helper, numpy_helper

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.base import Array, Engine
from headrace_server.engines.choosing import policy as device_policy
from headrace_server.engines.choosing.choice import Verdict
from headrace_server.engines.choosing.policy import choose_engine, find_candidates
from headrace_server.engines.factory import create_engine
from headrace_server.engines.machine.cpu import CpuMachine, find_cpu
from headrace_server.engines.machine.cuda_devices import CudaDevice, CudaMachine
from headrace_server.engines.onnx.engine import OnnxEngine
from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Model
from headrace_server.models.onnx_header import read_onnx_header
from headrace_server.models.signature import TensorSpec

BUDGET = ThreadBudget(num_cores=2)
CPU, FAST = ("cpu", "fp32"), ("openvino", "bf16")


def large_matmul(folder: Path, width: int = 512) -> Path:
    """x f32[n, 512] through four matrices: a run of a row takes over 100 µs."""
    random = np.random.default_rng(3)
    scale = 1 / np.sqrt(width)
    weights, nodes = [], []
    for index in range(8):
        matrix = (random.standard_normal((width, width)) * scale).astype(np.float32)
        weights.append(numpy_helper.from_array(matrix, f"w{index}"))
        nodes.append(helper.make_node("MatMul", [f"y{index}" if index else "x", f"w{index}"], [f"y{index + 1}"]))
    shape = ["n", width]
    inputs = [small_graphs.value("x", TensorProto.FLOAT, shape)]
    return small_graphs.save(folder, nodes, inputs, [small_graphs.value("y8", TensorProto.FLOAT, shape)], weights)


@pytest.fixture
def model(tmp_path: Path) -> Model:
    graph = large_matmul(tmp_path)
    return replace(small_graphs.model_of(graph), digest=str(tmp_path), engine=EngineOptions(cache=tmp_path / "cache"))


class StandIn:
    """An engine that computes what another does, and then takes longer or answers otherwise."""

    def __init__(
        self, engine: Engine, *, slower_s: float = 0.0, factor: float = 1.0, device: str, precision: str
    ) -> None:
        self._engine, self._slower_s, self._factor = engine, slower_s, factor
        self.info = replace(engine.info, device=device, precision=precision)
        self.closed = False

    @property
    def inputs(self) -> Sequence[TensorSpec]:
        return self._engine.inputs

    @property
    def outputs(self) -> Sequence[TensorSpec]:
        return self._engine.outputs

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        time.sleep(self._slower_s)
        return {name: array * self._factor for name, array in self._engine.run(feeds, outputs).items()}

    def close(self) -> None:
        self.closed = True


class Bench:
    """Opens stand-ins: the CPU's takes 10 ms, others what they are told."""

    def __init__(self, model: Model, **others: dict[str, Any] | ServingError) -> None:
        self.model = model
        self.others = others
        self.opened: list[StandIn] = []

    def open(self, device: str, precision: str) -> Engine:
        told = {"slower_s": 0.01} if device == "cpu" else self.others[f"{device}_{precision}"]
        if isinstance(told, ServingError):
            raise told
        real = OnnxEngine(
            self.model.graph,
            device="cpu",
            provider="CPUExecutionProvider",
            precision="fp32",
            num_threads=1,
            num_workers=1,
        )
        self.opened.append(StandIn(real, device=device, precision=precision, **told))
        return self.opened[-1]

    def choose(self, *candidates: tuple[str, str]) -> Engine:
        header = read_onnx_header(self.model.graph)
        return choose_engine(self.model, header, candidates, self.model.engine, BUDGET.resolved(), self.open)


def verdicts(engine: Engine) -> dict[tuple[str, str], Verdict]:
    choice = engine.info.choice
    assert choice is not None
    return {(each.device, each.precision): each.verdict for each in choice.candidates}


def test_the_fastest_that_agrees_serves_and_every_figure_is_recorded(model: Model) -> None:
    bench = Bench(model, openvino_bf16={})
    engine = bench.choose(CPU, FAST)
    assert (engine.info.device, engine.info.precision) == FAST
    choice = engine.info.choice
    assert choice is not None
    assert verdicts(engine) == {CPU: Verdict.SLOWER, FAST: Verdict.CHOSEN}
    plain, fast = choice.candidates
    assert fast.speedup > 1.1
    assert fast.min_cosine > 0.9995
    assert len(plain.latency_ms) == len(fast.latency_ms) == len(choice.shapes) == 2
    assert "openvino in bf16 is" in choice.reason
    assert not choice.cached
    assert [each.closed for each in bench.opened] == [True, False], "only what serves stays open"


def test_a_candidate_that_answers_otherwise_is_refused_and_said(model: Model, caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench(model, openvino_bf16={"factor": -1.0})
    with caplog.at_level(logging.WARNING):
        engine = bench.choose(CPU, FAST)
    assert engine.info.device == "cpu"
    assert verdicts(engine)[FAST] is Verdict.DISAGREES
    assert "its answers differ: cosine -1.0" in caplog.text
    choice = engine.info.choice
    assert choice is not None
    assert [each.device for each in choice.failures] == ["openvino"]
    assert [each.closed for each in bench.opened] == [False, True]


def test_answers_of_another_size_in_the_same_direction_are_refused_too(model: Model) -> None:
    engine = Bench(model, openvino_bf16={"factor": 1.2}).choose(CPU, FAST)
    assert verdicts(engine)[FAST] is Verdict.DISAGREES


def test_a_candidate_that_does_not_start_is_passed_over_loudly_and_tried_again(
    model: Model, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = ServingError(Reason.DEVICE_UNAVAILABLE, "the plugin does not load")
    bench = Bench(model, openvino_bf16=refusal)
    with caplog.at_level(logging.WARNING):
        engine = bench.choose(CPU, FAST)
    assert engine.info.device == "cpu"
    assert "the plugin does not load" in caplog.text
    bench.others["openvino_bf16"] = {}
    assert bench.choose(CPU, FAST).info.device == "openvino"


def test_where_no_candidate_may_serve_the_refusal_is_the_candidates_own(model: Model) -> None:
    refusal = ServingError(Reason.DEVICE_UNAVAILABLE, "the plugin does not load")
    bench = Bench(model, openvino_bf16=refusal, openvino_fp32=refusal)
    with pytest.raises(ServingError, match="the plugin does not load"):
        bench.choose(FAST, ("openvino", "fp32"))
    assert all(each.closed for each in bench.opened)


def test_a_slower_candidate_leaves_the_cpu_its_place(model: Model) -> None:
    engine = Bench(model, openvino_bf16={"slower_s": 0.03}).choose(CPU, FAST)
    assert engine.info.device == "cpu"
    assert verdicts(engine) == {CPU: Verdict.CHOSEN, FAST: Verdict.SLOWER}


def test_a_choice_is_reused_without_measuring(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Bench(model, openvino_bf16={})
    first.choose(CPU, FAST)
    monkeypatch.setattr("headrace_server.engines.choosing.choice_cache._in_process", {})  # as a new process
    again = Bench(model, openvino_bf16={"factor": -1.0})
    engine = again.choose(CPU, FAST)
    assert [(each.info.device) for each in again.opened] == ["openvino"]
    choice = engine.info.choice
    assert choice is not None
    assert choice.cached
    assert choice.candidates[1].speedup > 1.1


def test_a_choice_ends_with_the_process_where_no_directory_is_given(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(replace(model, engine=EngineOptions()), openvino_bf16={})
    bench.choose(CPU, FAST)
    bench.choose(CPU, FAST)
    assert [each.info.device for each in bench.opened] == ["cpu", "openvino", "openvino"]
    monkeypatch.setattr("headrace_server.engines.choosing.choice_cache._in_process", {})
    bench.choose(CPU, FAST)
    assert [each.info.device for each in bench.opened[3:]] == ["cpu", "openvino"]


@pytest.mark.parametrize(
    "change",
    [{"model": "AMD EPYC"}, {"num_cores": 64}, {"flags": frozenset({"avx2"})}],
    ids=["model", "cores", "flags"],
)
def test_another_machine_measures_for_itself(
    model: Model, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    bench = Bench(model, openvino_bf16={})
    bench.choose(CPU, FAST)
    elsewhere = replace(find_cpu(), **change)
    monkeypatch.setattr(device_policy, "find_cpu", lambda: elsewhere)
    bench.choose(CPU, FAST)
    assert [each.info.device for each in bench.opened[2:]] == ["cpu", "openvino"]


@pytest.mark.parametrize("what", ["model", "runtime", "threads", "rows"])
def test_another_question_is_measured(model: Model, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    bench = Bench(model, openvino_bf16={})
    bench.choose(CPU, FAST)
    header, budget = read_onnx_header(model.graph), BUDGET
    if what == "model":
        bench.model = replace(model, digest="another")
    elif what == "runtime":
        monkeypatch.setattr(device_policy, "installed_version", lambda name: "99.0")
    elif what == "threads":
        budget = ThreadBudget(num_cores=8)
    else:
        bench.model = replace(model, batching=replace(model.batching, max_batch_size=3))
    choose_engine(bench.model, header, (CPU, FAST), bench.model.engine, budget.resolved(), bench.open)
    assert [each.info.device for each in bench.opened[2:]] == ["cpu", "openvino"]


@pytest.mark.parametrize("content", [b"", b"{", b'{"key": 1}', b"\xff\xfe"], ids=["empty", "cut", "other", "bytes"])
def test_a_file_that_cannot_be_read_is_measured_anew_and_replaced(
    model: Model, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    bench = Bench(model, openvino_bf16={})
    bench.choose(CPU, FAST)
    monkeypatch.setattr("headrace_server.engines.choosing.choice_cache._in_process", {})
    assert model.engine.cache is not None
    (path,) = (model.engine.cache / "choices").iterdir()
    whole = path.read_bytes()
    path.write_bytes(content)
    bench.choose(CPU, FAST)
    assert [each.info.device for each in bench.opened[2:]] == ["cpu", "openvino"]
    assert path.read_bytes()[:40] == whole[:40]
    assert list(path.parent.iterdir()) == [path], "nothing half written stays"


def test_a_file_of_another_question_is_not_believed(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(model, openvino_bf16={})
    bench.choose(CPU, FAST)
    monkeypatch.setattr("headrace_server.engines.choosing.choice_cache._in_process", {})
    assert model.engine.cache is not None
    (path,) = (model.engine.cache / "choices").iterdir()
    bench.model = replace(model, digest="another")
    bench.choose(CPU, FAST)
    (other,) = set(path.parent.iterdir()) - {path}
    path.replace(other)
    monkeypatch.setattr("headrace_server.engines.choosing.choice_cache._in_process", {})
    bench.choose(CPU, FAST)
    assert [each.info.device for each in bench.opened] == ["cpu", "openvino"] * 3


def test_a_directory_that_cannot_be_written_keeps_the_server_from_nothing(
    model: Model, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file")
    with caplog.at_level(logging.WARNING):
        engine = Bench(model, openvino_bf16={}).choose(CPU, FAST)
    assert engine.info.device == "openvino"
    assert "cannot be kept" in caplog.text


def test_what_was_chosen_and_does_not_start_any_more_is_measured_anew(model: Model) -> None:
    bench = Bench(model, openvino_bf16={})
    bench.choose(CPU, FAST)
    bench.others["openvino_bf16"] = ServingError(Reason.DEVICE_UNAVAILABLE, "gone")
    assert bench.choose(CPU, FAST).info.device == "cpu"


def test_a_run_of_microseconds_stays_on_the_cpu_and_nothing_else_is_opened(tmp_path: Path) -> None:
    options = EngineOptions(cache=tmp_path / "cache")
    engine = create_engine(small_graphs.model_of(small_graphs.doubler(tmp_path)), options, BUDGET)
    assert engine.info.device == "cpu"
    choice = engine.info.choice
    if choice is not None:  # there was somebody to choose from
        assert "too short to gain elsewhere" in choice.reason
        assert {each.verdict for each in choice.candidates} == {Verdict.CHOSEN, Verdict.NOT_MEASURED}
    assert not (tmp_path / "cache").exists()


def test_bf16_is_a_candidate_only_where_the_cpu_multiplies_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = read_onnx_header(large_matmul(tmp_path))
    monkeypatch.setattr(device_policy, "installed_openvino", lambda: "1.8.1")
    for flags, candidates in (
        ({"amx_bf16"}, [CPU, FAST, ("openvino", "fp32")]),
        ({"avx512_bf16"}, [CPU, FAST, ("openvino", "fp32")]),
        ({"avx512f"}, [CPU, ("openvino", "fp32")]),
    ):
        cpu = CpuMachine(architecture="x86_64", model="a CPU", flags=frozenset(flags), num_cores=2)
        monkeypatch.setattr("headrace_server.engines.onnx.openvino.find_cpu", lambda cpu=cpu: cpu)
        assert list(find_candidates(header, "auto", "auto")) == candidates
        assert (FAST in find_candidates(header, "auto", "bf16")) is (FAST in candidates)
        assert find_candidates(header, "auto", "fp32") == (CPU, ("openvino", "fp32"))


def test_without_the_plugin_there_is_nothing_to_choose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_policy, "installed_openvino", lambda: "")
    header = read_onnx_header(large_matmul(tmp_path))
    assert find_candidates(header, "auto", "auto") == (CPU,)
    assert find_candidates(header, "openvino", "auto") == (("openvino", "auto"),)


def test_a_gpu_is_a_candidate_where_the_driver_shows_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_policy, "installed_openvino", lambda: "")
    gpu = CudaDevice(index=0, name="H100", compute_capability="9.0", memory_bytes=1)
    monkeypatch.setattr(device_policy, "find_cuda", lambda: CudaMachine(devices=(gpu,)))
    assert find_candidates(read_onnx_header(large_matmul(tmp_path)), "auto", "auto") == (CPU, ("cuda:0", "fp32"))


def test_texts_as_tensors_stay_on_the_cpu(tmp_path: Path) -> None:
    assert find_candidates(read_onnx_header(small_graphs.strings(tmp_path)), "auto", "auto") == (("cpu", "auto"),)


def test_cuda_that_a_runtime_is_installed_for_and_that_is_not_there_is_said_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device_policy, "installed_openvino", lambda: "")
    monkeypatch.setattr(device_policy, "installed_version", lambda name: "1.31.1")
    with caplog.at_level(logging.WARNING):
        engine = create_engine(small_graphs.model_of(large_matmul(tmp_path, 1024)), EngineOptions(), BUDGET)
    assert engine.info.device == "cpu"
    choice = engine.info.choice
    assert choice is not None
    assert [(each.device, each.verdict) for each in choice.failures] == [("cuda:0", Verdict.UNAVAILABLE)]
    assert "cuda:0 fp32 cannot serve it" in caplog.text
