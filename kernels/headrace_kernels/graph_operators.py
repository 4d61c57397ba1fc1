"""Operators for graphs of ONNX Runtime, in a library that a session is told to load: `docs/kernels.md` names them.

    library() ─▶ SessionOptions.register_custom_ops_library(path)

They need VNNI or AMX, as the variant in force has them. Elsewhere there is no library, and a graph that names its
operators as functions runs with the functions' bodies.
"""

from __future__ import annotations

from pathlib import Path

from headrace_kernels import _dispatch
from headrace_kernels._native import graph_operators

__all__ = ["DOMAIN", "library", "variants"]

DOMAIN = "headrace"


def variants() -> tuple[str, ...]:
    """Names of the variants that this machine can run, widest first; there may be none."""
    return graph_operators.runnable()


def library() -> Path | None:
    """The file to register in a session, which then runs the variant that `isa()` names; None where it has none."""
    isa = _dispatch.isa()
    if isa not in variants():
        return None
    graph_operators.select(isa)
    return Path(graph_operators.__file__)
