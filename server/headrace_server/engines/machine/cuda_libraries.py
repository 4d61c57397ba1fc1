"""What ONNX Runtime's CUDA provider stands on besides the driver, and what of it is not there."""

from __future__ import annotations

import contextlib
import ctypes
import io
import re
from pathlib import Path
from typing import Any

__all__ = ["CUDNN", "CURE", "library_fault", "provider_fault"]

CUDNN = "libcudnn.so.9"
CURE = "install 'headrace[gpu]', which brings CUDA's libraries and cuDNN, or set device to cpu or auto"

_NOT_FOUND = re.compile(r"(?:.*/)?(lib[^:/]+): cannot open shared object file")
_UNDEFINED = re.compile(r"undefined symbol: (\w+)")


def provider_fault(runtime: Any, provider: str = "cuda") -> str:
    """Why the runtime's own library of a provider cannot be loaded; "" where it can.

    provider  "cuda" or "tensorrt"
    Loads it, with what it stands on, for as long as the process lives: never called where there is no driver, except
    where this process is about to end anyway.
    """
    # It says on standard output which of CUDA's libraries it does not find; that is asked below.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(RuntimeError):
        runtime.preload_dlls()
    folder = Path(runtime.__file__).parent / "capi"
    fault = library_fault(str(folder / "libonnxruntime_providers_shared.so"), everywhere=True)
    fault = fault or library_fault(str(folder / f"libonnxruntime_providers_{provider}.so"))
    # The provider opens cuDNN by itself, once a convolution asks for it.
    return fault or library_fault(CUDNN)


def library_fault(name: str, *, everywhere: bool = False) -> str:
    """Why a shared library cannot be loaded, "" where it can: which of those that it needs is not there, or too old.

    everywhere  what it defines is there for all libraries that are loaded later
    """
    try:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL if everywhere else ctypes.DEFAULT_MODE)
    except OSError as error:
        said = str(error)
        if missing := _NOT_FOUND.match(said):
            return f"{missing[1]} is not found"
        if symbol := _UNDEFINED.search(said):
            return f"the driver or a library is too old (it has no {symbol[1]})"
        return f"{Path(name).name} does not load"
    return ""
