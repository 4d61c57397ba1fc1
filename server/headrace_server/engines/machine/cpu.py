"""The CPU as engines care for it: its name, what it can multiply, and how many cores this process may use."""

from __future__ import annotations

import functools
import os
import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["CpuMachine", "find_cpu"]

_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuMachine:
    """`flags` as the kernel names them; empty where the system does not say."""

    architecture: str
    model: str
    flags: frozenset[str]
    num_cores: int

    @property
    def has_bf16(self) -> bool:
        """Products in bf16 are instructions of its own (AMX or AVX-512), not made of others, slower than fp32."""
        return bool(self.flags & {"amx_bf16", "avx512_bf16"})


@functools.cache
def find_cpu() -> CpuMachine:
    """The CPU of this machine, as Linux describes it; elsewhere its architecture alone."""
    said: dict[str, str] = {}
    try:
        for line in _INFO.read_text(errors="replace").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                said.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return CpuMachine(
        architecture=platform.machine(),
        model=said.get("model name", platform.processor()),
        flags=frozenset(said.get("flags", said.get("Features", "")).split()),
        num_cores=cores,
    )
