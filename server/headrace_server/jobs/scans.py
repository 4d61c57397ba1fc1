"""Scans: queries of many callers over the same snapshot, scored together.

    search ──▶ small: scored at once, on the calling thread
           └─▶ queue ──▶ worker: all waiting queries of one Plan in one scan, each answered its own k

Queries share a scan where they see the same snapshot through the same selection and threshold, and their k fall into
the same power of two; their exclusions may differ. Scores do not depend on what is scored beside them.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from time import perf_counter_ns
from typing import Any, cast
from weakref import WeakValueDictionary

import numpy as np

from headrace_server.config import BatchPolicy
from headrace_server.errors import as_serving_error
from headrace_server.items.filter import Filter, check_filter
from headrace_server.items.snapshot import Hits, Selection, Snapshot
from headrace_server.jobs.queries import Vectors
from headrace_server.models.model import Row
from headrace_server.serving import refusals
from headrace_server.serving.batch import BatchObserver, BatchResult
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.context import RequestContext

__all__ = ["INLINE_CELLS", "MAX_BATCH_QUERIES", "MAX_WAITING_QUERIES", "Plan", "Scans"]

INLINE_CELLS = 1 << 16  # items × dimension × queries that take less time than handing them to another thread
MAX_BATCH_QUERIES = 32
MAX_WAITING_QUERIES = 4096
_COMPANY_SHARE = 1.0  # a scan for 32 queries takes less than twice the time of one for a single query
_MAX_SHARED_IDS = 1000  # more of them are not worth comparing with another caller's
_MIN_BUCKET = 16
_CELLS_A_UNIT = 1 << 16  # of the queue's measure of work
_NO_ARRAYS: dict[str, Any] = {}


class Plan:
    """What queries of one scan have in common. Compared by identity."""

    __slots__ = ("__weakref__", "min_score", "selection", "snapshot")

    def __init__(self, snapshot: Snapshot, selection: Selection | None, min_score: float | None) -> None:
        self.snapshot = snapshot
        self.selection = selection
        self.min_score = min_score

    @property
    def num_cells(self) -> int:
        """Products of one query."""
        return self.snapshot.num_items * self.snapshot.spec.dimension

    def search(self, queries: Vectors, k: int, exclude: Sequence[Sequence[str]] | None) -> list[Hits]:
        """As Snapshot.search."""
        return self.snapshot.search(queries, k, selection=self.selection, exclude=exclude, min_score=self.min_score)


class _WaitingQuery(Row):
    """A query as the batcher's row; its result is its Hits."""

    __slots__ = ("exclude", "k", "query")

    def __init__(self, plan: Plan, query: Vectors, k: int, exclude: Sequence[str]) -> None:
        super().__init__(_NO_ARRAYS, max(1, plan.num_cells // _CELLS_A_UNIT), (plan, _bucket(k)))
        self.query = query
        self.k = k
        self.exclude = exclude


class Scans:
    """Searches snapshots, many queries at a time. Thread-safe.

    num_workers  scans at once; the threads of each are the scanner's
    max_waiting  queries that may wait; beyond it requests are refused at once
    """

    def __init__(
        self, *, num_workers: int = 1, max_waiting: int = MAX_WAITING_QUERIES, observer: BatchObserver | None = None
    ) -> None:
        policy = BatchPolicy(max_batch_size=MAX_BATCH_QUERIES, max_queue_rows=max_waiting, length_bucket=1)
        self._batcher = Batcher(
            _run,
            policy,
            num_workers=num_workers,
            name="recommend",
            observer=observer,
            company_share=_COMPANY_SHARE,
            stage="scan",
        )
        self._plans: WeakValueDictionary[tuple[Any, ...], Plan] = WeakValueDictionary()
        self._lock = threading.Lock()

    @property
    def num_waiting(self) -> int:
        """Queries that wait now."""
        return self._batcher.depth

    def plan(
        self,
        snapshot: Snapshot,
        k: int,
        *,
        condition: Filter | None = None,
        include_ids: Sequence[str] | None = None,
        exclude_ids: Sequence[str] = (),
        min_score: float | None = None,
    ) -> Plan:
        """The plan of these searches: another caller's, where one that is alike still waits or runs."""
        if condition is not None:
            condition = check_filter(condition, snapshot.spec.fields)
        selects = condition is not None or include_ids is not None or bool(exclude_ids)
        if len(include_ids or ()) + len(exclude_ids) > _MAX_SHARED_IDS:
            chosen = snapshot.select(condition, exclude_ids=exclude_ids, include_ids=include_ids)
            return Plan(snapshot, chosen, min_score)
        included = None if include_ids is None else tuple(include_ids)
        # The plan holds its snapshot: while it lives, no other has that id.
        key = (id(snapshot), _bucket(k), min_score, condition, included, tuple(exclude_ids))
        with self._lock:
            known = self._plans.get(key)
        if known is not None:
            return known
        selection = snapshot.select(condition, exclude_ids=exclude_ids, include_ids=include_ids) if selects else None
        made = Plan(snapshot, selection, min_score)
        with self._lock:
            return self._plans.setdefault(key, made)

    def search(
        self, plan: Plan, queries: Vectors, k: int, exclude: Sequence[Sequence[str]] | None, context: RequestContext
    ) -> Future[list[Hits]]:
        """Future of the hits of each of queries f32[q, d]; already done where the scan is small.

        Its exceptions are ServingError; QUEUE_FULL and the other refusals are the batcher's.
        """
        if plan.num_cells * len(queries) <= INLINE_CELLS:
            return _answered(plan, queries, k, exclude, context)
        rows = [_WaitingQuery(plan, query, k, exclude[index] if exclude else ()) for index, query in enumerate(queries)]
        hits: Future[Any] = self._batcher.submit(rows, context)
        return hits

    def drain(self, timeout_s: float) -> bool:
        """As `Batcher.drain`."""
        return self._batcher.drain(timeout_s)

    def close(self) -> None:
        """As `Batcher.close`."""
        self._batcher.close()


def _answered(
    plan: Plan, queries: Vectors, k: int, exclude: Sequence[Sequence[str]] | None, context: RequestContext
) -> Future[list[Hits]]:
    """The hits, found on this thread."""
    answer: Future[list[Hits]] = Future()
    answer.set_running_or_notify_cancel()
    started = perf_counter_ns()
    try:
        if context.cancelled:
            raise refusals.cancelled()
        if context.expired:
            raise refusals.deadline_passed()
        hits = plan.search(queries, k, exclude)
    except BaseException as error:
        answer.set_exception(as_serving_error(error))
        return answer
    timings = context.timings
    timings.inferred(started, perf_counter_ns(), "scan")
    timings.batch_size = max(timings.batch_size, len(queries))
    answer.set_result(hits)
    return answer


def _run(rows: Sequence[Row]) -> BatchResult:
    waiting = cast("Sequence[_WaitingQuery]", rows)
    started = perf_counter_ns()
    plan: Plan = waiting[0].shape_key[0]
    queries = np.stack([row.query for row in waiting])
    exclude = [row.exclude for row in waiting]
    largest = max(row.k for row in waiting)
    collated = perf_counter_ns()
    found: list[Any] = plan.search(queries, largest, exclude if any(exclude) else None)
    results: list[Any] = [
        hits if row.k >= len(hits.ids) else _first(hits, row.k) for row, hits in zip(waiting, found, strict=True)
    ]
    return BatchResult(results, collate_ns=collated - started, infer_ns=perf_counter_ns() - collated)


def _first(hits: Hits, k: int) -> Hits:
    return Hits(ids=hits.ids[:k], scores=hits.scores[:k], sequences=hits.sequences[:k], places=hits.places[:k])


def _bucket(k: int) -> int:
    """The power of two that bounds k."""
    return max(_MIN_BUCKET, 1 << (k - 1).bit_length())
