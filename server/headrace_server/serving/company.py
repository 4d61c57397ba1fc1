"""Company: how long a worker waits for more rows where a run costs about the same for many as for one (a scan).

It waits for as many rows as its last run had, while they keep coming: those whom it has just answered are likely to ask
again, and would else be split between two runs. It waits no longer than a share of a run's time, never for a caller who
came alone, nor where the first in line is short of time.
"""

from __future__ import annotations

from headrace_server.serving.entry import Request
from headrace_server.serving.row_queue import RowQueue
from headrace_server.serving.service_time import ServiceTime

__all__ = ["Company"]

_GAP_SHARE = 0.3  # of the longest wait: when nobody has come for so long, nobody is likely to


class Company:
    """What is known of who may still come. Not thread-safe: the batcher's lock guards it.

    share      of a run's time that a worker may wait; 0: it never does
    awaited    rows for which a worker waits before it begins; 0: none does
    last_size  rows of the run that ended last
    """

    __slots__ = ("_queue", "_service_time", "awaited", "last_arrival", "last_size", "share")

    def __init__(self, share: float, queue: RowQueue, service_time: ServiceTime) -> None:
        self._queue = queue
        self._service_time = service_time
        self.share = share
        self.awaited = 0
        self.last_size = 1
        self.last_arrival = 0.0

    def due_s(self, free_since: float, now: float, expired: list[Request]) -> float | None:
        """Seconds until a worker looks again that has been free since then; None: it takes what there is."""
        if self._queue.num_rows >= self.last_size:
            return None
        head = self._queue.head(now, expired)
        if head is None:
            return None
        run_s = self._service_time.batch_seconds(head.units)
        deadline = head.request.deadline
        if deadline is not None and deadline < now + 2 * run_s:
            return None
        most_s = self.share * run_s
        due_s = min(free_since + most_s, self.last_arrival + most_s * _GAP_SHARE) - now
        if due_s <= 0:
            return None
        self.awaited = self.last_size
        return due_s
