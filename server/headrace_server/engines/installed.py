"""Distributions that runtimes come in, asked for by name; nothing of them is loaded."""

from __future__ import annotations

import functools
import importlib.metadata

__all__ = ["installed_version"]


@functools.cache
def installed_version(distribution: str) -> str:
    """The version that is installed; "" where none is."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""
