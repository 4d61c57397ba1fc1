"""A FAKE of NVIDIA's driver, compiled for a test: as many devices as wanted, and host memory by malloc, counted.

It shows that our calls pass what C expects and that what is taken is given back; it says nothing about a GPU.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

__all__ = ["build_fake_driver"]

_SOURCE = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static int current, live, contexts, pinned_code;
int cuInit(unsigned flags) { return INIT_CODE; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { *count = NUM_DEVICES; return 0; }
int cuDeviceGet(int *device, int index) { if (index >= NUM_DEVICES) return 101; *device = 70 + index; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Fake H100", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)80 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = attribute == 75 ? 9 : 0; return 0; }
/* a pointer that does not fit 32 bits */
#define CONTEXT ((void *)(uintptr_t)0x7f00000000ab)
int cuDevicePrimaryCtxRetain(void **context, int device) { contexts++; *context = CONTEXT; return device != 70; }
int cuDevicePrimaryCtxRelease_v2(int device) { contexts--; return 0; }
int cuCtxPushCurrent_v2(void *context) { if (context != CONTEXT) return 201; current++; return 0; }
int cuCtxPopCurrent_v2(void **context) { current--; return 0; }
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) {
    if (current != 1 || flags != 1 || bytes > (1u << 20)) return 2;
    *address = malloc(bytes); live++; return 0;
}
int cuMemFreeHost(void *address) { if (current != 1) return 201; free(address); live--; return 0; }
int fake_live(void) { return live; }
int fake_contexts(void) { return contexts; }
int fake_current(void) { return current; }
"""


def build_fake_driver(folder: Path, *, num_devices: int = 1, init_code: int = 0) -> Path:
    """The library's file."""
    source, library = folder / "fake_driver.c", folder / "libfakecuda.so.1"
    source.write_text(_SOURCE)
    flags = ("-shared", "-fPIC", f"-DNUM_DEVICES={num_devices}", f"-DINIT_CODE={init_code}")
    subprocess.run(["cc", *flags, "-o", library, source], check=True, timeout=60)
    return library
