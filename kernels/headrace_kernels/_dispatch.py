"""Which variant of the kernels runs: the widest that this machine can, or the one that was asked for.

        import ──▶ HEADRACE_KERNELS_ISA set? ──yes──▶ that one, or ImportError
                          │ no
                          ▼
                   CPUID + XGETBV: the widest ──▶ one table of functions for the whole process

`amx` and `avx512_vnni` add instructions on int8, which scans alone use: their other families are those of `avx512`.
This is the one environment variable that a kernel reads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

try:
    from headrace_kernels._native import dispatch
except ModuleNotFoundError as missing:
    raise ImportError("headrace_kernels is not compiled: run `make kernels`, or install the wheel") from missing

__all__ = ["ENVIRONMENT", "choose", "force", "isa", "variants"]

ENVIRONMENT = "HEADRACE_KERNELS_ISA"


def isa() -> str:
    """Name of the variant in force: "amx", "avx512_vnni", "avx512", "avx2" or "portable"."""
    return dispatch.current()


def variants() -> tuple[str, ...]:
    """Names of the variants that this machine can run, widest first; "portable" is always among them."""
    return dispatch.runnable()


def choose() -> None:
    """Puts the variant named by the environment in force, else the widest; ImportError if it cannot run here."""
    wanted = os.environ.get(ENVIRONMENT, "")
    if not wanted:
        dispatch.select(variants()[0])
        return
    if wanted not in dispatch.compiled():
        raise ImportError(f"{ENVIRONMENT} is {wanted!r}; this build has {', '.join(dispatch.compiled())}")
    if wanted not in variants():
        raise ImportError(f"{ENVIRONMENT} is {wanted!r}; this machine runs {', '.join(variants())}")
    dispatch.select(wanted)


@contextmanager
def force(name: str) -> Iterator[str]:
    """`name` in force within the block, for the whole process: made for tests, not for threads at work."""
    before = isa()
    dispatch.select(name)
    try:
        yield name
    finally:
        dispatch.select(before)


choose()
