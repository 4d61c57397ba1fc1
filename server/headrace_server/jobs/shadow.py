"""ShadowCopies: requests that were answered are asked again of another version, and the answers compared.

engine worker    answer handed over ─▶ offer: into a bounded queue, or dropped (an answer that is computed on the
                 transport's thread is offered just before it is handed over)
shadow's thread  lease ─▶ the version's own preparation ─▶ its Batcher ─▶ compare ─▶ statistics, metrics, rules

A copy never delays or fails the reply: it begins after it. One thread takes one copy after the other, so that a slow
shadow has one request in its engine and no more, and rests after each as long as it held the interpreter. Its priority
for the operating system is the ordinary one: with a lower one it would be kept waiting while it holds the interpreter,
and everyone else with it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Protocol

from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.comparison import compare, num_answers
from headrace_server.jobs.submission import Admit, Leases
from headrace_server.serving.context import RequestContext
from headrace_server.serving.row_servable import RowServable
from headrace_server.serving.statistics import Comparison
from headrace_server.serving.version import Lease

__all__ = ["ShadowCopies", "ShadowObserver"]

logger = logging.getLogger(__name__)

MAX_WAITING = 64  # copies
MAX_WAITING_BYTES = 64 << 20  # of the rows that were made of them
_PATIENCE_S = 60.0  # that a copy may take
_LONGEST_REST_S = 0.25

# The version was not asked, or could not be: nothing is said of its answers.
_NOT_ASKED = frozenset(
    {
        Reason.QUEUE_FULL,
        Reason.DEADLINE_INFEASIBLE,
        Reason.CANCELLED,
        Reason.SHUTTING_DOWN,
        Reason.MODEL_NOT_FOUND,
        Reason.VERSION_NOT_FOUND,
        Reason.MODEL_LOADING,
        Reason.MODEL_FAILED,
    }
)


class ShadowObserver(Protocol):
    """Told of every copy, on any thread; quick, raises nothing."""

    def on_copy(self, model: str, version: str, latency_ns: int, compared: Comparison) -> None:
        """A copy came back and was compared."""

    def on_copy_failed(self, model: str, version: str) -> None:
        """A copy failed."""

    def on_copy_dropped(self, model: str, version: str) -> None:
        """A copy was not made."""


@dataclass(frozen=True, slots=True)
class _Copy:
    model: str
    version: str
    admit: Admit[Any]
    answer: Any
    size_bytes: int


class ShadowCopies:
    """The copies of one server's requests. Thread-safe.

    versions     where the shadow is leased
    max_waiting  copies that wait; beyond it, or beyond 64 MiB of rows, they are dropped
    """

    def __init__(
        self, versions: Leases, observer: ShadowObserver | None = None, *, max_waiting: int = MAX_WAITING
    ) -> None:
        self._versions = versions
        self._observer = observer
        self._max_waiting = max_waiting
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting: deque[_Copy] = deque()
        self._waiting_bytes = 0
        self._dropped: Counter[tuple[str, str]] = Counter()  # not yet told to their versions
        self._thread: threading.Thread | None = None
        self._context: RequestContext | None = None  # of the copy under way
        self._closed = threading.Event()

    def offer(self, model: str, version: str, admit: Admit[Any], size_bytes: int, answer: Any) -> None:
        """As `Copies.offer`: the copy is asked of `version` some time later, or dropped."""
        if not num_answers(answer):
            return
        with self._lock:
            if self._closed.is_set():
                return
            full = len(self._waiting) >= self._max_waiting or self._waiting_bytes + size_bytes > MAX_WAITING_BYTES
            if full:
                self._dropped[model, version] += 1
            else:
                self._waiting.append(_Copy(model, version, admit, answer, size_bytes))
                self._waiting_bytes += size_bytes
                self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="headrace-shadow", daemon=True)
                self._thread.start()
        if full and self._observer is not None:
            self._observer.on_copy_dropped(model, version)

    def close(self, timeout_s: float = 10.0) -> None:
        """Drops what waits, gives up the copy under way, and ends the thread."""
        with self._lock:
            self._closed.set()
            self._waiting.clear()
            thread, context = self._thread, self._context
            self._changed.notify()
        if context is not None:
            context.cancel()
        if thread is not None:
            thread.join(timeout_s)

    # the thread

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._waiting and not self._closed.is_set():
                    self._changed.wait()
                if self._closed.is_set():
                    return
                copy = self._waiting.popleft()
                self._waiting_bytes -= copy.size_bytes
                dropped, self._dropped = self._dropped, Counter()
                # It gives way to requests with a deadline of their own, and is not waited for without end.
                context = self._context = RequestContext(deadline=time.monotonic() + _PATIENCE_S)
            began = time.thread_time()
            try:
                self._ask(copy, context)
                self._tell_dropped(dropped)
            except Exception:
                logger.exception("model %s/%s: a fault in shadowing", copy.model, copy.version)
            del copy
            self._closed.wait(min(_LONGEST_REST_S, time.thread_time() - began))

    def _ask(self, copy: _Copy, context: RequestContext) -> None:
        try:
            lease = self._versions.acquire(copy.model, version=copy.version)
        except ServingError:  # it has gone since, or has to be brought back into memory first
            with self._lock:
                self._dropped[copy.model, copy.version] += 1
            if self._observer is not None:
                self._observer.on_copy_dropped(copy.model, copy.version)
            return
        with lease:
            assert lease.version is not None
            began = perf_counter_ns()
            try:
                answer = _answer(copy, lease, context)
            except Exception as error:
                self._tell_failed(copy, lease, error)
                return
            self._tell(copy, lease, perf_counter_ns() - began, compare(copy.answer, answer))

    def _tell(self, copy: _Copy, lease: Lease, latency_ns: int, compared: Comparison) -> None:
        assert lease.version is not None
        lease.version.statistics.on_copy(latency_ns, compared)
        if self._observer is not None:
            self._observer.on_copy(copy.model, copy.version, latency_ns, compared)

    def _tell_failed(self, copy: _Copy, lease: Lease, error: Exception) -> None:
        assert lease.version is not None
        statistics = lease.version.statistics
        if isinstance(error, ServingError) and error.reason in _NOT_ASKED:
            statistics.on_copies_dropped()
            if self._observer is not None:
                self._observer.on_copy_dropped(copy.model, copy.version)
            return
        detail = error.detail if isinstance(error, ServingError) else ""
        logger.info("model %s/%s: a copy failed: %s %s", copy.model, copy.version, error, detail)
        statistics.on_copy_failed(num_answers(copy.answer))
        if self._observer is not None:
            self._observer.on_copy_failed(copy.model, copy.version)

    def _tell_dropped(self, dropped: Counter[tuple[str, str]]) -> None:
        """The versions' own statistics of what `offer` dropped, on whose thread no lease is taken."""
        for (model, version), count in dropped.items():
            try:
                with self._versions.acquire(model, version=version) as lease:
                    assert lease.version is not None
                    lease.version.statistics.on_copies_dropped(count)
            except ServingError:
                pass  # it has gone since, and its statistics with it


def _answer(copy: _Copy, lease: Lease, context: RequestContext) -> Any:
    """What the leased version answers to the copy, all but the engine's run on this thread."""
    servable = lease.servable
    context.timings.model, context.timings.model_version = servable.model.name, servable.model.version
    assert isinstance(servable, RowServable), "requests of rows are copied, to models that read rows"
    task, rows, finish = copy.admit(servable.model)
    batch = servable.submit(task, rows, context)
    try:
        results = batch.result(_PATIENCE_S)
    except TimeoutError:
        batch.cancel()
        raise
    return finish(results)
