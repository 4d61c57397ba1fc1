"""The circumstances of one request below `rpc`: its deadline, its cancellation, the times it took, its trace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["BatchTrace", "RequestContext", "RequestTrace", "Timings"]


class BatchTrace(Protocol):
    """The trace of one engine run."""


class RequestTrace(Protocol):
    """Where a traced request's time is told, in `time.perf_counter_ns()`. Quick, from any thread, raises nothing."""

    @property
    def trace_id(self) -> str: ...  # 32 hexadecimal digits

    def add(self, stage: str, name: str, began_ns: int, ended_ns: int) -> None:
        """It spent this time; `stage` is the member of Timings that counts it."""

    def event(self, name: str, at_ns: int) -> None:
        """Something happened in what is told next."""

    def batch(
        self,
        requests: Sequence[RequestTrace],
        *,
        model: str,
        version: str,
        num_rows: int,
        num_units: int,
        began_ns: int,
        ended_ns: int,
    ) -> BatchTrace:
        """The trace of an engine run that carried rows of `requests`, this one among them."""
        ...

    def joined(self, batch: BatchTrace) -> None:
        """A run carried rows of it: what the engine's time, told next, has to do with."""


@dataclass(slots=True)
class Timings:
    """The one account of where a request's time went, nanoseconds; stages add up to no more than the caller measured.

    Trailing metadata, statistics, metrics and traces are made of it. It is whole when the lease on the model ends, and
    counts no reading of requests from the wire and no writing of replies: those belong to the RPC. Of a request of
    several rows, or several generated texts, the stages are those of the one that was answered last: the way that took
    longest.
    """

    queue_ns: int = 0  # waiting for preparation, then for a place in a batch or a slot
    preprocess_ns: int = 0  # inputs into rows, rows into a batch
    infer_ns: int = 0
    postprocess_ns: int = 0  # the engine's outputs into rows' results, and those into the answer
    batch_size: int = 0  # rows in the largest engine batch that carried a row of this request
    model: str = ""
    model_version: str = ""
    request_id: str = ""
    trace: RequestTrace | None = None  # None: not traced

    @property
    def log_fields(self) -> dict[str, str]:
        """What every line of the log about this request carries: request_id, trace_id, model, model_version, as far as
        they are known."""
        fields = {
            "request_id": self.request_id,
            "trace_id": "" if self.trace is None else self.trace.trace_id,
            "model": self.model,
            "model_version": self.model_version,
        }
        return {name: value for name, value in fields.items() if value}

    # Each stretch of time is added once, by its beginning and end in `time.perf_counter_ns()`; `name` is for traces.

    def waited(self, began_ns: int, ended_ns: int, name: str = "queue") -> None:
        """It waited."""
        self.queue_ns += ended_ns - began_ns
        if self.trace is not None:
            self.trace.add("queue", name, began_ns, ended_ns)

    def prepared(self, began_ns: int, ended_ns: int, name: str = "preprocess") -> None:
        """Its inputs were prepared."""
        self.preprocess_ns += ended_ns - began_ns
        if self.trace is not None:
            self.trace.add("preprocess", name, began_ns, ended_ns)

    def inferred(self, began_ns: int, ended_ns: int, name: str = "infer") -> None:
        """The engine worked for it."""
        self.infer_ns += ended_ns - began_ns
        if self.trace is not None:
            self.trace.add("infer", name, began_ns, ended_ns)

    def finished(self, began_ns: int, ended_ns: int, name: str = "post") -> None:
        """Its answer was made."""
        self.postprocess_ns += ended_ns - began_ns
        if self.trace is not None:
            self.trace.add("postprocess", name, began_ns, ended_ns)


class RequestContext:
    """Deadline (`time.monotonic()` seconds, None: unbounded), cancellation and timings of one request. Thread-safe."""

    __slots__ = ("_callbacks", "_lock", "cancelled", "deadline", "request_id", "timings")

    def __init__(
        self, *, deadline: float | None = None, request_id: str = "", trace: RequestTrace | None = None
    ) -> None:
        self.deadline = deadline
        self.request_id = request_id
        self.timings = Timings(request_id=request_id, trace=trace)
        self.cancelled = False
        self._callbacks: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def time_remaining(self) -> float | None:
        """Seconds left, never negative; None when unbounded."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    @property
    def expired(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def cancel(self) -> None:
        """Marks the request cancelled and runs the callbacks once, on this thread. Later calls do nothing."""
        with self._lock:
            if self.cancelled:
                return
            self.cancelled = True
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()

    def on_cancel(self, callback: Callable[[], object]) -> None:
        """Runs `callback` when the request is cancelled; at once if it has been."""
        with self._lock:
            if not self.cancelled:
                self._callbacks.append(callback)
                return
        callback()
