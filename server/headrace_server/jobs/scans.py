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
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from headrace_server.config import BatchPolicy
from headrace_server.items.filter import Filter, check_filter
from headrace_server.items.snapshot import Hits, Selection, Snapshot
from headrace_server.jobs.queries import Vectors
from headrace_server.jobs.submission import as_serving_error
from headrace_server.models.model import Row
from headrace_server.serving.batch import BatchResult, RowResult
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.context import RequestContext

__all__ = ["INLINE_CELLS", "MAX_BATCH_QUERIES", "Plan", "Scans"]

INLINE_CELLS = 1 << 16  # items × dimension × queries that take less time than handing them to another thread
MAX_BATCH_QUERIES = 32
_MAX_WAITING_QUERIES = 4096
_MAX_SHARED_IDS = 1000  # more of them are not worth comparing with another caller's
_MIN_BUCKET = 16
_CELLS_A_UNIT = 1 << 16  # of the queue's measure of work


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


class Scans:
    """Searches snapshots, many queries at a time. Thread-safe."""

    def __init__(self, *, num_workers: int = 1) -> None:
        policy = BatchPolicy(max_batch_size=MAX_BATCH_QUERIES, max_queue_rows=_MAX_WAITING_QUERIES, length_bucket=1)
        self._batcher = Batcher(_run, policy, num_workers=num_workers, name="recommend")
        self._plans: WeakValueDictionary[tuple[Any, ...], Plan] = WeakValueDictionary()
        self._lock = threading.Lock()

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
        """Future of the hits of each of queries f32[q, d]; already done where the scan is small."""
        answer: Future[list[Hits]] = Future()
        answer.set_running_or_notify_cancel()
        if plan.num_cells * len(queries) <= INLINE_CELLS:
            try:
                answer.set_result(plan.search(queries, k, exclude))
            except BaseException as error:
                answer.set_exception(as_serving_error(error))
            return answer
        units = max(1, plan.num_cells // _CELLS_A_UNIT)
        rows = [
            Row(
                arrays={
                    "query": query,
                    "k": np.array(k),
                    "exclude": np.array(exclude[index] if exclude else (), dtype=object),
                },
                length=units,
                shape_key=(plan, _bucket(k)),
            )
            for index, query in enumerate(queries)
        ]

        def settle(done: Future[list[RowResult]]) -> None:
            try:
                hits = [_hits(row) for row in done.result()]
            except BaseException as error:
                answer.set_exception(as_serving_error(error))
            else:
                answer.set_result(hits)

        self._batcher.submit(rows, context).add_done_callback(settle)
        return answer

    def drain(self, timeout_s: float) -> bool:
        """As `Batcher.drain`."""
        return self._batcher.drain(timeout_s)

    def close(self) -> None:
        """As `Batcher.close`."""
        self._batcher.close()


def _run(rows: Sequence[Row]) -> BatchResult:
    plan: Plan = rows[0].shape_key[0]
    started = perf_counter_ns()
    queries = np.stack([row.arrays["query"] for row in rows])
    exclude = [row.arrays["exclude"].tolist() for row in rows]
    largest = max(int(row.arrays["k"]) for row in rows)
    found = plan.search(queries, largest, exclude if any(exclude) else None)
    results = [_arrays(hits, int(row.arrays["k"])) for hits, row in zip(found, rows, strict=True)]
    return BatchResult(results, infer_ns=perf_counter_ns() - started)


def _arrays(hits: Hits, k: int) -> RowResult:
    ids = np.array(hits.ids[:k], dtype=object)
    return {"ids": ids, "scores": hits.scores[:k], "sequences": hits.sequences[:k], "places": hits.places[:k]}


def _hits(row: RowResult) -> Hits:
    return Hits(ids=tuple(row["ids"].tolist()), scores=row["scores"], sequences=row["sequences"], places=row["places"])


def _bucket(k: int) -> int:
    """The power of two that bounds k."""
    return max(_MIN_BUCKET, 1 << (k - 1).bit_length())
