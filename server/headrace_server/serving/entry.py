"""Request and Entry: one submission in the batcher, and each of its rows while it waits or runs.

A request is settled exactly once: whoever sets `done` under the batcher's lock resolves the future, outside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from headrace_server.errors import ServingError
from headrace_server.models.model import Row
from headrace_server.serving.batch import RowResult
from headrace_server.serving.context import RequestContext

__all__ = ["BatchFuture", "Entry", "Request"]

logger = logging.getLogger(__name__)


class BatchFuture(Future[list[RowResult]]):
    """The future of one submission. `cancel` gives its places in the queue back and resolves it with CANCELLED."""

    abandon: Callable[[], bool] | None = None

    def cancel(self) -> bool:
        """True when the request was still open and is now cancelled."""
        abandon = self.abandon
        return abandon is not None and abandon()


class Request:
    """One submission: its future, its deadline, and the results of its rows so far."""

    __slots__ = ("deadline", "done", "entries", "future", "largest_batch", "num_left", "num_rows", "results", "timings")

    def __init__(self, future: BatchFuture, context: RequestContext, num_rows: int) -> None:
        self.future = future
        self.deadline = context.deadline  # of a block None: the batcher neither drops nor fails it for time
        self.timings = context.timings
        self.num_rows = num_rows
        self.done = False
        self.entries: Sequence[Entry] = ()
        self.results: list[RowResult] = [{}] * num_rows
        self.num_left = num_rows
        self.largest_batch = 0

    def answer(self) -> None:
        """Resolves the future with every row's result. Only for whoever set `done`."""
        future, results = self._release()
        try:
            future.set_result(results)
        except BaseException:  # Future logs a callback's Exception itself; nothing a callback does may end a worker
            logger.exception("a done-callback failed", extra=self.timings.log_fields)

    def fail(self, error: ServingError) -> None:
        """Resolves the future with `error`. Only for whoever set `done`."""
        future, _ = self._release()
        try:
            future.set_exception(error)
        except BaseException:
            logger.exception("a done-callback failed", extra=self.timings.log_fields)

    def _release(self) -> tuple[BatchFuture, list[RowResult]]:
        # Entries, future and cancel callback point at each other, and the context may live on with its callback: cut
        # here, so that nothing waits for the collector. A settled request has no future any more.
        future, results = self.future, self.results
        future.abandon = None
        del self.future
        self.results, self.entries = [], ()
        return future, results


class Entry:
    """One row of a request, or a block of them. `waiting` is true while it holds a place in the queue."""

    __slots__ = ("index", "num_rows", "order", "request", "row", "seq", "submitted", "units", "waiting")

    def __init__(
        self, row: Row, request: Request, index: int, order: float, seq: int, submitted: float, units: int
    ) -> None:
        self.row: Row | None = row  # dropped as soon as it is no longer needed
        self.num_rows = row.num_rows  # more than one of a block
        self.request = request
        self.index = index
        self.order = order  # seconds on the batcher's clock; smaller runs first
        self.seq = seq  # submission order, between equals
        self.submitted = submitted
        self.units = units  # padded length; 1 for rows of one shape
        self.waiting = True
