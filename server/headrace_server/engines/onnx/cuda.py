"""ONNX Runtime on a GPU of NVIDIA: its CUDA provider, or an error that says which of its needs is not met.

Without graphs one session serves all workers: every run in flight has a stream of its own, which the runtime takes from
a pool, so that runs overlap and the device holds the weights once. A stream given by the caller would be one for the
whole session. With graphs each worker has a session and a thread (see `graph_runs`).

Products of fp32 are fp32: TF32 is used where the manifest says so, and called so. An int8 graph runs, but its products
are computed in fp32 between DequantizeLinear and QuantizeLinear: TensorRT is what makes it fast.

None of this has run on a GPU yet; `make test-gpu` and `make bench-gpu` are what to run there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from headrace_server.config import CudaOptions
from headrace_server.engines.devices import device_unavailable
from headrace_server.engines.machine.capture_gate import PROCESS_GATE
from headrace_server.engines.machine.cuda_devices import CudaMachine, find_cuda
from headrace_server.engines.machine.cuda_libraries import CURE, provider_fault
from headrace_server.engines.machine.host_memory import HostMemory
from headrace_server.engines.machine.pinned_memory import PinnedMemory
from headrace_server.engines.onnx.bound_runs import BoundRuns, can_be_bound
from headrace_server.engines.onnx.engine import OnnxEngine, graph_of, is_batch_invariant, map_columns, require_nodes
from headrace_server.engines.onnx.graph_runs import GraphRuns
from headrace_server.engines.onnx.runs import SessionRuns
from headrace_server.engines.onnx.session import available_providers, load_runtime, open_session
from headrace_server.engines.onnx.types import GraphTensor
from headrace_server.engines.request import EngineRequest
from headrace_server.errors import Reason, ServingError

__all__ = ["CUDA", "check_device", "check_runtime", "open_cuda", "provider_options"]

CUDA = "CUDAExecutionProvider"

_NO_MEMORY = re.compile(r"failed to allocate memory|out of memory|gpu_mem_limit", re.IGNORECASE)
_CPU = "set device to cpu or auto"


def open_cuda(request: EngineRequest) -> OnnxEngine:
    """The graph on the GPU that was asked for, in the precision of its weights.

    raises  ServingError DEVICE_UNAVAILABLE (facts requested, actual, reason, cure) without a driver, the GPU, the CUDA
            build of onnxruntime or a library that it needs, and where the provider takes next to none of the graph;
            UNSUPPORTED for a graph that cannot be recorded, with graphs asked for; MODEL_INVALID as OnnxEngine
    """
    header, precision = graph_of(request)
    machine = find_cuda()
    check_device(machine, request.device, request.index)
    check_runtime(machine, request.device)
    options = request.options.cuda
    if options.tf32 and request.precision == "fp32":
        raise device_unavailable(
            "precision fp32",
            actual="tf32",
            reason="engine.cuda.tf32 is true, which rounds products to ten bits",
            cure="set engine.cuda.tf32 to false, or precision to auto",
        )
    memory = PinnedMemory(request.index)
    with PROCESS_GATE.loading(), _load_faults(request):
        engine = OnnxEngine(
            request.model.graph,
            device=request.device,
            provider=CUDA,
            provider_options=provider_options(request.index, options),
            precision="tf32" if options.tf32 and precision == "fp32" else precision,
            num_threads=request.num_threads,
            num_workers=request.num_workers,
            class_labels=map_columns(header),
            batch_invariant=is_batch_invariant(header),
            runs=partial(_runs, request, memory),
        )
    return require_nodes(engine, CUDA, requested=request.device, called="CUDA", actual="cpu", cure=_CPU)


def provider_options(index: int, options: CudaOptions) -> dict[str, str]:
    """What the provider is told; whatever is not said here is the runtime's own choice."""
    chosen = {
        "device_id": str(index),
        "use_tf32": str(int(options.tf32)),
        "cudnn_conv_algo_search": options.conv_search.upper(),
        # Shapes recur, as batches and lengths are padded: what is asked for is what is needed again.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if options.arena_mb:
        chosen["gpu_mem_limit"] = str(options.arena_mb << 20)
    if options.cuda_graphs:
        chosen["enable_cuda_graph"] = "1"
    return chosen


def check_device(machine: CudaMachine, requested: str, index: int) -> None:
    """Raises ServingError DEVICE_UNAVAILABLE where the machine has no GPU of that number."""
    if machine.fault:
        raise device_unavailable(
            requested,
            actual="cpu",
            reason=machine.fault,
            cure=f"install NVIDIA's driver, start the container with its GPUs, or {_CPU}",
        )
    if index >= len(machine.devices):
        there = ", ".join(f"cuda:{device.index} {device.name}" for device in machine.devices)
        raise device_unavailable(
            requested,
            actual=f"{len(machine.devices)} GPUs" if len(machine.devices) > 1 else "1 GPU",
            reason=f"the GPU of number {index} is asked for, and there are {len(machine.devices)} ({there})",
            cure=f"ask for one of these, or {_CPU}",
        )


def check_runtime(machine: CudaMachine, requested: str) -> None:
    """Raises ServingError DEVICE_UNAVAILABLE where the installed onnxruntime cannot use the GPUs of this machine."""
    runtime = load_runtime()
    if CUDA not in available_providers():
        raise device_unavailable(
            requested,
            actual="cpu",
            reason=f"the installed onnxruntime {runtime.__version__} is the one for CPUs, built without CUDA",
            cure=f"uninstall onnxruntime and install 'headrace[gpu]', or {_CPU}",
        )
    needed = getattr(runtime, "cuda_version", "") or "0"
    if int(machine.driver_cuda.partition(".")[0] or 0) < int(needed.partition(".")[0]):
        raise device_unavailable(
            requested,
            actual="cpu",
            reason=f"the driver is for CUDA {machine.driver_cuda}, this onnxruntime needs CUDA {needed}",
            cure=f"install a newer NVIDIA driver, or {_CPU}",
        )
    if fault := provider_fault(runtime):
        raise device_unavailable(requested, actual="cpu", reason=fault, cure=CURE)


@contextmanager
def _load_faults(request: EngineRequest) -> Iterator[None]:
    """What a session on a GPU fails of besides its graph, told by the runtime's words."""
    try:
        yield
    except ServingError as error:
        if error.reason is not Reason.MODEL_INVALID:
            raise
        name = request.model.graph.name
        if "graph capture feature" in error.detail:
            raise ServingError(
                Reason.UNSUPPORTED,
                f"engine.cuda.cuda_graphs: true, but {name} has parts that run on the CPU or branch; set it to false",
                detail=error.detail,
            ) from error
        if _NO_MEMORY.search(error.detail):
            limit = request.options.cuda.arena_mb
            within = f"the {limit} MB of engine.cuda.arena_mb" if limit else "the free memory of the GPU"
            raise ServingError(
                Reason.MEMORY_EXHAUSTED, f"{name} does not fit into {within}", detail=error.detail
            ) from error
        raise


def _runs(
    request: EngineRequest,
    memory: HostMemory,
    session: Any,
    inputs: Mapping[str, GraphTensor],
    outputs: Mapping[str, GraphTensor],
) -> SessionRuns | None:
    """How this session is asked; with graphs, it and more of the same. None: by arrays as they are."""
    options = request.options.cuda
    bindable = can_be_bound(inputs, outputs)
    if not options.cuda_graphs:
        if not bindable:
            return None
        return BoundRuns(
            session,
            inputs,
            outputs,
            runtime=load_runtime(),
            memory=memory,
            num_workers=request.num_workers,
            around=PROCESS_GATE.running,
        )
    if not bindable:
        raise ServingError(
            Reason.UNSUPPORTED,
            "engine.cuda.cuda_graphs: true, but no CUDA graph takes or gives strings, dictionaries or bfloat16",
        )
    more = [
        open_session(
            request.model.graph,
            device=request.device,
            provider=CUDA,
            provider_options=provider_options(request.index, options),
            num_threads=request.num_threads,
        )
        for _ in range(request.num_workers - 1)
    ]
    return GraphRuns(
        [session, *more],
        runtime=load_runtime(),
        memory=memory,
        device=("cuda", request.index),
        max_graphs=options.max_graphs,
        gate=PROCESS_GATE,
    )
