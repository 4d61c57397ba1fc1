"""The seam to the scoring kernels, and the exact scan in NumPy that stands behind it.

A scanner packs the vectors of a segment once, and answers top-k over them; rows that tie come in the order of their
index. Scores of one vector are the same whatever segment it stands in and whatever is asked beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from headrace_server.items.catalog import Metric

__all__ = ["ExactScanner", "Packed", "Ranking", "Scanner", "Vectors", "exact_scores"]

Vectors = NDArray[np.float32]
Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]
Ranking = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
"""rows i64[q, k], scores f32[q, k], counts i64[q]: best first; only [:counts] is valid."""

_NO_ROWS = np.empty(0, dtype=np.int64)
_CHUNK_CELLS = 1 << 22
_SPARSE = 0.1  # of the rows; fewer are gathered rather than masked


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


class ExactScanner:
    """Scores in f64, rounded to f32 at the end; f32 only sorts out which rows may be among the best."""

    def pack(self, vectors: Vectors, metric: Metric) -> Packed:
        return _ExactPacked(vectors, metric)


class _ExactPacked:
    def __init__(self, vectors: Vectors, metric: Metric) -> None:
        self._vectors = vectors
        self._metric = metric
        self._lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))

    @property
    def size_bytes(self) -> int:
        return int(self._lengths.nbytes)

    @property
    def vectors(self) -> Vectors | None:
        return self._vectors

    def topk(
        self,
        queries: Vectors,
        k: int,
        *,
        allowed: Mask | None = None,
        exclude: Sequence[Rows] | None = None,
        min_score: float | None = None,
    ) -> Ranking:
        num_rows = len(self._vectors)
        rows = None if allowed is None else np.flatnonzero(allowed)
        num_allowed = num_rows if rows is None else len(rows)
        # As many more as may have to be left out again.
        wanted = min(k + max((len(each) for each in exclude or ()), default=0), num_allowed)
        width = min(k, num_allowed)
        found: list[list[Rows]] = [[] for _ in queries]
        if wanted:
            self._scan(queries, wanted, rows, allowed, found)
        answer_rows = np.zeros((len(queries), width), dtype=np.int64)
        answer_scores = np.zeros((len(queries), width), dtype=np.float32)
        counts = np.zeros(len(queries), dtype=np.int64)
        for index, query in enumerate(queries):
            candidates = np.concatenate([_NO_ROWS, *found[index]])
            if exclude is not None:
                candidates = candidates[~np.isin(candidates, exclude[index])]
            scores = exact_scores(query, self._vectors[candidates], self._metric)
            best = np.lexsort((candidates, -scores))[:width]
            if min_score is not None:
                best = best[scores[best] >= np.float32(min_score)]
            counts[index] = len(best)
            answer_rows[index, : len(best)], answer_scores[index, : len(best)] = candidates[best], scores[best]
        return answer_rows, answer_scores, counts

    def _scan(self, queries: Vectors, k: int, rows: Rows | None, allowed: Mask | None, found: list[list[Rows]]) -> None:
        num_rows = len(self._vectors)
        step = max(1, _CHUNK_CELLS // max(1, len(queries)))
        if rows is not None and len(rows) < _SPARSE * num_rows:
            for start in range(0, len(rows), step):
                self._candidates(queries, k, rows[start : start + step], None, found)
            return
        for start in range(0, num_rows, step):
            chunk = np.arange(start, min(start + step, num_rows))
            self._candidates(queries, k, chunk, None if allowed is None else allowed[chunk], found)

    def _candidates(
        self,
        queries: Vectors,
        k: int,
        rows: NDArray[np.int64],
        allowed: Mask | None,
        found: list[list[NDArray[np.int64]]],
    ) -> None:
        """Adds, for each query, the rows that may be among its k best: all but those surely below the k-th."""
        contiguous = rows[-1] - rows[0] + 1 == len(rows)
        vectors = self._vectors[rows[0] : rows[-1] + 1] if contiguous else self._vectors[rows]
        lengths = self._lengths[rows]
        with np.errstate(over="ignore", invalid="ignore"):
            rough = (queries @ vectors.T).astype(np.float64)
        if not np.isfinite(rough).all():
            rough = queries.astype(np.float64) @ vectors.T.astype(np.float64)
        query_lengths = np.sqrt(np.einsum("ij,ij->i", queries, queries, dtype=np.float64))
        dimension = vectors.shape[1]
        # |computed - true| <= gamma |q| |x| for f32 sums in any order; subnormal products lose a little more.
        error = np.outer(query_lengths, lengths) * ((dimension + 8) * 2.0**-23) + dimension * 2.0**-148
        if self._metric == "cosine":
            scale = np.where(lengths > 0, lengths, np.inf)
            rough /= scale
            error /= scale
        if allowed is not None:
            rough[:, ~allowed] = -np.inf
        low, high = rough - error, rough + error
        if allowed is not None:
            num_allowed = int(np.count_nonzero(allowed))
            k = min(k, num_allowed)
        if k == 0:
            return
        width = low.shape[1]
        least = np.partition(low, width - k, axis=1)[:, width - k] if k < width else np.full(len(low), -np.inf)
        for index in range(len(queries)):
            passing = high[index] >= least[index]
            if allowed is not None:
                passing &= allowed
            found[index].append(rows[passing])


def exact_scores(query: Vectors, vectors: Vectors, metric: Metric) -> Vectors:
    """f32[n]: scores of f32[n, d] under the metric, summed in f64 row by row; 0 where cosine meets a zero vector."""
    products = query.astype(np.float64) * vectors
    dots = products.sum(axis=1)  # each row by itself: the same sum wherever the row stands
    if metric == "cosine":
        wide = query.astype(np.float64)
        squares = vectors.astype(np.float64)
        squares *= squares
        lengths = np.sqrt(squares.sum(axis=1)) * np.sqrt((wide * wide).sum())
        dots = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0).clip(-1, 1)
    with np.errstate(over="ignore"):  # a sum beyond f32 is infinite there
        answer: Vectors = dots.astype(np.float32)
    return answer
