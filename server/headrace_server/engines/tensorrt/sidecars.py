"""Sidecars made of what was built, and held against what is here."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from headrace_server.engines.devices import device_unavailable
from headrace_server.engines.machine.cuda_devices import CudaDevice
from headrace_server.engines.tensorrt.library import LibraryName
from headrace_server.engines.tensorrt.seam import BuildOrder, BuiltPlan
from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import GraphValue, OnnxHeader
from headrace_server.models.signature import TensorSpec
from headrace_server.models.tensorrt_plan import PlanProfile, PlanSidecar, PlanTensor, leading_names, output_ends

__all__ = ["check_sidecar", "make_sidecar", "said_precision", "source_digest"]

_CURE = "build it again with `headrace tensorrt build` on this machine, or serve the .onnx file"
_MAX_LAYERS, _MAX_LAYER = 2000, 1000


def make_sidecar(
    order: BuildOrder,
    built: BuiltPlan,
    *,
    library: LibraryName,
    version: str,
    cuda_major: int,
    device: CudaDevice | None,
    source_sha256: str,
) -> PlanSidecar:
    """The sidecar of a plan just built. `device` is the one it was built on; None where there was none."""
    leading = leading_names(order.header)
    capabilities = order.compute_capabilities or ((device.compute_capability,) if device else ())
    return PlanSidecar(
        sha256=hashlib.sha256(built.plan).hexdigest(),
        size_bytes=len(built.plan),
        library=library,
        library_version=version,
        cuda_major=cuda_major,
        compute_capabilities=capabilities,
        gpu=device.name if device and not order.compute_capabilities else "",
        precision=said_precision(order.header, tf32=order.tf32),
        tf32=order.tf32,
        version_compatible=order.version_compatible,
        source=order.graph.name,
        source_sha256=source_sha256,
        inputs=_tensors(order.header.inputs, leading),
        outputs=_tensors(order.header.outputs, leading),
        profiles=tuple(PlanProfile(min=dict(p.min), opt=dict(p.opt), max=dict(p.max)) for p in order.profiles),
        metadata=dict(order.header.metadata),
        ends=output_ends(order.header),
        layers=tuple(layer[:_MAX_LAYER] for layer in built.layers[:_MAX_LAYERS]),
    )


def check_sidecar(
    name: str,
    sidecar: PlanSidecar,
    plan: bytes,
    *,
    requested: str,
    library: LibraryName,
    version: str,
    device: CudaDevice,
    version_compatible: bool,
) -> None:
    """Says why a ready-made plan cannot run here, before the library is asked.

    version_compatible  plans that bring code of their own may run
    raises  ServingError MODEL_INVALID for a plan that is not what its sidecar says; DEVICE_UNAVAILABLE for another
            library, version or GPU
    """
    if hashlib.sha256(plan).hexdigest() != sidecar.sha256:
        raise ServingError(
            Reason.MODEL_INVALID,
            f"{name}: not the plan that its sidecar describes (its SHA-256 is another, {len(plan)} bytes of"
            f" {sidecar.size_bytes}); copy both again, or {_CURE}",
        )
    if sidecar.version_compatible and not version_compatible:
        raise ServingError(
            Reason.MODEL_INVALID,
            f"{name}: a version-compatible plan brings code of its own that would run here; set"
            " engine.tensorrt.version_compatible to true where you trust it",
        )
    if sidecar.library != library:
        raise device_unavailable(
            requested,
            actual=f"{library} {version}",
            reason=f"{name} was built by {sidecar.library} {sidecar.library_version}",
            cure=f"install {sidecar.library} {sidecar.library_version}, or {_CURE}",
        )
    if not _runs_on(sidecar, version):
        raise device_unavailable(
            requested,
            actual=f"{library} {version}",
            reason=f"{name} was built by version {sidecar.library_version}, {version} is installed",
            cure=_CURE,
        )
    if device.compute_capability not in sidecar.compute_capabilities:
        raise device_unavailable(
            requested,
            actual=f"{device.name}, compute capability {device.compute_capability}",
            reason=f"{name} was built for compute capability {', '.join(sidecar.compute_capabilities) or 'unknown'}",
            cure=_CURE,
        )


def said_precision(header: OnnxHeader, *, tf32: bool) -> str:
    """As it is reported: of the graph's weights; "tf32" where fp32 products are rounded so."""
    precision = header.precision or "fp32"
    return "tf32" if tf32 and precision == "fp32" else precision


def source_digest(graph: Path, header: OnnxHeader) -> str:
    """SHA-256, in hex, over the graph and its external data."""
    total = hashlib.sha256()
    for location in ("", *sorted(header.external_files)):
        path = graph.parent / PurePosixPath(location) if location else graph
        with path.open("rb") as file:
            total.update(f"{location}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _runs_on(sidecar: PlanSidecar, version: str) -> bool:
    if not sidecar.version_compatible:
        return sidecar.library_version == version
    built, here = _numbers(sidecar.library_version), _numbers(version)
    return built[:1] == here[:1] and built <= here


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdecimal()]


def _tensors(values: Sequence[GraphValue], leading: Mapping[str, str]) -> tuple[PlanTensor, ...]:
    specs: list[TensorSpec] = [value.spec for value in values if value.spec is not None]
    return tuple(
        PlanTensor(name=spec.name, dtype=spec.dtype, shape=spec.shape, leading=leading.get(spec.name, ""))
        for spec in specs
    )
