"""The circumstances of one request below `rpc`: its deadline, its cancellation, the times it took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["RequestContext", "Timings"]


@dataclass(slots=True)
class Timings:
    """Where a request's time went, nanoseconds; stages add up to no more than the caller measured.

    Of a request of several rows the stages are those of the row that was answered last: the way that took longest.
    """

    queue_ns: int = 0
    preprocess_ns: int = 0
    infer_ns: int = 0
    postprocess_ns: int = 0
    batch_size: int = 0  # rows in the largest engine batch that carried a row of this request
    model: str = ""
    model_version: str = ""


class RequestContext:
    """Deadline (`time.monotonic()` seconds, None: unbounded), cancellation and timings of one request. Thread-safe."""

    __slots__ = ("_callbacks", "_lock", "cancelled", "deadline", "request_id", "timings")

    def __init__(self, *, deadline: float | None = None, request_id: str = "") -> None:
        self.deadline = deadline
        self.request_id = request_id
        self.timings = Timings()
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
