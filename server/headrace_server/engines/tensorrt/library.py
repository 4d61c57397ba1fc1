"""The gate, and the library behind it: a GPU that the driver shows, then TensorRT 11 or TensorRT for RTX.

Some of TensorRT's runtimes end the process where there is no driver, so nothing of theirs is imported before
`find_cuda` has shown a device. The one exception compiles with tensorrt_rtx for a GPU that is elsewhere.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from typing import Any, Literal

from headrace_server.engines.devices import device_unavailable
from headrace_server.engines.machine.cuda_devices import CudaDevice, CudaMachine, find_cuda
from headrace_server.errors import ServingError

__all__ = ["LibraryName", "import_library", "library_version", "require_device"]

LibraryName = Literal["tensorrt", "tensorrt_rtx"]

OLDEST_MAJOR = 11  # of tensorrt: strongly typed networks alone, as this engine builds them

_CURES = {
    "tensorrt": "install TensorRT 11 with its libraries, as NVIDIA publishes them for this CUDA",
    "tensorrt_rtx": "pip install 'headrace[tensorrt-rtx]'",
}


def require_device(requested: str, index: int) -> tuple[CudaDevice, CudaMachine]:
    """The GPU of that number. Imports nothing of CUDA or TensorRT.

    raises  ServingError DEVICE_UNAVAILABLE
    """
    machine = find_cuda()
    if machine.fault or not machine.devices:
        raise device_unavailable(
            requested,
            actual="cpu",
            reason=machine.fault or "the NVIDIA driver shows no device to this process",
            cure="install the NVIDIA driver on a machine with a GPU, or set device to cpu or auto",
        )
    if index >= len(machine.devices):
        last = len(machine.devices) - 1
        raise device_unavailable(
            requested,
            actual=f"tensorrt:0 to tensorrt:{last}" if last else "tensorrt:0",
            reason=f"this machine shows {len(machine.devices)} GPUs, numbered from 0",
            cure=f"set device to tensorrt:{last}" if last else "set device to tensorrt:0",
        )
    return machine.devices[index], machine


def import_library(wanted: Literal["auto", "tensorrt", "tensorrt_rtx"], requested: str) -> tuple[LibraryName, Any]:
    """(name, module) of the library. "auto": TensorRT where it is whole, else TensorRT for RTX.

    raises  ServingError DEVICE_UNAVAILABLE: not installed, without its libraries, or older than 11
    """
    names: tuple[LibraryName, ...] = ("tensorrt", "tensorrt_rtx") if wanted == "auto" else (wanted,)
    present = [name for name in names if importlib.util.find_spec(name) is not None]
    if not present:
        raise device_unavailable(
            requested,
            actual="cpu",
            reason=f"{' and '.join(names)} {'are' if len(names) > 1 else 'is'} not installed",
            cure=" or ".join(_CURES[name] for name in names),
        )
    fault: ServingError | None = None
    for name in present:
        try:
            return name, _import(name, requested)
        except ServingError as error:
            fault = fault or error
    assert fault is not None
    raise fault


def library_version(module: Any) -> str:
    """ "11.4.0.106"."""
    return str(getattr(module, "__version__", ""))


def _import(name: LibraryName, requested: str) -> Any:
    # Asked of the package's metadata, so that an older library is refused without being loaded.
    said = _distribution_version(name)
    _check_version(name, said, requested)
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:
        raise device_unavailable(
            requested,
            actual="cpu",
            reason=f"{name} {said} is installed without its libraries, or they do not load".replace("  ", " "),
            cure=_CURES[name],
            detail=repr(error),
        ) from error
    if not hasattr(module, "Runtime"):
        raise device_unavailable(
            requested, actual="cpu", reason=f"{name} is installed as an empty package", cure=_CURES[name]
        )
    _check_version(name, library_version(module), requested)
    return module


def _check_version(name: LibraryName, version: str, requested: str) -> None:
    major = version.partition(".")[0]
    if name == "tensorrt" and major.isdecimal() and int(major) < OLDEST_MAJOR:
        raise device_unavailable(
            requested,
            actual=f"tensorrt {version}",
            reason=f"tensorrt {version} is installed, {OLDEST_MAJOR} or newer is needed",
            cure=_CURES[name],
        )


def _distribution_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""
