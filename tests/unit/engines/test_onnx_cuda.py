"""What is said where CUDA is asked for and not to be had; and what the provider is told. Nothing here needs a GPU."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path

import pytest
import small_graphs

from headrace_server.config import CudaOptions, EngineOptions, ThreadBudget
from headrace_server.engines.factory import create_engine
from headrace_server.engines.machine.cuda_devices import CudaDevice, CudaMachine, find_cuda
from headrace_server.engines.onnx import cuda as onnx_cuda
from headrace_server.engines.onnx.cuda import check_device, check_runtime, open_cuda, provider_options
from headrace_server.engines.onnx.session import available_providers, load_runtime
from headrace_server.engines.request import EngineRequest
from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import read_onnx_header

H100 = CudaDevice(index=0, name="NVIDIA H100", compute_capability="9.0", memory_bytes=80 << 30)
ONE_GPU = CudaMachine(devices=(H100,), driver_cuda="13.0")


def request_of(graph: Path, device: str = "cuda:0", **options: object) -> EngineRequest:
    return EngineRequest(
        model=small_graphs.model_of(graph), header=read_onnx_header(graph), device=device, precision="auto",
        num_threads=1, num_workers=1, options=EngineOptions(**options),  # type: ignore[arg-type]
    )  # fmt: skip


def refusal(call: object, *arguments: object) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call(*arguments)  # type: ignore[operator]
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE
    assert caught.value.facts.keys() >= {"requested", "actual", "reason", "cure"}
    return caught.value


@pytest.mark.skipif(not find_cuda().fault, reason="this machine has a GPU")
def test_without_a_driver_the_real_reason_is_said(tmp_path: Path) -> None:
    for device in ("cuda", "cuda:1"):
        model = small_graphs.model_of(small_graphs.doubler(tmp_path))
        error = refusal(create_engine, model, EngineOptions(device=device), ThreadBudget(num_cores=1))
        assert error.facts["actual"] == "cpu"
        assert "no NVIDIA driver is installed" in error.facts["reason"] or "driver" in error.facts["reason"]
        assert "set device to cpu or auto" in error.facts["cure"]


def test_a_gpu_that_the_machine_has_not_is_said_by_number() -> None:
    check_device(ONE_GPU, "cuda:0", 0)
    error = refusal(check_device, ONE_GPU, "cuda:2", 2)
    assert error.facts["requested"] == "cuda:2"
    assert error.facts["actual"] == "1 GPU"
    assert error.facts["reason"] == (
        "the GPU of number 2 is asked for, and there are 1 (cuda:0 NVIDIA H100)"
    )  # fmt: skip
    two = replace(ONE_GPU, devices=(H100, replace(H100, index=1)))
    check_device(two, "cuda:1", 1)
    assert refusal(check_device, two, "cuda:2", 2).facts["actual"] == "2 GPUs"


@pytest.mark.skipif("CUDAExecutionProvider" in available_providers(), reason="the CUDA build is installed")
def test_the_cpu_build_of_the_runtime_is_told_from_the_cuda_one() -> None:
    error = refusal(check_runtime, ONE_GPU, "cuda:0")
    assert f"onnxruntime {load_runtime().__version__} is the one for CPUs" in error.facts["reason"]
    assert "headrace[gpu]" in error.facts["cure"]


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU build of the runtime, FAKED to say that it is the CUDA one; its libraries are asked for really."""
    monkeypatch.setattr(onnx_cuda, "available_providers", lambda: ("CUDAExecutionProvider", "CPUExecutionProvider"))
    monkeypatch.setattr(load_runtime(), "cuda_version", "13.0")


@pytest.mark.usefixtures("cuda_build")
def test_a_driver_older_than_the_runtime_is_said_with_both_versions() -> None:
    error = refusal(check_runtime, replace(ONE_GPU, driver_cuda="12.4"), "cuda:0")
    assert error.facts["reason"] == "the driver is for CUDA 12.4, this onnxruntime needs CUDA 13.0"


def cudnn_is_installed() -> bool:
    try:
        ctypes.CDLL("libcudnn.so.9")
    except OSError:
        return False
    return True


@pytest.mark.skipif(cudnn_is_installed(), reason="this machine has CUDA's libraries")
@pytest.mark.usefixtures("cuda_build")
def test_a_library_that_is_missing_is_named() -> None:
    error = refusal(check_runtime, ONE_GPU, "cuda:0")
    assert error.facts["reason"] == "libonnxruntime_providers_cuda.so is not found"
    assert "headrace[gpu]" in error.facts["cure"]


def test_a_precision_that_the_graph_has_not_is_refused_before_the_device_is_asked(tmp_path: Path) -> None:
    asked = replace(request_of(small_graphs.doubler(tmp_path)), precision="fp16")
    error = refusal(open_cuda, asked)
    assert (error.facts["requested"], error.facts["actual"]) == ("precision fp16", "fp32")


def test_fp32_asked_for_and_tf32_allowed_contradict_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_cuda, "find_cuda", lambda: ONE_GPU)
    monkeypatch.setattr(onnx_cuda, "check_runtime", lambda *_: None)
    asked = request_of(small_graphs.doubler(tmp_path), cuda=CudaOptions(tf32=True))
    error = refusal(open_cuda, replace(asked, precision="fp32"))
    assert (error.facts["requested"], error.facts["actual"]) == ("precision fp32", "tf32")


def test_what_the_provider_is_told() -> None:
    assert provider_options(1, CudaOptions()) == {
        "device_id": "1",
        "use_tf32": "0",
        "cudnn_conv_algo_search": "HEURISTIC",
        "arena_extend_strategy": "kSameAsRequested",
    }
    told = provider_options(0, CudaOptions(arena_mb=512, cuda_graphs=True, tf32=True, conv_search="exhaustive"))
    assert told["gpu_mem_limit"] == str(512 * 1024 * 1024)
    assert (told["enable_cuda_graph"], told["use_tf32"], told["cudnn_conv_algo_search"]) == ("1", "1", "EXHAUSTIVE")


@pytest.mark.parametrize(
    ("said", "reason", "message"),
    [
        (
            "This session cannot use the graph capture feature as requested by the user",
            Reason.UNSUPPORTED,
            "engine.cuda.cuda_graphs: true",
        ),
        (
            "Failed to allocate memory for requested buffer of size 4096",
            Reason.MEMORY_EXHAUSTED,
            "does not fit into the 64 MB of engine.cuda.arena_mb",
        ),
        ("Type Error: shape", Reason.MODEL_INVALID, "cannot be served"),
    ],
)
def test_what_a_session_on_a_gpu_fails_of_is_told_by_its_cause(
    tmp_path: Path, said: str, reason: Reason, message: str
) -> None:
    asked = request_of(small_graphs.doubler(tmp_path), cuda=CudaOptions(arena_mb=64, cuda_graphs=True))
    with pytest.raises(ServingError, match=message) as caught, onnx_cuda._load_faults(asked):
        raise ServingError(Reason.MODEL_INVALID, "model.onnx cannot be served", detail=said)
    assert caught.value.reason is reason


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"arena_mb": -1}, "engine.cuda.arena_mb"),
        ({"max_graphs": 0}, "engine.cuda.max_graphs"),
        ({"conv_search": "fast"}, "engine.cuda.conv_search"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, object], field: str) -> None:
    with pytest.raises(ServingError) as caught:
        CudaOptions(**options)  # type: ignore[arg-type]
    assert [violation.field for violation in caught.value.violations] == [field]
