"""GPUs as the driver says them: the real one where there is one, else its absence; and a FAKE driver."""

from __future__ import annotations

import ctypes
import gc
from pathlib import Path

import numpy as np
import pytest
from fake_driver import build_fake_driver

from headrace_server.engines.machine import cuda_devices
from headrace_server.engines.machine.cuda_devices import find_cuda
from headrace_server.engines.machine.pinned_memory import PinnedMemory
from headrace_server.errors import Reason, ServingError


def driver_is_installed() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@pytest.mark.skipif(driver_is_installed(), reason="this machine has NVIDIA's driver")
def test_a_machine_without_a_driver_says_so() -> None:
    machine = find_cuda()
    assert machine.devices == ()
    assert machine.fault == "no NVIDIA driver is installed (libcuda.so.1 is not found)"


def test_devices_are_read_from_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_devices, "_DRIVER", str(build_fake_driver(tmp_path, num_devices=2)))
    machine = find_cuda()
    assert machine.fault == ""
    assert machine.driver_cuda == "13.2"
    assert [(device.index, device.name, device.compute_capability) for device in machine.devices] == [
        (0, "Fake H100", "9.0"),
        (1, "Fake H100", "9.0"),
    ]
    assert machine.devices[0].memory_bytes == 80 << 30


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"num_devices": 0}, "the NVIDIA driver shows no device to this process"),
        ({"init_code": 999}, "the NVIDIA driver does not start (cuInit gives 999)"),
    ],
)
def test_a_driver_without_devices_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, int], fault: str
) -> None:
    monkeypatch.setattr(cuda_devices, "_DRIVER", str(build_fake_driver(tmp_path, **options)))
    machine = find_cuda()
    assert (machine.devices, machine.fault) == ((), fault)


def test_pinned_memory_is_given_back_with_its_last_reference(tmp_path: Path) -> None:
    driver = ctypes.CDLL(str(build_fake_driver(tmp_path)))
    memory = PinnedMemory(0, driver)
    first, second = memory.take(4096), memory.take(10)
    first[:] = np.arange(4096) % 251
    tail = first[4000:]
    assert (first.nbytes, second.nbytes, driver.fake_live(), driver.fake_contexts()) == (4096, 10, 2, 1)
    del first, second
    gc.collect()
    assert driver.fake_live() == 1  # the tail still lies in the first
    assert tail[0] == 4000 % 251
    del memory
    gc.collect()
    assert driver.fake_contexts() == 1  # the context outlives the memory taken from it
    del tail
    gc.collect()
    assert (driver.fake_live(), driver.fake_contexts(), driver.fake_current()) == (0, 0, 0)


def test_pinned_memory_that_the_driver_refuses_is_an_error(tmp_path: Path) -> None:
    driver = ctypes.CDLL(str(build_fake_driver(tmp_path)))
    memory = PinnedMemory(0, driver)
    with pytest.raises(ServingError, match=r"cuMemHostAlloc gives 2") as caught:
        memory.take(2 << 20)
    assert caught.value.reason is Reason.DEVICE_UNAVAILABLE
    assert caught.value.facts["requested"] == "cuda:0"
    assert driver.fake_current() == 0
    with pytest.raises(ServingError, match="cuDeviceGet gives 101"):
        PinnedMemory(3, driver)
