"""The NVIDIA GPUs of this machine, asked of the driver itself: the gate before any CUDA or TensorRT call.

Runtimes of TensorRT end the process where there is no driver, so that nothing of theirs is called before this said yes.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

__all__ = ["CudaDevice", "CudaMachine", "find_cuda"]

_DRIVER = "libcuda.so.1"
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaDevice:
    """One GPU. `compute_capability` is "9.0" of an H100."""

    index: int
    name: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CudaMachine:
    """What the driver says. `fault` is why there are no devices, "" where there are; `driver_cuda` is "13.0" or ""."""

    devices: tuple[CudaDevice, ...] = ()
    driver_cuda: str = ""
    fault: str = ""


def find_cuda() -> CudaMachine:
    """The GPUs that the driver gives this process. Creates no context and takes no memory on them."""
    try:
        driver = ctypes.CDLL(_DRIVER)
    except OSError:
        return CudaMachine(fault="no NVIDIA driver is installed (libcuda.so.1 is not found)")
    code = driver.cuInit(0)
    if code:
        return CudaMachine(fault=f"the NVIDIA driver does not start (cuInit gives {code})")
    version, count = ctypes.c_int(), ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    driver_cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return CudaMachine(driver_cuda=driver_cuda, fault="the NVIDIA driver shows no device to this process")
    return CudaMachine(devices=tuple(_read(driver, index) for index in range(count.value)), driver_cuda=driver_cuda)


def _read(driver: ctypes.CDLL, index: int) -> CudaDevice:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    memory, name = ctypes.c_size_t(), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceGetName(name, len(name), handle)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), handle)
    driver.cuDeviceGetAttribute(ctypes.byref(major), _MAJOR, handle)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), _MINOR, handle)
    return CudaDevice(
        index=index,
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        memory_bytes=memory.value,
    )
