"""Page-locked memory of the host, which a GPU reads and writes by itself. It is the driver's, as in `cuda_devices`.

Not run yet where a GPU is: `make test-gpu` does.
"""

from __future__ import annotations

import ctypes
import weakref

import numpy as np
import numpy.typing as npt

from headrace_server.engines.devices import device_unavailable

__all__ = ["PinnedMemory"]

_PORTABLE = 1  # CU_MEMHOSTALLOC_PORTABLE: pinned for every context, not only for the one that is current


class PinnedMemory:
    """Pinned memory, for the GPU of this index. Raises ServingError DEVICE_UNAVAILABLE where the driver gives none.

    driver  libcuda.so.1, where `find_cuda` saw the device before
    """

    def __init__(self, index: int, driver: ctypes.CDLL | None = None) -> None:
        self._device = f"cuda:{index}"
        self._driver = driver or ctypes.CDLL("libcuda.so.1")
        # Handles are pointers: without a declared type they would be cut to 32 bits.
        self._context = ctypes.c_void_p()
        device = ctypes.c_int()
        self._ask("cuInit", ctypes.c_uint(0))
        self._ask("cuDeviceGet", ctypes.byref(device), ctypes.c_int(index))
        # The runtime's sessions use the same primary context; it stays until the last of both lets it go.
        self._ask("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        weakref.finalize(self, self._driver.cuDevicePrimaryCtxRelease_v2, device)

    def take(self, num_bytes: int) -> npt.NDArray[np.uint8]:
        """u8[num_bytes], page-locked until its last reference goes."""
        address, previous = ctypes.c_void_p(), ctypes.c_void_p()
        self._ask("cuCtxPushCurrent_v2", self._context)
        try:
            self._ask("cuMemHostAlloc", ctypes.byref(address), ctypes.c_size_t(num_bytes), ctypes.c_uint(_PORTABLE))
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(previous))
        block = (ctypes.c_uint8 * num_bytes).from_address(address.value or 0)
        # The context must outlive what was taken from it, so that the finalizer holds this object.
        weakref.finalize(block, self._give_back, ctypes.c_void_p(address.value))
        return np.frombuffer(memoryview(block), np.uint8)

    def _give_back(self, address: ctypes.c_void_p) -> None:
        previous = ctypes.c_void_p()
        self._driver.cuCtxPushCurrent_v2(self._context)
        self._driver.cuMemFreeHost(address)
        self._driver.cuCtxPopCurrent_v2(ctypes.byref(previous))

    def _ask(self, function: str, *arguments: object) -> None:
        code = getattr(self._driver, function)(*arguments)
        if code:
            raise device_unavailable(
                self._device,
                actual="none",
                reason=f"the NVIDIA driver refuses pinned memory ({function} gives {code})",
                cure="see that the host's memory and its locked-memory limit suffice, or set device to cpu",
            )
