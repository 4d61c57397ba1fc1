"""`open_tensorrt`: a graph compiled for this GPU, or a plan that was, as an engine.

    model.plan              is loaded, once its sidecar says that it belongs here
    model.onnx              the plan beside it, where that was built from this very file for this GPU; else it is
                            compiled, once: the plan is kept in the engine cache

ONNX Runtime's own TensorRT provider is not offered: its 1.31 wheels link libnvinfer.so.10, and this engine is TensorRT
11's; in one process the two would be two libraries for one GPU.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from headrace_server.engines.base import EngineInfo
from headrace_server.engines.devices import device_unavailable
from headrace_server.engines.machine.capture_gate import PROCESS_GATE
from headrace_server.engines.machine.cuda_calls import CudaCalls
from headrace_server.engines.machine.cuda_devices import CudaDevice
from headrace_server.engines.onnx.engine import is_batch_invariant
from headrace_server.engines.request import EngineRequest
from headrace_server.engines.tensorrt.build import target_names
from headrace_server.engines.tensorrt.cache import PlanCache, plan_key
from headrace_server.engines.tensorrt.engine import TensorRtEngine
from headrace_server.engines.tensorrt.library import import_library, library_version, require_device
from headrace_server.engines.tensorrt.native import NativeLibrary
from headrace_server.engines.tensorrt.profiles import profiles_for
from headrace_server.engines.tensorrt.seam import BuildOrder, Cuda, LoadedPlan, TensorRtLibrary
from headrace_server.engines.tensorrt.sidecars import check_sidecar, make_sidecar, said_precision, source_digest
from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import OnnxHeader
from headrace_server.models.tensorrt_plan import SIDECAR_SUFFIX, PlanSidecar, is_plan, parse_sidecar

__all__ = ["cache_directory", "open_on", "open_tensorrt"]

logger = logging.getLogger(__name__)

_PROVIDERS = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT for RTX"}


def open_tensorrt(request: EngineRequest) -> TensorRtEngine:
    """The model on a GPU, in the precision of its graph: a graph is never converted at load.

    time    minutes where it is compiled for the first time
    raises  ServingError DEVICE_UNAVAILABLE (requested, actual, reason, cure): no driver, no such GPU, no library, a
            plan of another machine; MODEL_INVALID naming the nodes that TensorRT does not take, or what is wrong with
            the plan
    """
    device, machine = require_device(request.device, request.index)
    name, module = import_library(request.options.tensorrt.library, request.device)
    targets = target_names(module) if name == "tensorrt_rtx" else ()
    if targets and device.compute_capability not in targets:
        raise device_unavailable(
            request.device,
            actual=f"{device.name}, compute capability {device.compute_capability}",
            reason=f"{name} {library_version(module)} runs on compute capability {', '.join(targets)}",
            cure="install tensorrt 11, or set device to cuda, cpu or auto",
        )
    cuda = CudaCalls(request.index, requested=request.device)
    cuda.use_device()
    library = NativeLibrary(name, module, cuda_major=int(machine.driver_cuda.partition(".")[0] or 0))
    with PROCESS_GATE.loading():
        return open_on(request, device=device, library=library, cuda=cuda)


def open_on(request: EngineRequest, *, device: CudaDevice, library: TensorRtLibrary, cuda: Cuda) -> TensorRtEngine:
    """As `open_tensorrt`, on a library and a GPU that are there."""
    started = time.perf_counter()
    graph, options = request.model.graph, request.options.tensorrt
    if is_plan(graph):
        plan, sidecar = _ready_made(request, graph, device=device, library=library)
    else:
        if request.header is None:
            raise ServingError(
                Reason.UNSUPPORTED,
                f"{graph.name}: TensorRT compiles .onnx files alone",
            )
        _check_precision(request, said_precision(request.header, tf32=options.tf32))
        beside = _beside(request, request.header, device=device, library=library)
        plan, sidecar = beside or _compiled(request, request.header, device=device, library=library)
    try:
        _check_tensors(graph.name, plan)
        info = EngineInfo(
            engine="tensorrt",
            runtime_version=f"{library.name} {library.version}",
            device=request.device,
            provider=_PROVIDERS[library.name],
            precision=sidecar.precision,
            num_threads=1,
            num_workers=request.num_workers,
            load_time_ms=(time.perf_counter() - started) * 1e3,
            batch_invariant=request.header is None or is_batch_invariant(request.header),
        )
        return TensorRtEngine(plan, cuda, info, use_graphs=options.cuda_graphs, gate=PROCESS_GATE.running)
    except BaseException:
        plan.close()
        raise


def cache_directory(configured: Path | None) -> Path:
    """Where plans are kept: in the server's own cache directory, else the user's."""
    return (configured or Path.home() / ".cache" / "headrace") / "tensorrt"


def _ready_made(
    request: EngineRequest, path: Path, *, device: CudaDevice, library: TensorRtLibrary
) -> tuple[LoadedPlan, PlanSidecar]:
    sidecar_path = path.with_name(path.name + SIDECAR_SUFFIX)
    allowed = request.options.tensorrt.version_compatible
    try:
        sidecar = parse_sidecar(sidecar_path.read_bytes(), sidecar_path.name)
        content = path.read_bytes()
    except OSError as error:
        raise ServingError(
            Reason.MODEL_INVALID,
            f"{path.name}: the plan or its sidecar {sidecar_path.name} cannot be read",
            detail=repr(error),
        ) from error
    check_sidecar(
        path.name, sidecar, content, requested=request.device, library=library.name, version=library.version,
        device=device, version_compatible=allowed,
    )  # fmt: skip
    _check_precision(request, sidecar.precision)
    if sidecar.gpu and sidecar.gpu != device.name:
        logger.warning("%s was tuned on %s; on %s another plan may be faster", path.name, sidecar.gpu, device.name)
    loaded = library.load(content, allow_host_code=sidecar.version_compatible and allowed)
    if loaded is None:
        raise ServingError(
            Reason.MODEL_INVALID,
            f"{path.name}: TensorRT does not take this plan; build it again with `headrace tensorrt build`",
            detail=library.faults(),
        )
    return loaded, sidecar


def _beside(
    request: EngineRequest, header: OnnxHeader, *, device: CudaDevice, library: TensorRtLibrary
) -> tuple[LoadedPlan, PlanSidecar] | None:
    """The plan beside the graph, where it is this graph's and this machine's; why not is logged."""
    path = request.model.graph.with_suffix(".plan")
    if not path.is_file():
        return None
    try:
        loaded, sidecar = _ready_made(request, path, device=device, library=library)
    except ServingError as error:
        logger.warning("the plan beside %s is not used: %s", request.model.graph.name, error.message)
        return None
    if sidecar.source_sha256 != source_digest(request.model.graph, header):
        loaded.close()
        logger.warning("the plan beside %s is not used: it was built from another graph", request.model.graph.name)
        return None
    return loaded, sidecar


def _compiled(
    request: EngineRequest, header: OnnxHeader, *, device: CudaDevice, library: TensorRtLibrary
) -> tuple[LoadedPlan, PlanSidecar]:
    graph, options = request.model.graph, request.options.tensorrt
    inputs = [value.spec for value in header.inputs if value.spec is not None]
    profiles = profiles_for(request.model, inputs, options.profiles)
    directory = cache_directory(request.options.cache)
    gpu = f"{device.name} sm{device.compute_capability}"
    digest = source_digest(graph, header)
    # The flags that decide the plan's code, beside what it is compiled from and for.
    key = plan_key(
        source=digest,
        profiles=[{"min": dict(p.min), "opt": dict(p.opt), "max": dict(p.max)} for p in profiles],
        flags={
            "tf32": options.tf32,
            "version_compatible": options.version_compatible,
            "workspace_mb": options.workspace_mb,
        },
        library=library.name,
        version=library.version,
        cuda_major=library.cuda_major,
        gpu=gpu,
    )
    timings = plan_key(library=library.name, version=library.version, cuda_major=library.cuda_major, gpu=gpu)[:16]
    order = BuildOrder(
        graph=graph,
        header=header,
        profiles=profiles,
        workspace_mb=options.workspace_mb,
        tf32=options.tf32,
        version_compatible=options.version_compatible,
        # TensorRT for RTX times nothing while it builds.
        timing_cache=directory / f"timing-{timings}.cache" if library.name == "tensorrt" else None,
    )

    def build() -> tuple[bytes, PlanSidecar]:
        logger.info("%s: compiling for %s, %d profiles: this may take minutes", graph.name, gpu, len(profiles))
        began = time.perf_counter()
        built = library.build(order)
        logger.info("%s: compiled in %.1f s, %.1f MB", graph.name, time.perf_counter() - began, len(built.plan) / 1e6)
        return built.plan, make_sidecar(
            order, built, library=library.name, version=library.version, cuda_major=library.cuda_major,
            device=device, source_sha256=digest,
        )  # fmt: skip

    def load(plan: bytes, _: PlanSidecar) -> LoadedPlan | None:
        loaded = library.load(plan, allow_host_code=options.version_compatible)
        if loaded is None:
            logger.warning("%s: TensorRT does not take the plan: %s", graph.name, library.faults())
        return loaded

    cached = PlanCache(directory, max_bytes=options.cache_mb << 20).get_or_build(key, build, load)
    if not cached.built:
        logger.info("%s: the plan %s of the cache is used", graph.name, key[:16])
    return cached.loaded, cached.sidecar


def _check_precision(request: EngineRequest, precision: str) -> None:
    if request.precision not in ("auto", precision):
        raise device_unavailable(
            f"precision {request.precision}",
            actual=precision,
            reason=f"this graph is computed in {precision}",
            cure=f"set precision to {precision} or auto, or serve a graph made as {request.precision}",
        )


def _check_tensors(name: str, plan: LoadedPlan) -> None:
    for tensor in plan.tensors:
        if tensor.on_host:
            said = f"{name}: tensor {tensor.name!r} lies in the host's memory, which is not supported"
            raise ServingError(Reason.MODEL_INVALID, said)
