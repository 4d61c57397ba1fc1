"""The best rows of a packed catalog for each query, exactly, at the speed at which memory is read.

    scan_topk ─▶ which rows ── few allowed ──▶ gather, exact scores
                     │ all, or most
                     ▼
                 which way ── one query, int8 ─────▶ codes in two terms ─┐
                     │        several, int8 ───────▶ codes in tiles ─────┤ bounds ─▶ candidates ─▶ exact scores
                     │        several, f32 ────────▶ f32 tiles ──────────┘    └─ too many ─▶ exact scan
                     └─────── one query, f32 ──────▶ exact scores

Every way gives the same answer, bit for bit, on every variant and for any number of threads: a score is the inner
product summed in f64 in one fixed order and rounded to f32, and the other ways only rule rows out by proved bounds.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from headrace_kernels._native import scan as native
from headrace_kernels._native import similarity
from headrace_kernels._operands import as_f32, as_threshold, as_width
from headrace_kernels.errors import DtypeError, NotFiniteError, ShapeError
from headrace_kernels.packing import PackedItems
from headrace_kernels.selection import Ranking

__all__ = ["ScanMode", "ScanReport", "scan_topk"]

ScanMode = Literal["auto", "fp32", "int8"]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]

MAX_THREADS = 256
_GATHER_SHARE = 24
"""An allow-list shorter than n / 24 is gathered: beyond, a scan that skips what is not allowed is faster."""


@dataclass(kw_only=True)
class ScanReport:
    """What a scan did, for those who ask: rows that bounds could not rule out, queries scanned a second time."""

    num_candidates: int = 0
    num_fallbacks: int = 0


def scan_topk(
    items: PackedItems,
    queries: NDArray[np.float32],
    k: int,
    *,
    num_threads: int = 1,
    mode: ScanMode = "auto",
    exclude: Indices | Sequence[Indices | None] | None = None,
    allow: Indices | Mask | None = None,
    min_score: float | None = None,
    report: ScanReport | None = None,
) -> Ranking:
    """Largest scores per query, best first; ties go to the lower index.

    items        from `pack_items`, which sets the metric
    queries      f32[q, d], finite; for cosines of any length, a zero query scores 0 with all
    k            at least 1; more than there are answers all
    num_threads  at most so many work on this call, the caller's among them; fewer when the pool is busy with another
    mode         "auto": the fastest way; "fp32": never by codes; "int8": by codes wherever they were packed. All
                 give the same answer
    exclude      rows never to answer: i64[e], for all queries, or a sequence of q such arrays or None; any order
    allow        rows to answer alone: i64[a] in any order, or bool[n]; for all queries
    min_score    least score to answer (compared as f32), None answers all
    report       counts are added to it
    returns      indices i64[q, w], scores f32[q, w], counts i64[q] with w = min(k, n); only [:counts] is valid, past
                 it stand -1 and NaN
    raises       DtypeError, ShapeError, NotFiniteError; ValueError for k, num_threads, mode or min_score;
                 IndexError for a row that is not there; OverflowError where |query| |row| may pass f32; MemoryError
    limits       exact: scores are summed in f64 and rounded once, so they are within 2^-24 of their size plus
                 d 2^-53 |query| |row|
    """
    rows = as_f32("queries", queries, 2)
    if rows.shape[1] != items.dimension:
        raise ShapeError(f"queries has shape {rows.shape}, items have {items.dimension} dimensions")
    width = as_width(k, items.num_rows)
    least = as_threshold(min_score)
    threads = _threads(num_threads)
    use_codes = _use_codes(mode)
    num_queries = rows.shape[0]
    indices = np.empty((num_queries, width), dtype=np.int64)
    scores = np.empty((num_queries, width), dtype=np.float32)
    counts = np.zeros(num_queries, dtype=np.int64)
    excluded, starts = _excluded(exclude, num_queries, items.num_rows)
    allowed, chosen = _allowed(allow, items.num_rows)
    _refuse(items, rows)
    if not num_queries or not width:
        return indices, scores, counts
    if chosen is not None and not chosen.size:
        indices.fill(-1)
        scores.fill(np.nan)
        return indices, scores, counts
    done = native.scan(
        items._native,
        rows,
        use_codes,
        threads,
        items.metric == "cosine",
        least,
        excluded,
        starts,
        allowed,
        chosen,
        indices,
        scores,
        counts,
    )
    if report is not None:
        report.num_candidates += done[0]
        report.num_fallbacks += done[1]
    return indices, scores, counts


def _threads(num_threads: int) -> int:
    try:
        threads = operator.index(num_threads)
    except TypeError:
        raise DtypeError(f"num_threads must be a whole number, not {type(num_threads).__name__}") from None
    if not 1 <= threads <= MAX_THREADS:
        raise ValueError(f"num_threads is {threads}, it must be within 1 and {MAX_THREADS}")
    return threads


def _use_codes(mode: ScanMode) -> int:
    """0: never; 1: where they are the faster way; 2: wherever they were packed."""
    if mode == "auto":
        return int(native.prefers_codes())
    if mode == "int8":
        return 2
    if mode == "fp32":
        return 0
    raise ValueError(f"mode is {mode!r}; auto, fp32 and int8 are known")


def _refuse(items: PackedItems, queries: NDArray[np.float32]) -> None:
    if not queries.size:
        return
    bad = similarity.first_nonfinite(queries)
    if bad >= 0:
        raise NotFiniteError(f"queries[{bad}] holds NaN or an infinity", row=bad)
    if items.metric == "dot":
        large = native.overflowing(items._native, queries)
        if large >= 0:
            raise OverflowError(f"an inner product of queries[{large}] may pass the largest f32, 3.4e38")


def _row_numbers(name: str, given: object, num_rows: int) -> Indices:
    """Ascending row numbers, each once."""
    if not isinstance(given, np.ndarray) or given.dtype != np.int64:
        kind = given.dtype if isinstance(given, np.ndarray) else type(given).__name__
        raise DtypeError(f"{name} must be an i64 array of row numbers, not {kind}")
    if given.ndim != 1:
        raise ShapeError(f"{name} has {given.ndim} axes (shape {given.shape}), 1 is needed")
    ascending = bool((given[1:] > given[:-1]).all())
    rows: Indices = np.ascontiguousarray(given) if ascending else np.unique(given)
    if rows.size and (rows[0] < 0 or rows[-1] >= num_rows):
        wrong = rows[0] if rows[0] < 0 else rows[-1]
        raise IndexError(f"{name} holds row {wrong}, items have {num_rows}")
    return rows


def _excluded(
    exclude: Indices | Sequence[Indices | None] | None, num_queries: int, num_rows: int
) -> tuple[Indices | None, Indices | None]:
    """Rows in ascending order and, where each query has its own, where each list starts."""
    if exclude is None:
        return None, None
    if isinstance(exclude, np.ndarray):
        return _row_numbers("exclude", exclude, num_rows), None
    if len(exclude) != num_queries:
        raise ShapeError(f"exclude has {len(exclude)} lists, queries has {num_queries} rows")
    none = np.empty(0, dtype=np.int64)
    lists = [
        none if rows is None else _row_numbers(f"exclude[{query}]", rows, num_rows)
        for query, rows in enumerate(exclude)
    ]
    starts = np.zeros(num_queries + 1, dtype=np.int64)
    np.cumsum([rows.size for rows in lists], out=starts[1:])
    return np.concatenate(lists) if lists else none, starts


def _allowed(allow: NDArray[Any] | None, num_rows: int) -> tuple[NDArray[np.uint64] | None, NDArray[np.int32] | None]:
    """A bitmap of the rows where they are many, or their numbers where they are few."""
    if allow is None:
        return None, None
    if getattr(allow, "dtype", None) == np.bool_:
        if allow.shape != (num_rows,):
            raise ShapeError(f"allow has shape {allow.shape}, items have {num_rows} rows")
        mask: Mask = allow
        if np.count_nonzero(mask) * _GATHER_SHARE < num_rows:
            return None, np.flatnonzero(mask).astype(np.int32)
    else:
        rows = _row_numbers("allow", allow, num_rows)
        if rows.size * _GATHER_SHARE < num_rows:
            return None, rows.astype(np.int32)
        mask = np.zeros(num_rows, dtype=np.bool_)
        mask[rows] = True
    words = np.zeros((num_rows + 63) // 64 * 8, dtype=np.uint8)
    words[: (num_rows + 7) // 8] = np.packbits(mask, bitorder="little")
    return words.view(np.uint64), None
