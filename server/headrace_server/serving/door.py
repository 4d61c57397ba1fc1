"""Door: what a batcher admits. A refusal is immediate, and says when to come back.

Not thread-safe: the batcher's lock guards it, as it guards the queue and the measured times that it looks at.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace_server.config import BatchPolicy
from headrace_server.errors import ServingError
from headrace_server.models.model import Row
from headrace_server.serving import refusals
from headrace_server.serving.context import RequestContext
from headrace_server.serving.entry import Request
from headrace_server.serving.row_queue import RowQueue
from headrace_server.serving.service_time import ServiceTime

__all__ = ["Door"]

_RETRY_UNKNOWN_S = 0.1  # advice while nothing has been measured
_RETRY_RANGE_S = (0.01, 30.0)
_LONG_RUN_S = 0.005  # beside a run of this time, what every run costs whatever its size is little


class Door:
    """Judges new rows by the queue's length, the rows ahead of them, and the times that batches took."""

    __slots__ = ("_enough_units", "_num_workers", "_policy", "_queue", "_service_time")

    def __init__(
        self, policy: BatchPolicy, queue: RowQueue, service_time: ServiceTime, num_workers: int, enough_units: int = 0
    ) -> None:
        self._enough_units = enough_units
        self._policy = policy
        self._queue = queue
        self._service_time = service_time
        self._num_workers = num_workers

    def refusal(
        self,
        rows: Sequence[Row],
        context: RequestContext,
        now: float,
        order: float,
        busy_s: float,
        expired: list[Request],
    ) -> ServingError | None:
        """Why these rows cannot be admitted; None when they can.

        order    where they would stand in the queue
        busy_s   seconds until the first worker is free
        expired  takes in the requests that were found expired where room was sought
        """
        if context.cancelled:
            return refusals.cancelled()
        deadline = context.deadline
        if deadline is not None and deadline <= now:
            return refusals.deadline_passed()
        limit, num_rows = self._policy.max_queue_rows, sum(row.num_rows for row in rows)
        if self._queue.num_rows + num_rows > limit:
            if num_rows > limit:
                return refusals.request_too_large(rows=num_rows, limit=limit)
            expired += self._queue.expire(now)
            waiting = self._queue.num_rows
            if waiting + num_rows > limit:
                retry_after_s = self._retry_after_s(waiting + num_rows - limit)
                return refusals.queue_full(rows=num_rows, waiting=waiting, limit=limit, retry_after_s=retry_after_s)
        if deadline is not None and num_rows and self._service_time.has_evidence(now):
            needed_s = self._needed_s(rows, order, deadline - now, busy_s)
            if needed_s > deadline - now:
                return refusals.deadline_infeasible(remaining_s=deadline - now, needed_s=needed_s)
        return None

    def units_a_run(self) -> int:
        """Padded units beyond which more rows make a run longer and not cheaper; 0: rows alone are counted."""
        enough = self._enough_units
        return enough if enough and self._service_time.batch_seconds(enough) >= _LONG_RUN_S else 0

    def rows_a_run(self, mean_units: float) -> int:
        """Rows of `mean_units` that fill a run."""
        limit, units = self._policy.max_batch_size, self.units_a_run()
        return min(limit, max(1, int(units // mean_units))) if units and mean_units else limit

    def units(self, row: Row) -> int:
        """The row's length as it is padded when alone; 1 for rows of one shape."""
        if not row.length:
            return 1
        bucket = self._policy.length_bucket
        return -(-row.length // bucket) * bucket

    def _needed_s(self, rows: Sequence[Row], order: float, remaining_s: float, busy_s: float) -> float:
        """Seconds until `rows` would be computed, an optimistic estimate."""
        own_rows = sum(row.num_rows for row in rows)
        own_units = sum(self.units(row) * row.num_rows for row in rows)

        def until_done(rows_ahead: int, units_ahead: int) -> float:
            return self._service_time.seconds_until_done(
                rows=rows_ahead + own_rows,
                units=units_ahead + own_units,
                num_workers=self._num_workers,
                max_batch_size=self.rows_a_run((units_ahead + own_units) / (rows_ahead + own_rows)),
                busy_s=busy_s,
            )

        needed_s = until_done(self._queue.num_rows, self._queue.num_units)
        if needed_s <= remaining_s:  # even behind everything that waits: no need to count who stands ahead
            return needed_s
        return until_done(*self._queue.ahead(order))

    def _retry_after_s(self, rows_over: int) -> float:
        """Seconds until `rows_over` places are likely to be free."""
        mean_units = self._queue.mean_units
        batch = self.rows_a_run(mean_units)
        seconds = self._service_time.batch_seconds(batch * mean_units) * rows_over / (batch * self._num_workers)
        low, high = _RETRY_RANGE_S
        return min(max(seconds, low), high) if seconds else _RETRY_UNKNOWN_S
