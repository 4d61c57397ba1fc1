"""What must be compiled for `headrace_kernels`, as setuptools extensions.

The root `setup.py` calls `extensions()` from the repository's root. Cython writes its C under `build/`, never
beside the sources. No flag names an instruction set: each `simd/<family>_<isa>.c` selects its own by a pragma, so
that one build runs on every machine of its architecture and picks its variant at import.

    HEADRACE_KERNELS_DEBUG=1      bounds checks in Cython, precondition checks in C, no optimisation beyond -O1
    HEADRACE_KERNELS_SANITIZE=1   AddressSanitizer and UndefinedBehaviorSanitizer; any finding aborts

Both modes write to a `build/` folder of their own; give setup.py a `--build-base` of its own as well, or `--force`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension

__all__ = ["extensions"]

_PACKAGE = "headrace_kernels._native"
_MODULES = (
    *("activation", "dispatch", "graph_operators", "pooling", "quantization", "sampling", "scan", "selection"),
    "similarity",
)


def extensions() -> list[Extension]:
    """Every extension of `headrace_kernels`, cythonized, with paths relative to the repository's root."""
    from Cython.Build import cythonize

    root = Path(__file__).resolve().parent
    native = Path(os.path.relpath(root / "headrace_kernels" / "_native"))
    debug = os.environ.get("HEADRACE_KERNELS_DEBUG") == "1"
    sanitize = os.environ.get("HEADRACE_KERNELS_SANITIZE") == "1"
    kernels = {
        "dispatch": sorted((native / "simd").glob("*.c")),
        "graph_operators": [*sorted((native / "graph").glob("*.c")), native / "simd" / "scan_amx_permission.c"],
    }
    headers = sorted(native.glob("*/*.h"))

    def extension(module: str) -> Extension:
        # The kernels themselves live in `dispatch`, and those that graphs name in `graph_operators`; the other modules
        # reach them through the table of `dispatch`. Those are thin: what there is to compile in them is Cython's
        # buffer code, and -O1 halves the time that takes.
        sources = [native / f"{module}.pyx", *kernels.get(module, ())]
        compile_args, link_args = _flags(optimize=module in kernels and not debug, sanitize=sanitize)
        return Extension(
            f"{_PACKAGE}.{module}",
            sources=[path.as_posix() for path in sources],
            depends=[path.as_posix() for path in (*headers, native / "dispatch.pxd")],
            include_dirs=[(native / folder).as_posix() for folder in ("simd", "graph")],
            define_macros=[("HR_DEBUG", "1")] if debug else [],
            extra_compile_args=compile_args,
            extra_link_args=link_args,
        )

    return cythonize(
        [extension(module) for module in _MODULES],
        # Cython compares times, not options: each mode has its own folder so that none reuses another's C.
        build_dir=os.path.join("build", "cython-debug" if debug else "cython"),
        include_path=[os.path.relpath(root)],
        compiler_directives={
            "language_level": 3,
            "boundscheck": debug,
            "wraparound": False,
            "initializedcheck": debug,
            "cdivision": True,
            "embedsignature": True,
            "show_performance_hints": False,  # a debug build checks bounds because it is told to
        },
    )


def _flags(*, optimize: bool, sanitize: bool) -> tuple[list[str], list[str]]:
    if sys.platform == "win32":
        raise RuntimeError("headrace_kernels needs GCC or Clang: its portable variant uses their vector extensions")
    # No contraction: a*b+c is fused only where a kernel asks for it, so a variant computes the same bits under
    # any compiler.
    flags = ["-ffp-contract=off", "-fvisibility=hidden", "-Wall"]
    if sanitize:
        guard = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
        return [*flags, "-O1", "-g", "-fno-omit-frame-pointer", *guard], guard
    return [*flags, "-O3" if optimize else "-O1"], []
