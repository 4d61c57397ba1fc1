"""Memory of one tensor, on the device and pinned on the host beside it, as large as the largest run has needed."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from headrace_server.engines.tensorrt.seam import Cuda

__all__ = ["TensorBuffer"]

_GRAIN = 256  # bytes: what device memory is aligned to; an empty tensor has an address too


class TensorBuffer:
    """`device` and `host` are addresses that stay until a run needs more; `num_moves` says how often they changed."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.device = 0
        self.host = 0
        self.size_bytes = 0
        self.num_moves = 0

    def ensure(self, size_bytes: int) -> None:
        """Room for so many bytes on both sides. What was there is lost when it grows."""
        if self.size_bytes >= max(size_bytes, 1):
            return
        self.free()
        grown = -(-max(size_bytes, 1) // _GRAIN) * _GRAIN
        self.device = self._cuda.allocate(grown)
        try:
            self.host = self._cuda.allocate_pinned(grown)
        except BaseException:
            self.free()
            raise
        self.size_bytes = grown
        self.num_moves += 1

    def view(self, size_bytes: int) -> npt.NDArray[np.uint8]:
        """The first bytes of the host's side."""
        return np.ctypeslib.as_array((ctypes.c_uint8 * size_bytes).from_address(self.host))

    def free(self) -> None:
        """Gives both sides back; nothing on the device may still use them."""
        device, host = self.device, self.host
        self.device = self.host = self.size_bytes = 0
        if device:
            self._cuda.free(device)
        if host:
            self._cuda.free_pinned(host)
