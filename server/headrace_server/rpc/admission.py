"""Workers: the bounded pool where requests are decoded and prepared, off the transport's thread.

What may run on the transport's own thread is decided in `dispatch` (INLINE_BYTES and each method's `light`); all else
comes here. A request is refused at once where too many wait, and dropped unopened where its caller has gone or its
deadline has passed while it waited: under overload no time is spent on what nobody reads.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

from headrace_server.errors import Reason, ServingError
from headrace_server.serving.context import RequestContext

__all__ = ["Workers"]

logger = logging.getLogger(__name__)

_WEIGHT = 0.05  # of the newest task in the running mean
_RETRY_RANGE_S = (0.01, 10.0)


class _Task:
    __slots__ = ("context", "refuse", "submitted", "work")

    def __init__(
        self, context: RequestContext, work: Callable[[int], None], refuse: Callable[[ServingError], None]
    ) -> None:
        self.context = context
        self.work = work
        self.refuse = refuse
        self.submitted = time.perf_counter_ns()


class Workers:
    """Threads that prepare requests, first come first served. Thread-safe.

    num_threads  from ThreadBudget.prepare_threads
    max_waiting  requests that may wait; one more is refused with QUEUE_FULL and when to try again
    """

    def __init__(self, *, num_threads: int, max_waiting: int, name: str = "headrace-prepare") -> None:
        self._num_threads = num_threads
        self._max_waiting = max_waiting
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._closed = False
        self._mean_s = 0.0
        self._threads = [
            threading.Thread(target=self._run, name=f"{name}-{index}", daemon=True) for index in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def num_waiting(self) -> int:
        """Requests that no thread has taken up yet."""
        return self._queue.qsize()

    def submit(
        self, context: RequestContext, work: Callable[[int], None], refuse: Callable[[ServingError], None]
    ) -> None:
        """Runs `work(waited_ns)` on a worker; or, if the request is cancelled or late by then, `refuse(error)`.

        Neither may raise. Raises ServingError QUEUE_FULL, with advice when to retry, or SHUTTING_DOWN.
        """
        if self._closed:
            raise ServingError(Reason.SHUTTING_DOWN, "the server is shutting down")
        waiting = self._queue.qsize()
        if waiting >= self._max_waiting:  # two submitters at once may overshoot by one: a bound, not a ledger
            raise ServingError(
                Reason.QUEUE_FULL,
                f"{waiting} requests are waiting to be prepared, the limit is {self._max_waiting}",
                retry_after_s=self._time_to_drain_s(waiting),
                waiting=waiting,
                limit=self._max_waiting,
            )
        self._queue.put(_Task(context, work, refuse))

    def close(self) -> None:
        """Takes nothing more, finishes what waits, and returns when the threads have ended."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        while not self._queue.empty():  # submitted between the flag and the last thread's end
            task = self._queue.get()
            if task is not None:
                task.refuse(ServingError(Reason.SHUTTING_DOWN, "the server is shutting down"))

    def _run(self) -> None:
        while (task := self._queue.get()) is not None:
            try:
                self._do(task)
            except BaseException:  # nothing a request does may end a worker
                logger.exception("a prepare task failed", extra=task.context.timings.log_fields)
            task = None  # the next wait may be long: hold no request meanwhile

    def _do(self, task: _Task) -> None:
        context = task.context
        if context.cancelled:
            task.refuse(ServingError(Reason.CANCELLED, "the request was cancelled"))
            return
        if context.expired:
            task.refuse(ServingError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the request was prepared"))
            return
        started = time.perf_counter_ns()
        task.work(started - task.submitted)
        seconds = (time.perf_counter_ns() - started) * 1e-9
        self._mean_s += _WEIGHT * (seconds - self._mean_s)

    def _time_to_drain_s(self, waiting: int) -> float:
        low, high = _RETRY_RANGE_S
        return min(max(self._mean_s * waiting / self._num_threads, low), high)
