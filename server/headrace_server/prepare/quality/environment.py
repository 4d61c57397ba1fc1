"""On what a report was made: the machine, and the versions of what worked on it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

__all__ = ["this_machine", "tool_versions"]

_TOOLS = ("headrace", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino", "onnx", "numpy", "nncf", "tensorrt")


def this_machine() -> str:
    """Processor, cores that may be used, system: "Intel(R) Xeon(R) …, 2 cores, Linux x86_64"."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{_processor()}, {cores} cores, {platform.system()} {platform.machine()}"


def tool_versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Versions of the packages that are installed, of those that take part."""
    found = {"python": platform.python_version()}
    for name in (*_TOOLS, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown processor")
