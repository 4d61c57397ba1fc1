"""The seam to the scoring kernels.

A scanner packs the vectors of a segment once, and answers top-k over them; rows that tie come in the order of their
index. Scores of one vector are the same whatever segment it stands in and whatever is asked beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace_server.items.catalog import Metric

__all__ = ["Mask", "Packed", "Ranking", "Rows", "Scanner", "Vectors"]

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Ranking = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
"""rows i64[q, k], scores f32[q, k], counts i64[q]: best first; only [:counts] is valid."""


class Packed(Protocol):
    """Vectors made ready to be scanned. Immutable, used by many threads at once."""

    @property
    def size_bytes(self) -> int:
        """Memory it takes beside the vectors it was made of."""

    @property
    def vectors(self) -> Vectors | None:
        """The very rows that were packed, where it keeps them: then nobody else has to."""

    def topk(
        self,
        queries: Vectors,
        k: int,
        *,
        allowed: Mask | None = None,
        exclude: Sequence[Rows] | None = None,
        min_score: float | None = None,
    ) -> Ranking:
        """The k best rows for each of queries f32[q, d]: of those `allowed` bool[n], less `exclude` of each query.

        raises  OverflowError where an inner product may pass f32
        """


class Scanner(Protocol):
    """Makes vectors ready to be scanned."""

    def pack(self, vectors: Vectors, metric: Metric) -> Packed:
        """f32[n, d], C-contiguous, finite; kept, not copied."""
