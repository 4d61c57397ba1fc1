"""The real TensorRT for RTX on the CPU: what it parses, compiles and refuses. `make test-tensorrt` installs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantize_models import save_quantized
from small_graphs import bfloat16_beside_float32, classifier_with_zipmap, doubler, save, value

from headrace_server.config import ShapeProfile
from headrace_server.engines.machine.cuda_devices import find_cuda
from headrace_server.engines.tensorrt.build import target_names
from headrace_server.engines.tensorrt.files import build_file, open_graph, read_plan, validate_file
from headrace_server.engines.tensorrt.native import NativeLibrary
from headrace_server.engines.tensorrt.seam import BuildOrder
from headrace_server.engines.tensorrt.support import Support
from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import read_onnx_header

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed (make test-tensorrt installs it)")

MINILM = Path(__file__).parents[3] / "build" / "demo-models" / "minilm" / "1"
needs_minilm = pytest.mark.skipif(not MINILM.is_dir(), reason="the demo models are not built (make demo-models)")
without_driver = pytest.mark.skipif(not find_cuda().fault, reason="this machine has a GPU: its driver is there")

PROFILE = ShapeProfile(min={"x": (1, 8)}, opt={"x": (4, 8)}, max={"x": (16, 8)})


def build(graph: Path, out: Path, *profiles: ShapeProfile, capability: str = "8.9") -> bytes:
    opened = open_graph(graph, profiles=profiles)
    build_file(opened, out, rtx=True, compute_capabilities=(capability,))
    return out.read_bytes()


def validated(graph: Path) -> Support:
    return validate_file(open_graph(graph), rtx=True)[0]


@cache
def minilm_quantized(mode: str, folder: Path) -> Path:
    """MiniLM as `headrace quantize --target tensorrt --mode …` writes it, calibrated on a few token rows."""
    rng = np.random.default_rng(3)
    feeds = []
    for length in (12, 24):
        ids = rng.integers(1000, 29000, (4, length))
        feeds.append({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)})
    return save_quantized(MINILM / "onnx" / "model.onnx", folder, mode=mode, feeds=feeds)


@needs_minilm
def test_minilm_compiles_without_a_gpu_to_the_same_bytes_twice(tmp_path: Path) -> None:
    first = build(MINILM, tmp_path / "a.plan")
    assert build(MINILM, tmp_path / "b.plan") == first
    assert (tmp_path / "a.plan.json").read_bytes() == (tmp_path / "b.plan.json").read_bytes()
    sidecar, whole = read_plan(tmp_path / "a.plan")
    assert whole
    assert (sidecar.library, sidecar.precision, sidecar.compute_capabilities) == ("tensorrt_rtx", "fp32", ("8.9",))
    assert len(sidecar.profiles) == 2  # of short texts, and of all
    assert sidecar.profiles[1].max["input_ids"] == (16, 256)
    assert sidecar.layers


@needs_minilm
@pytest.mark.parametrize(
    ("mode", "precision"), [("fp16", "fp16"), ("bf16", "bf16"), ("static", "int8"), ("fp8", "fp8")]
)
def test_every_quantized_minilm_for_tensorrt_compiles(
    tmp_path_factory: pytest.TempPathFactory, mode: str, precision: str
) -> None:
    graph = minilm_quantized(mode, tmp_path_factory.mktemp(mode))
    assert validated(graph).supported
    names = ("input_ids", "attention_mask", "token_type_ids")
    profile = ShapeProfile(
        min=dict.fromkeys(names, (1, 1)), opt=dict.fromkeys(names, (8, 32)), max=dict.fromkeys(names, (16, 64))
    )
    out = graph.with_suffix(".plan")
    plan = build(graph, out, profile)
    sidecar, _ = read_plan(out)
    assert sidecar.precision == precision
    assert len(plan) == sidecar.size_bytes


def matmul(
    folder: Path, before: list[Any], weights: list[Any], opsets: tuple[tuple[str, int], ...] = (("", 19),)
) -> Path:
    """x f32[n, 8] → y f32[n, 4], by the nodes given."""
    return save(
        folder,
        before,
        [value("x", TensorProto.FLOAT, ["n", 8])],
        [value("y", TensorProto.FLOAT, ["n", 4])],
        weights,
        opsets,
    )


def tensor(name: str, array: Any) -> Any:
    return numpy_helper.from_array(np.asarray(array), name)


def qdq(folder: Path, zero: Any) -> Path:
    """A product of int8 weights with activations of a scale and the zero point `zero`."""
    weights = np.random.default_rng(0).integers(-100, 100, (8, 4)).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"], name="quantize"),
        helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"], name="dequantize"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], name="weights"),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="product"),
    ]
    given = [tensor("s", np.float32(0.05)), tensor("z", zero), tensor("w", weights), tensor("ws", np.float32(0.01))]
    return matmul(folder, nodes, [*given, tensor("wz", np.int8(0))])


def test_signed_symmetric_int8_is_taken(tmp_path: Path) -> None:
    graph = qdq(tmp_path, np.int8(0))
    assert validated(graph).supported
    assert build(graph, tmp_path / "a.plan", PROFILE)


def dynamic(folder: Path) -> Path:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"], name="scales"),
        helper.make_node("MatMulInteger", ["xq", "w", "xz"], ["yi"], name="integers"),
        helper.make_node("Cast", ["yi"], ["y"], to=TensorProto.FLOAT),
    ]
    return matmul(folder, nodes, [tensor("w", np.ones((8, 4), np.int8))])


def fused_bits(folder: Path) -> Path:
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], name="bits", domain="com.microsoft", K=8, N=4, bits=4, block_size=16
    )
    weights = [tensor("w", np.zeros((4, 1, 8), np.uint8)), tensor("s", np.ones(4, np.float32))]
    return matmul(folder, [node], weights, (("", 19), ("com.microsoft", 1)))


def fused_gelu(folder: Path) -> Path:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("QuickGelu", ["m"], ["y"], name="gelu", domain="com.microsoft", alpha=1.0),
    ]
    return matmul(folder, nodes, [tensor("w", np.ones((8, 4), np.float32))], (("", 19), ("com.microsoft", 1)))


@pytest.mark.parametrize(
    ("make", "nodes", "cure"),
    [
        (lambda folder: qdq(folder, np.uint8(128)), ["quantize"], "signed, symmetric"),
        (lambda folder: qdq(folder, np.int8(5)), ["quantize"], "signed, symmetric"),
        (dynamic, ["scales", "integers"], "quantize it for TensorRT"),
        (fused_bits, ["bits"], "fused operators"),
        (fused_gelu, ["gelu"], "fused operators"),
    ],
    ids=["unsigned", "asymmetric", "dynamic", "MatMulNBits", "fused"],
)
def test_what_is_refused_is_told_node_by_node_with_a_cure(
    tmp_path: Path, make: Any, nodes: list[str], cure: str
) -> None:
    graph = make(tmp_path)
    support = validated(graph)
    assert not support.supported
    assert [fault.name for fault in support.faults] == nodes
    assert all(cure in fault.cure for fault in support.faults)
    with pytest.raises(ServingError) as caught:
        build(graph, tmp_path / "a.plan", PROFILE)
    assert caught.value.reason is Reason.MODEL_INVALID
    assert all(name in caught.value.message for name in nodes)
    assert cure in caught.value.message
    assert not (tmp_path / "a.plan").exists()


def test_strings_and_maps_are_refused(tmp_path: Path) -> None:
    graph = classifier_with_zipmap(tmp_path, ["a", "b"])
    assert not validated(graph).supported


def test_a_graph_of_bfloat16_compiles(tmp_path: Path) -> None:
    profile = ShapeProfile(min={"x": (1, 2)}, opt={"x": (2, 2)}, max={"x": (8, 2)})
    build(bfloat16_beside_float32(tmp_path), tmp_path / "a.plan", profile)
    assert [each.dtype for each in read_plan(tmp_path / "a.plan")[0].outputs] == ["bfloat16", "float32"]


def test_flags_and_profiles_change_the_plan(tmp_path: Path) -> None:
    graph = qdq(tmp_path, np.int8(0))
    plan = build(graph, tmp_path / "a.plan", PROFILE)
    larger = ShapeProfile(min={"x": (1, 8)}, opt={"x": (4, 8)}, max={"x": (32, 8)})
    assert build(graph, tmp_path / "b.plan", larger) != plan
    assert build(graph, tmp_path / "c.plan", PROFILE, capability="12.0") != plan


def test_a_gpu_that_it_does_not_compile_for_is_refused_with_those_it_does(tmp_path: Path) -> None:
    assert "9.0" not in target_names(trt)
    with pytest.raises(ServingError, match=r"8\.9") as caught:
        build(doubler(tmp_path), tmp_path / "a.plan", capability="9.0")
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE


def test_a_profile_that_the_builder_refuses_says_so(tmp_path: Path) -> None:
    graph = qdq(tmp_path, np.int8(0))
    wrong = ShapeProfile(
        min={"x": (1, 9)}, opt={"x": (4, 9)}, max={"x": (16, 9)}
    )  # not checked before, as the graph's is
    order = BuildOrder(graph=graph, header=read_onnx_header(graph), profiles=(wrong,), compute_capabilities=("8.9",))
    with pytest.raises(ServingError, match="could not compile") as caught:
        NativeLibrary("tensorrt_rtx", trt, cuda_major=13).build(order)
    assert caught.value.detail


def headrace(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace_server", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100)


def test_the_commands_build_validate_and_inspect(tmp_path: Path) -> None:
    graph, plan = qdq(tmp_path, np.int8(0)), tmp_path / "out" / "model.plan"
    shapes = ["--min", "x:1x8", "--opt", "x:4x8", "--max", "x:16x8"]
    built = headrace("tensorrt", "build", graph, "--rtx", "--compute-capability", "8.9", "--out", plan, *shapes)
    assert built.returncode == 0, built.stderr
    assert "int8" in built.stdout
    again = headrace("tensorrt", "build", graph, "--rtx", "--compute-capability", "8.9", "--out", plan, *shapes)
    assert again.returncode == 1
    assert "--force" in again.stderr
    inspected = headrace("tensorrt", "inspect", plan, "--json")
    assert json.loads(inspected.stdout)["profiles"][0]["max"] == {"x": [16, 8]}
    plan.write_bytes(plan.read_bytes() + b"x")
    assert headrace("tensorrt", "inspect", plan).returncode == 1
    refused = headrace("tensorrt", "validate", dynamic(tmp_path), "--rtx", "--json")
    assert refused.returncode == 1
    assert [fault["op_type"] for fault in json.loads(refused.stdout)["faults"]] == [
        "DynamicQuantizeLinear",
        "MatMulInteger",
    ]


@without_driver
def test_the_lean_runtime_ends_the_process_without_a_driver_and_our_gate_stands_before_it(tmp_path: Path) -> None:
    pytest.importorskip(
        "tensorrt_lean_bindings", reason="tensorrt-lean is not installed (make test-tensorrt installs it)"
    )
    raw = """
        import tensorrt_lean_bindings as trt
        trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(b"x" * 2000)
    """
    ours = """
        import sys, tensorrt_lean_bindings
        sys.modules["tensorrt"] = tensorrt_lean_bindings
        from headrace_server.engines.tensorrt.library import require_device
        from headrace_server.errors import ServingError
        try:
            require_device("tensorrt:0", 0)
        except ServingError as error:
            print(error.reason.name)
    """
    answers = [
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=60)
        for script in (raw, ours)
    ]
    assert answers[0].returncode == -11
    assert (answers[1].returncode, answers[1].stdout.strip()) == (0, "DEVICE_UNAVAILABLE")


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (
            "ICudaEngine",
            "num_io_tensors get_tensor_name get_tensor_dtype get_tensor_shape get_tensor_mode get_tensor_location "
            "num_optimization_profiles get_tensor_profile_shape device_memory_size_v2 create_execution_context "
            "create_engine_inspector num_layers",
        ),
        (
            "IExecutionContext",
            "set_device_memory set_optimization_profile_async set_input_shape infer_shapes get_tensor_shape "
            "set_tensor_address set_output_allocator execute_async_v3",
        ),
        ("Runtime", "engine_host_code_allowed deserialize_cuda_engine"),
        ("ExecutionContextAllocationStrategy", "STATIC USER_MANAGED"),
        ("TensorLocation", "HOST"),
        ("TensorIOMode", "INPUT"),
        ("BuilderFlag", "TF32 VERSION_COMPATIBLE"),
    ],
)
def test_the_library_has_every_name_that_only_a_gpu_can_exercise(owner: str, names: str) -> None:
    assert [name for name in names.split() if not hasattr(getattr(trt, owner), name)] == []


def test_an_allocator_gives_addresses_and_refuses_rather_than_raise() -> None:
    from headrace_server.engines.tensorrt.native import _allocator_class

    def allocate(size: int) -> int:
        if size > 100:
            raise MemoryError
        return 4096

    allocator = _allocator_class(trt)(allocate)
    assert isinstance(allocator, trt.IOutputAllocator)
    assert allocator.reallocate_output_async("y", None, 64, 256, 0) == 4096
    assert allocator.reallocate_output_async("y", None, 640, 256, 0) is None
    allocator.notify_shape("y", trt.Dims([2, 5]))
    assert allocator.shape == (2, 5)


@without_driver
def test_cudas_own_bindings_take_every_call_and_say_why_not() -> None:
    pytest.importorskip("cuda.bindings", reason="cuda-bindings is not installed (make test-tensorrt installs it)")
    from headrace_server.engines.machine.cuda_calls import CudaCalls

    cuda = CudaCalls(0, requested="tensorrt:0")
    calls: dict[str, tuple[int, ...]] = {
        "use_device": (), "create_stream": (), "destroy_stream": (5,), "synchronize": (5,), "allocate": (64,),
        "free": (1024,), "allocate_pinned": (64,), "free_pinned": (1024,), "copy_in": (1024, 2048, 16, 5),
        "copy_out": (1024, 2048, 16, 5), "begin_capture": (5,), "end_capture": (5,), "launch": (0, 5),
        "destroy_graph": (0,),
    }  # fmt: skip
    for name, arguments in calls.items():
        with pytest.raises(ServingError) as caught:
            getattr(cuda, name)(*arguments)
        assert caught.value.reason is Reason.INTERNAL
        assert "cudaErrorInsufficientDriver" in caught.value.detail or "cudaErrorNoDevice" in caught.value.detail, name


@without_driver
def test_serving_a_plan_without_a_gpu_fails_with_the_reason(tmp_path: Path) -> None:
    build(qdq(tmp_path, np.int8(0)), tmp_path / "m" / "1" / "model.plan", PROFILE)
    answer = subprocess.run(
        [sys.executable, "-m", "headrace_server", "inspect", str(tmp_path / "m")], capture_output=True, text=True,
        timeout=60, env=os.environ,
    )  # fmt: skip
    assert "tensorrt" in answer.stdout
    from headrace_server.config import ThreadBudget
    from headrace_server.engines.factory import create_engine
    from headrace_server.models.load import load_model

    model = load_model(tmp_path / "m" / "1", name="m", version="1")
    with pytest.raises(ServingError, match="driver") as caught:
        create_engine(model, model.engine, ThreadBudget(num_cores=1))
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE
