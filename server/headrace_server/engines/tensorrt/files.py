"""Plans made before serving: a graph compiled to a file with its sidecar, asked about, or looked into."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace_server.config import ShapeProfile, TensorRtOptions
from headrace_server.engines.devices import device_unavailable
from headrace_server.engines.machine.cuda_devices import CudaDevice
from headrace_server.engines.tensorrt.build import target_names
from headrace_server.engines.tensorrt.cache import write_whole
from headrace_server.engines.tensorrt.library import import_library, library_version, require_device
from headrace_server.engines.tensorrt.log import ErrorLog
from headrace_server.engines.tensorrt.native import NativeLibrary
from headrace_server.engines.tensorrt.profiles import profiles_for
from headrace_server.engines.tensorrt.seam import BuildOrder
from headrace_server.engines.tensorrt.sidecars import make_sidecar, source_digest
from headrace_server.engines.tensorrt.support import Support, check_support
from headrace_server.errors import Reason, ServingError
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, Task
from headrace_server.models.onnx_header import OnnxHeader, read_onnx_header
from headrace_server.models.tensorrt_plan import SIDECAR_SUFFIX, PlanSidecar, parse_sidecar

__all__ = ["OpenedGraph", "build_file", "open_graph", "read_plan", "validate_file"]

_RTX_CUDA_MAJOR = 13  # of the wheels of tensorrt_rtx that this was tested with; nothing on a CPU-only machine says it


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedGraph:
    """A graph to be compiled, and the shapes it is to be compiled for."""

    model: Model
    graph: Path
    header: OnnxHeader
    options: TensorRtOptions


def open_graph(path: Path, *, profiles: Sequence[ShapeProfile] = (), **changes: Any) -> OpenedGraph:
    """The graph of an .onnx file or of a version's folder, whose manifest is applied; `changes` stand above it.

    raises  ServingError MODEL_INVALID for what is neither
    """
    if path.is_dir():
        model = load_model(path, name=path.name, version="1")
    elif path.suffix == ".onnx":
        header = read_onnx_header(path)
        inputs = tuple(value.spec for value in header.inputs if value.spec is not None)
        outputs = tuple(value.spec for value in header.outputs if value.spec is not None)
        model = Model(
            name=path.stem, version="1", tasks=frozenset({Task.INFER}), folder=path.parent, graph=path, format="onnx",
            inputs=inputs, outputs=outputs, pipelines={},
        )  # fmt: skip
    else:
        raise ServingError(Reason.MODEL_INVALID, f"{path.name}: neither an .onnx file nor a version's folder")
    if model.graph.suffix != ".onnx":
        raise ServingError(Reason.MODEL_INVALID, f"{model.graph.name}: TensorRT compiles .onnx files alone")
    options = replace(model.engine.tensorrt, **changes)
    if profiles:
        options = replace(options, profiles=tuple(profiles))
    return OpenedGraph(model=model, graph=model.graph, header=read_onnx_header(model.graph), options=options)


def build_file(
    opened: OpenedGraph,
    target: Path,
    *,
    rtx: bool,
    compute_capabilities: tuple[str, ...] = (),
    index: int = 0,
    timing_cache: Path | None = None,
) -> tuple[PlanSidecar, float]:
    """Compiles the graph, writes plan and sidecar; the sidecar, and the seconds it took.

    compute_capabilities  with `rtx`: of GPUs that need not be here; () compiles for the one that is
    raises  ServingError DEVICE_UNAVAILABLE without library, or without a GPU where one is needed; MODEL_INVALID
    """
    requested = f"tensorrt:{index}"
    device: CudaDevice | None = None
    cuda_major = _RTX_CUDA_MAJOR
    if not (rtx and compute_capabilities):
        device, machine = require_device(requested, index)
        cuda_major = int(machine.driver_cuda.partition(".")[0] or 0)
    name, module = import_library("tensorrt_rtx" if rtx else opened.options.library, requested)
    targets = target_names(module)
    wanted = compute_capabilities or ((device.compute_capability,) if device and targets else ())
    for capability in wanted:
        if capability not in targets:
            raise device_unavailable(
                f"compute capability {capability}",
                actual=", ".join(targets),
                reason=f"{name} {library_version(module)} compiles for {', '.join(targets)}",
                cure="choose one of these, or compile with tensorrt 11 on the GPU itself",
            )
    inputs = [value.spec for value in opened.header.inputs if value.spec is not None]
    order = BuildOrder(
        graph=opened.graph,
        header=opened.header,
        profiles=profiles_for(opened.model, inputs, opened.options.profiles),
        workspace_mb=opened.options.workspace_mb,
        tf32=opened.options.tf32,
        version_compatible=opened.options.version_compatible,
        compute_capabilities=compute_capabilities,
        timing_cache=timing_cache if name == "tensorrt" else None,
    )
    library = NativeLibrary(name, module, cuda_major=cuda_major)
    started = time.perf_counter()
    built = library.build(order)
    seconds = time.perf_counter() - started
    sidecar = make_sidecar(
        order, built, library=name, version=library.version, cuda_major=cuda_major, device=device,
        source_sha256=source_digest(opened.graph, opened.header),
    )  # fmt: skip
    target.parent.mkdir(parents=True, exist_ok=True)
    # The sidecar last: a plan whose sidecar is not its own is refused.
    write_whole(target, built.plan)
    write_whole(target.with_name(target.name + SIDECAR_SUFFIX), sidecar.encode())
    return sidecar, seconds


def validate_file(opened: OpenedGraph, *, rtx: bool) -> tuple[Support, str]:
    """What the parser says of every node, and which library's it was.

    raises  ServingError DEVICE_UNAVAILABLE without library; without a GPU too, but with `rtx`
    """
    if not rtx:
        require_device("tensorrt", 0)
    name, module = import_library("tensorrt_rtx" if rtx else opened.options.library, "tensorrt")
    log = ErrorLog(module)
    support = check_support(module, opened.graph, opened.header, log.logger)
    return support, f"{name} {library_version(module)}"


def read_plan(path: Path) -> tuple[PlanSidecar, bool]:
    """The sidecar of a plan, and whether the plan beside it is the one it describes (True where there is none)."""
    is_sidecar = path.name.endswith(SIDECAR_SUFFIX)
    plan = path.with_name(path.name.removesuffix(SIDECAR_SUFFIX)) if is_sidecar else path
    sidecar_path = plan.with_name(plan.name + SIDECAR_SUFFIX)
    if not sidecar_path.is_file():
        said = f"{plan.name}: no sidecar {sidecar_path.name} beside it; `headrace tensorrt build` writes it"
        raise ServingError(Reason.MODEL_INVALID, said)
    sidecar = parse_sidecar(sidecar_path.read_bytes(), sidecar_path.name)
    if not plan.is_file():
        return sidecar, is_sidecar
    with plan.open("rb") as file:
        return sidecar, hashlib.file_digest(file, "sha256").hexdigest() == sidecar.sha256
