"""Compiled kernels behind the façade: they trust their arguments, so nothing outside this package calls them."""

from __future__ import annotations

__all__: list[str] = []
