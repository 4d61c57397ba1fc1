"""Batcher: a bounded queue that groups rows of stateless requests and hands them to an engine's workers.

    submit ──▶ RowQueue (earliest deadline first) ──▶ worker: take a batch, run it, answer each request itself

A worker that is free takes what waits at once; no timer runs unless `max_delay_ms` asks for one. While a neighbour is
idle it takes its share only, so that two cores work on what one submission brought.

Inline. A policy may say that rows need not wait for a worker: while none waits and fewer runs than workers are in
flight, the submitter's own thread is the worker of its request, and has its answer when `submit` returns. It pays where
a run is shorter than the hand-off to another thread, and is wrong for all others: the thread may be the one that reads
every caller's messages.

Enough. Where rows get no cheaper beyond some padded length of a run in all, `enough_units` ends it there, if such a run
is long at all: callers are answered sooner, and while their next requests are on the way the worker finds others
waiting, instead of beginning with the first that comes back.

Order. A row runs by its deadline, or `PATIENCE_S` after it was submitted where the deadline is further away or absent:
a fixed moment that later arrivals cannot push back, so nothing starves, and work with a near deadline passes work
without one. Equals run in the order they came. Of a request larger than a batch, each further batch gives way by one
batch's time, so that small requests do not wait for all of a large one.

Fate. A request owns its future. A batch that fails is run again in halves until the row that fails stands alone; its
request fails, its neighbours are answered. Cancelled requests give their places up at once; what was cancelled while
running is discarded when it comes back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from headrace_server.config import BatchPolicy
from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Row
from headrace_server.serving import refusals
from headrace_server.serving.batch import BatchObserver, Runner, StageTimes
from headrace_server.serving.batch_news import BatchNews
from headrace_server.serving.batch_run import BatchRun
from headrace_server.serving.company import Company
from headrace_server.serving.context import RequestContext
from headrace_server.serving.door import Door
from headrace_server.serving.entry import BatchFuture, Entry, Request
from headrace_server.serving.row_queue import RowQueue
from headrace_server.serving.runs import Runs
from headrace_server.serving.service_time import ServiceTime

__all__ = ["PATIENCE_S", "Batcher"]

logger = logging.getLogger(__name__)

PATIENCE_S = 10.0
_SURELY = 0.8  # of a run's estimated time is taken for certain


class Batcher:
    """Groups rows from many callers into runs of at most `policy.max_batch_size`. Thread-safe.

    runner       computes one batch, blocking, on up to `num_workers` threads at once
    name         the model, for thread names, the log and the observer; `version` likewise
    company_share  of a run's time that a worker may wait for more rows (see `company`); 0: it never does
    enough_units   padded units that fill a run, if one of so many takes 5 ms or longer; 0: rows alone are counted
    stage        what a run is called in traces
    clock        seconds, monotonic, the clock of `RequestContext.deadline`
    """

    def __init__(
        self,
        runner: Runner,
        policy: BatchPolicy,
        *,
        num_workers: int,
        name: str,
        version: str = "",
        observer: BatchObserver | None = None,
        company_share: float = 0.0,
        enough_units: int = 0,
        stage: str = "infer",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._runner = runner
        self._policy = policy
        self._name = name
        self._version = version
        self._news = BatchNews(observer, name, version)
        self._stage = stage
        self._clock = clock
        self._lock = threading.Lock()
        self._work_waits = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        self._queue = RowQueue()
        self._service_time = ServiceTime()
        self._door = Door(policy, self._queue, self._service_time, num_workers, enough_units)
        self._company = Company(company_share, self._queue, self._service_time)
        self._runs = Runs(num_workers)
        self._seq = 0
        self._num_idle = 0
        self._num_open = 0  # requests admitted and not yet resolved
        self._admitting = True
        self._stopping = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{worker}", daemon=True) for worker in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def depth(self) -> int:
        """Rows that wait now."""
        return self._queue.num_rows

    def submit(self, rows: Sequence[Row], context: RequestContext) -> BatchFuture:
        """Future of one result a row, in order; all rows are admitted or none. Never raises, and never blocks but to
        compute the rows itself, where the policy says inline.

        The future is resolved on a worker's thread (a done-callback there can answer the client itself), on the
        canceller's thread when `context` is cancelled, or before this returns when the request is refused or was
        computed inline. Its exceptions are ServingError: QUEUE_FULL and DEADLINE_INFEASIBLE (with `retry_after_s`),
        DEADLINE_EXCEEDED, CANCELLED, SHUTTING_DOWN, PAYLOAD_TOO_LARGE, or what the runner raised for one of the rows.
        """
        future = BatchFuture()
        now = self._clock()
        expired: list[Request] = []
        inline = False
        with self._lock:
            refusal = self._refusal(rows, context, now, expired)
            if refusal is None and rows:
                request = Request(future, context, len(rows))
                entries = self._entries(request, rows, now)
                inline = self._policy.inline and self._may_run_here(entries)
                if inline:
                    self._begin_run(entries, now)
                else:
                    self._enqueue(request, entries, now)
        if expired:
            self._fail_expired(expired)
        if refusal is not None:
            future.set_exception(refusal)
            self._news.rejected(refusal.reason, len(rows))
        elif not rows:
            future.set_result([])
        elif inline:
            self._run(entries, 0)
        else:
            abandon = partial(self._abandon, request)
            future.abandon = abandon
            context.on_cancel(abandon)
            if request.done:  # answered or abandoned in the meantime: nothing is left to abandon
                future.abandon = None
        return future

    def submit_block(self, row: Row, context: RequestContext) -> BatchFuture | None:
        """Future of the one result of a block of rows; None: it is not admitted, and who is of it shall ask alone.

        context  its deadline, the nearest of those in the block, says where it stands and whether it is admitted; who
                 is cancelled or late is the block's own affair
        """
        future = BatchFuture()
        now = self._clock()
        expired: list[Request] = []
        with self._lock:
            refusal = self._refusal((row,), context, now, expired)
            if refusal is None:
                request = Request(future, context, 1)
                entries = self._entries(request, (row,), now)
                request.deadline = None
                self._enqueue(request, entries, now)
        if expired:
            self._fail_expired(expired)
        return future if refusal is None else None

    def enter(self) -> bool:
        """Whether this thread may compute rows of its own now, as a run like any other until it calls `leave`.

        So where the policy says inline, nothing waits, and a run is free. What is computed so has no place in the queue
        and no future: a drain and a close wait for it.
        """
        if not self._policy.inline:
            return False
        with self._lock:
            if not self._admitting or not self._may_run_here(()):
                return False
            self._runs.begin((), self._clock() + self._service_time.batch_seconds(1))
            self._num_open += 1
            return True

    def leave(self, num_rows: int, stages: StageTimes | None) -> None:
        """Ends what `enter` began; `stages` of a run that succeeded."""
        with self._lock:
            if stages is not None:
                self._service_time.observe(num_rows, stages.infer_ns * 1e-9, self._clock())
            self._end_run()
            self._resolved(1)
        if stages is not None:
            self._news.computed(((num_rows, stages),))

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for the admitted ones. True: all were answered. False: the time was up."""
        with self._lock:
            self._admitting = False
            self._work_waits.notify_all()  # a worker that waits for company waits no longer
            return self._all_done.wait_for(lambda: not self._num_open, timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Refuses new requests, fails waiting ones with SHUTTING_DOWN, lets running batches answer, ends the workers.

        A run that has not come back after `timeout_s` is failed with SHUTTING_DOWN too, and its thread left behind.
        """
        with self._lock:
            self._admitting = False
            self._stopping = True
            left = self._claim(self._queue.drop_all())
            self._work_waits.notify_all()
        self._fail(left, refusals.shutting_down)
        limit = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, limit - time.monotonic()))
        if threading.current_thread() in self._threads:
            return  # called from a done-callback: the batch that it answers is not over yet
        with self._lock:
            # One of this thread's own is the same: a batch that is computed inline.
            self._all_done.wait_for(lambda: not self._runs.elsewhere(), max(0.0, limit - time.monotonic()))
            stuck = self._claim(self._runs.requests())
        if stuck:
            logger.error("%s: %d requests were still running %.1f s after the stop", self._name, len(stuck), timeout_s)
            self._fail(stuck, refusals.shutting_down)

    def _refusal(
        self, rows: Sequence[Row], context: RequestContext, now: float, expired: list[Request]
    ) -> ServingError | None:
        """Why these rows cannot be admitted; None when they can. Under the lock."""
        if not self._admitting:
            return refusals.shutting_down()
        order = _order(context.deadline, now)
        return self._door.refusal(rows, context, now, order, self._runs.busy_s(now), expired)

    def _entries(self, request: Request, rows: Sequence[Row], now: float) -> list[Entry]:
        """The rows of a request that is admitted, each with its order. Under the lock."""
        order = _order(request.deadline, now)
        seq = self._seq
        self._seq = seq + len(rows)
        units = [self._door.units(row) for row in rows]
        mean_units = sum(units) / len(rows)
        batch = self._door.rows_a_run(mean_units)
        step = 0.0
        if len(rows) > batch:
            step = self._service_time.batch_seconds(batch * mean_units)
        self._num_open += 1
        return [
            Entry(row, request, index, order + index // batch * step, seq + index, now, units[index])
            for index, row in enumerate(rows)
        ]

    def _enqueue(self, request: Request, entries: Sequence[Entry], now: float) -> None:
        """Gives every row its place. Under the lock."""
        push = self._queue.push
        for entry in entries:
            push(entry)
        request.entries = entries
        self._company.last_arrival = now
        if self._queue.num_rows >= self._company.awaited:
            self._work_waits.notify()

    def _may_run_here(self, entries: Sequence[Entry]) -> bool:
        """Whether nothing waits, a run is free, and one run can hold the rows. Under the lock."""
        if self._queue.num_rows or not self._runs.may_begin_here:
            return False
        if len(entries) <= 1:
            return True
        first = entries[0]
        return len(entries) <= self._policy.max_batch_size and all(_alike(entry, first) for entry in entries)

    def _begin_run(self, batch: list[Entry], now: float) -> None:
        """Counts `batch` as a run of this thread. Under the lock."""
        self._runs.begin(batch, now + self._service_time.batch_seconds(_padded(batch)))

    # the worker

    def _work(self) -> None:
        """Takes and runs batches until the batcher stops."""
        while True:
            expired: list[Request] = []
            with self._lock:
                batch = self._take(expired)
                depth = self._queue.num_rows
                if depth and self._num_idle:
                    self._work_waits.notify()  # what is left is for an idle neighbour
            if expired:
                self._fail_expired(expired)
            if batch:
                self._run(batch, depth)
            elif self._stopping:
                return
            del batch, expired  # an idle worker must not keep the last batch's arrays alive

    def _take(self, expired: list[Request]) -> list[Entry]:
        """Waits for a batch and marks it running. Empty when the batcher stops, or when only expired requests were
        found. Under the lock."""
        policy = self._policy
        delay_s = policy.max_delay_ms / 1e3
        free_since: float | None = None  # since when there has been something to take
        while not self._stopping and not expired:
            timeout: float | None = None
            if self._queue.num_rows and self._runs.may_begin:
                now = self._clock()
                free_since = now if free_since is None else free_since
                size = policy.max_batch_size
                if not delay_s:
                    size = min(size, -(-self._queue.num_rows // (1 + self._num_idle)))
                elif self._admitting and self._queue.num_rows < self._door.rows_a_run(self._queue.mean_units):
                    head = self._queue.head(now, expired)
                    timeout = None if head is None else head.submitted + delay_s - now
                if self._company.share and self._admitting:
                    timeout = self._company.due_s(free_since, now, expired)
                if timeout is None or timeout <= 0:
                    batch = self._queue.take(
                        size, policy.max_padding_ratio, self._too_late(now), expired, self._door.units_a_run()
                    )
                    if batch:
                        self._begin_run(batch, now)
                        return batch
                    continue
                if expired:
                    break
            self._num_idle += 1
            self._work_waits.wait(timeout)
            self._num_idle -= 1
            self._company.awaited = 0
        return []

    def _too_late(self, now: float) -> float:
        """The latest deadline that even the shortest run, begun now, would miss. Under the lock."""
        if not self._service_time.has_evidence(now):
            return now
        return now + _SURELY * self._service_time.batch_seconds(1)

    def _run(self, batch: list[Entry], depth: int) -> None:
        """Computes one batch and answers its requests; nothing that happens in it ends the worker."""
        run = BatchRun(self._runner, queue=self._queue, lock=self._lock, clock=self._clock, stage=self._stage)
        try:
            run.compute(batch)
            self._news.computed(run.computed, depth)
        except BaseException:
            told = sorted({entry.request.timings.request_id for entry in batch})
            model = {"model": self._name, "model_version": self._version}
            logger.exception("%s: a fault in answering a batch", self._name, extra={**model, "request_ids": told})
            with self._lock:
                lost = self._claim(entry.request for entry in batch)
            self._fail(lost, partial(ServingError, Reason.INTERNAL, "the request could not be computed"))
        finally:
            with self._lock:
                self._company.last_size = sum(entry.num_rows for entry in batch)
                if run.clean_seconds is not None:
                    self._service_time.observe(_padded(batch), run.clean_seconds, self._clock())
                self._resolved(run.num_settled)
                self._end_run()

    def _end_run(self) -> None:
        """This thread's run is over. Under the lock."""
        self._runs.end()
        if self._policy.inline and self._queue.num_rows:
            self._work_waits.notify()  # what came while every run was taken
        if self._stopping and not self._runs:
            self._all_done.notify_all()

    # the end of a request

    def _abandon(self, request: Request) -> bool:
        """Cancels `request` if it is still open: frees its places, resolves its future."""
        with self._lock:
            if request.done:
                return False
            request.done = True
            self._queue.drop(request)
        self._fail([request], refusals.cancelled)
        return True

    def _claim(self, requests: Iterable[Request]) -> list[Request]:
        """Those that nobody has settled, now to be settled by the caller; they leave the queue. Under the lock."""
        claimed = []
        for request in requests:
            if not request.done:
                request.done = True
                self._queue.drop(request)
                claimed.append(request)
        return claimed

    def _fail(self, requests: Sequence[Request], error: Callable[[], ServingError]) -> None:
        """Resolves claimed requests, each with an error of its own."""
        for request in requests:
            request.fail(error())
        with self._lock:
            self._resolved(len(requests))

    def _fail_expired(self, requests: Sequence[Request]) -> None:
        self._fail(requests, refusals.deadline_passed)
        self._news.rejected(Reason.DEADLINE_EXCEEDED, sum(request.num_rows for request in requests))

    def _resolved(self, num_requests: int) -> None:
        """Counts futures that have been resolved. Under the lock."""
        self._num_open -= num_requests
        if not self._num_open:
            self._all_done.notify_all()


def _order(deadline: float | None, now: float) -> float:
    """When a request submitted now is due, for the queue: its deadline, or patience's end where that comes first."""
    patient = now + PATIENCE_S
    return patient if deadline is None or deadline > patient else deadline


def _alike(entry: Entry, other: Entry) -> bool:
    """Whether two rows may share a run without being padded."""
    assert entry.row is not None
    assert other.row is not None
    return entry.row.shape_key == other.row.shape_key and entry.units == other.units


def _padded(batch: Sequence[Entry]) -> int:
    """Padded units of a batch: its longest row's, times its rows."""
    return max(entry.units for entry in batch) * sum(entry.num_rows for entry in batch)
