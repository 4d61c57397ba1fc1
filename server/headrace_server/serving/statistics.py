"""VersionStatistics: what one version has answered since it was loaded, and the record of a request that it is told."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field, replace
from typing import Protocol

from headrace_server.errors import Reason
from headrace_server.serving.batch import StageTimes
from headrace_server.serving.context import Timings

__all__ = ["RequestObserver", "RequestRecord", "StatisticsSnapshot", "VersionStatistics"]


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as it ended. `timings` are final; `latency_ns` runs from the lease to the answer or the failure.

    failure  None: answered
    """

    model: str
    version: str
    timings: Timings
    latency_ns: int
    num_rows: int
    failure: Reason | None = None


class RequestObserver(Protocol):
    """Told of every request that a version answered or failed, on whichever thread ended it. Quick, and never the
    cause of an error: what it raises is logged and dropped."""

    def on_request(self, record: RequestRecord) -> None:
        """A request has ended; its answer is not told yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsSnapshot:
    """Counts and sums of one version, times in nanoseconds; those of requests that failed are not in the times."""

    num_succeeded: int = 0
    num_failed: int = 0
    num_rows: int = 0
    num_batches: int = 0
    queue_ns: int = 0
    preprocess_ns: int = 0
    infer_ns: int = 0
    postprocess_ns: int = 0
    latency_ns: int = 0
    last_request_time: float | None = None  # Unix seconds
    batch_sizes: dict[int, int] = field(default_factory=dict)  # runs, by number of rows


class VersionStatistics:
    """Counts one version's requests and runs. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums = StatisticsSnapshot()

    def on_request(self, record: RequestRecord) -> None:
        """A request has ended."""
        with self._lock:
            sums, timings = self._sums, record.timings
            if record.failure is not None:
                self._sums = replace(sums, num_failed=sums.num_failed + 1, last_request_time=time.time())
                return
            self._sums = replace(
                sums,
                num_succeeded=sums.num_succeeded + 1,
                num_rows=sums.num_rows + record.num_rows,
                queue_ns=sums.queue_ns + timings.queue_ns,
                preprocess_ns=sums.preprocess_ns + timings.preprocess_ns,
                infer_ns=sums.infer_ns + timings.infer_ns,
                postprocess_ns=sums.postprocess_ns + timings.postprocess_ns,
                latency_ns=sums.latency_ns + record.latency_ns,
                last_request_time=time.time(),
            )

    def on_batch(self, size: int, stages: StageTimes) -> None:
        """A run of `size` rows has ended."""
        with self._lock:
            sums = self._sums
            sizes = {**sums.batch_sizes, size: sums.batch_sizes.get(size, 0) + 1}
            self._sums = replace(sums, num_batches=sums.num_batches + 1, batch_sizes=sizes)

    def snapshot(self) -> StatisticsSnapshot:
        """As it stands."""
        with self._lock:
            return self._sums
