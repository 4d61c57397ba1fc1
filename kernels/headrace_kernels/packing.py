"""Rows packed once for many scans.

    f32 rows     f32[n padded to 64][d padded to 8]                            what exact scores are made of
    int8 blocks  16 rows a block: u8[ceil(d / 4)][16][4], then f32[16] scales   what a scan reads instead: a quarter

A code is round(x / scale) + 128 with scale = max|x| / 127 of its row; the largest distance of a row from its codes
is kept, and bounds what a score from codes may be off. The proof stands in docs/kernels.md.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace_kernels._native import scan as native
from headrace_kernels._native import similarity
from headrace_kernels._operands import as_f32
from headrace_kernels.errors import NotFiniteError, ShapeError

__all__ = ["Metric", "PackedItems", "pack_items"]

Metric = Literal["dot", "cosine"]


class PackedItems:
    """An immutable catalog of rows, laid out for `scan_topk`; any number of threads may scan it at once.

    A process that forks shares the pages with its children.
    """

    __slots__ = ("_native", "_vectors", "metric")

    def __init__(self, items: native.Items, metric: Metric) -> None:
        self._native = items
        self._vectors: NDArray[np.float32] = np.asarray(items)
        self.metric: Metric = metric

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return len(self._vectors)

    @property
    def dimension(self) -> int:
        """Elements of a row."""
        return int(self._vectors.shape[1])

    @property
    def vectors(self) -> NDArray[np.float32]:
        """The rows as they are scored, f32[n, d], read-only, no copy: unit rows where the metric is cosine."""
        return self._vectors

    @property
    def has_codes(self) -> bool:
        """Whether there are int8 blocks."""
        return self._native.has_codes

    @property
    def size_bytes(self) -> int:
        """Memory that the rows and blocks take: about 4 n d, and n (d + 4) more with int8."""
        return sum(self._native.num_bytes)

    def __len__(self) -> int:
        return self.num_rows

    def __repr__(self) -> str:
        codes = ", int8" if self.has_codes else ""
        return f"PackedItems({self.num_rows} x {self.dimension}, {self.metric}{codes}, {self.size_bytes:,} bytes)"

    def __reduce__(self) -> tuple[object, ...]:
        raise TypeError("packed rows are not pickled: pack them anew from their vectors")


def pack_items(vectors: NDArray[np.float32], *, metric: Metric = "dot", int8: bool = True) -> PackedItems:
    """A copy of the rows, laid out for `scan_topk`.

    vectors  f32[n, d], finite, d >= 1; n may be 0
    metric   "dot": inner products; "cosine": rows are made unit vectors, zero rows stay zero and score 0
    int8     also pack codes, which a scan of few queries reads instead: a quarter more memory, up to 4 times as fast;
             left out where d > 32768 or a row is longer than 1e30
    memory   4 n' d' bytes of f32 and n' (4 ceil(d / 4) + 4) of int8, n' and d' padded to 64 and to 8; on large pages
    raises   DtypeError, ShapeError; NotFiniteError for a row with NaN or an infinity; ValueError for another metric;
             MemoryError
    """
    rows = as_f32("vectors", vectors, 2)
    if not rows.shape[1]:
        raise ShapeError(f"vectors has shape {rows.shape}: a row needs at least one element")
    if metric not in ("dot", "cosine"):
        raise ValueError(f"metric is {metric!r}; dot and cosine are known")
    bad = similarity.first_nonfinite(rows) if rows.size else -1
    if bad >= 0:
        raise NotFiniteError(f"vectors[{bad}] holds NaN or an infinity", row=bad)
    return PackedItems(native.Items(rows, metric == "cosine", int8), metric)
