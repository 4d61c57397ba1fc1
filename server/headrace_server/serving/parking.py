"""Parking: requests that wait for a version to come back into memory, none of them holding a thread.

park ─▶ waits ─▶ told once, on the parking thread: go on, or why not (too late, cancelled, shutting down, no memory)
"""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from time import perf_counter_ns

from headrace_server.errors import Reason, ServingError
from headrace_server.serving import refusals
from headrace_server.serving.context import RequestContext
from headrace_server.serving.version import Version

__all__ = ["GoOn", "Parking"]

logger = logging.getLogger(__name__)

GoOn = Callable[[ServingError | None], None]  # None: ask again, the version is there or something else is to be said

_RETRY_S = 1.0


class _Ticket:
    """One waiting request."""

    __slots__ = ("began_ns", "context", "entry", "go_on", "told")

    def __init__(self, entry: Version, context: RequestContext, go_on: GoOn) -> None:
        self.entry = entry
        self.context = context
        self.go_on = go_on
        self.began_ns = perf_counter_ns()
        self.told = False  # or about to be: whoever sets it tells


class Parking:
    """Waiting requests of all versions. Thread-safe; its thread begins with the first request.

    limit  how many may wait in all
    """

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._woken = threading.Condition(self._lock)
        self._waiting: dict[Version, set[_Ticket]] = {}
        self._num_waiting = 0
        self._deadlines: list[tuple[float, int, _Ticket]] = []
        self._numbers = itertools.count()
        self._ended: deque[Callable[[], None]] = deque()
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def num_waiting(self) -> int:
        """Requests that wait now."""
        return self._num_waiting

    def park(self, entry: Version, context: RequestContext, go_on: GoOn) -> None:
        """Has `go_on` called once, on the parking thread, when `entry` is released or the request cannot wait longer.

        raises  ServingError MODEL_LOADING where no more may wait, SHUTTING_DOWN
        """
        ticket = _Ticket(entry, context, go_on)
        with self._lock:
            if self._closed:
                raise refusals.shutting_down()
            if self._num_waiting >= self._limit:
                raise ServingError(
                    Reason.MODEL_LOADING,
                    f"model {entry.name!r} is being brought back into memory, and {self._num_waiting} requests wait "
                    f"already, limit {self._limit}",
                    retry_after_s=_RETRY_S,
                    model=entry.name,
                    limit=self._limit,
                )
            self._waiting.setdefault(entry, set()).add(ticket)
            self._num_waiting += 1
            if context.deadline is not None:
                heapq.heappush(self._deadlines, (context.deadline, next(self._numbers), ticket))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="headrace-parking", daemon=True)
                self._thread.start()
            self._woken.notify()
        context.on_cancel(lambda: self._end(ticket, refusals.cancelled()))

    def release(self, entry: Version, error: ServingError | None, over: Callable[[], None]) -> None:
        """Tells all who wait for `entry`, on the parking thread, and then calls `over` there."""
        with self._lock:
            tickets = self._waiting.pop(entry, set())
            for ticket in sorted(tickets, key=lambda ticket: ticket.began_ns):
                self._take(ticket, error)
            if self._thread is not None:
                self._ended.append(over)
                self._woken.notify()
                return
        over()

    def close(self) -> None:
        """Refuses whoever comes, tells all who wait SHUTTING_DOWN. Returns at once."""
        with self._lock:
            self._closed = True
            for tickets in list(self._waiting.values()):
                for ticket in list(tickets):
                    self._take(ticket, refusals.shutting_down())
            self._woken.notify()

    def join(self) -> None:
        """Waits until everybody has been told; after `close`."""
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _end(self, ticket: _Ticket, error: ServingError) -> None:
        with self._lock:
            self._take(ticket, error)
            self._woken.notify()

    def _take(self, ticket: _Ticket, error: ServingError | None) -> None:
        """Under the lock."""
        if ticket.told:
            return
        ticket.told = True
        self._num_waiting -= 1
        others = self._waiting.get(ticket.entry)
        if others is not None:
            others.discard(ticket)
            if not others:
                del self._waiting[ticket.entry]
        self._ended.append(lambda: _tell(ticket, error))

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._ended:
                    if self._closed:
                        return
                    while self._deadlines and self._deadlines[0][2].told:
                        heapq.heappop(self._deadlines)
                    left = self._deadlines[0][0] - time.monotonic() if self._deadlines else None
                    if left is not None and left <= 0:
                        self._take(heapq.heappop(self._deadlines)[2], refusals.deadline_passed())
                    else:
                        self._woken.wait(left)
                tell = self._ended.popleft()
            try:
                tell()
            except Exception:
                logger.exception("a waiting request could not be told")


def _tell(ticket: _Ticket, error: ServingError | None) -> None:
    ticket.context.timings.waited(ticket.began_ns, perf_counter_ns(), "load")
    ticket.go_on(error)
