"""Memory of the host that runs read from and write to, kept from run to run and cut to the shape of each.

On a GPU's way it is pinned (`pinned_memory`): the device copies from and to it by itself, and the copy of a run is no
allocation. On the CPU's it is plain memory, which shows the same code at work.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headrace_server.engines.base import Array

__all__ = ["HostBuffers", "HostMemory", "PageableMemory"]

_SMALLEST = 4096  # bytes


class HostMemory(Protocol):
    """Where bytes of the host come from."""

    def take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """u8[num_bytes] of any content, given back with its last reference."""
        ...


class PageableMemory:
    """Plain memory of the process."""

    def take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        return np.empty(num_bytes, np.uint8)


class HostBuffers:
    """One buffer a tensor, as large as the largest it held. For one run at a time."""

    def __init__(self, memory: HostMemory) -> None:
        self._memory = memory
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes held."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def view(self, name: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
        """An array of this shape in the buffer of `name`; the next view of the same name overwrites it.

        A buffer that is too small is replaced by one of the next power of two: few allocations in a model's life.
        """
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.nbytes < size:
            buffer = self._memory.take(max(_SMALLEST, 1 << (size - 1).bit_length()) if size else _SMALLEST)
            self._buffers[name] = buffer
        return buffer[:size].view(dtype).reshape(shape)
