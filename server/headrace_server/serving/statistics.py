"""VersionStatistics: what one version has answered since it was loaded, and the record of a request that it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import time
from types import MappingProxyType
from typing import Protocol

from headrace_server.errors import Reason
from headrace_server.serving.batch import StageTimes
from headrace_server.serving.context import Timings
from headrace_server.serving.latency import LatencyHistogram, bucket_of
from headrace_server.serving.window import SlidingWindow

__all__ = [
    "BatchSums",
    "Comparison",
    "GroupRecord",
    "RequestObserver",
    "RequestObservers",
    "RequestRecord",
    "ShadowSnapshot",
    "StatisticsSnapshot",
    "VersionStatistics",
]

_PENDING = 64  # requests put aside


@dataclass(slots=True)  # not frozen: that would cost more than counting it does
class RequestRecord:
    """One request as it ended. `timings` are final; `latency_ns` runs from the lease to the answer or the failure.

    failure   None: answered
    fault     the failure is the version's own (`serving.fault`): it counts for rules that roll a version back
    by_split  a split chose the version
    """

    model: str
    version: str
    timings: Timings
    latency_ns: int
    num_rows: int
    failure: Reason | None = None
    fault: bool = False
    by_split: bool = False


@dataclass(slots=True)
class GroupRecord:
    """Requests that were answered together: a RequestRecord of each, but for what they share.

    timings    of each, but for how long it waited
    queues_ns  by request: how long it waited
    num_rows   of each
    """

    model: str
    version: str
    timings: Timings
    queues_ns: Sequence[int]
    latency_ns: int
    num_rows: int


class RequestObserver(Protocol):
    """Told of every request that a version answered or failed, on whichever thread ended it. Quick, and never the
    cause of an error: what it raises is logged and dropped."""

    def on_request(self, record: RequestRecord) -> None:
        """A request has ended; its answer is not told yet."""

    def on_group(self, record: GroupRecord) -> None:
        """Requests that no split chose the version for have been answered together."""


class RequestObservers:
    """Several, as one."""

    def __init__(self, *observers: RequestObserver) -> None:
        self._observers = observers

    def on_request(self, record: RequestRecord) -> None:
        for observer in self._observers:
            observer.on_request(record)

    def on_group(self, record: GroupRecord) -> None:
        for observer in self._observers:
            observer.on_group(record)


@dataclass(frozen=True, slots=True)
class BatchSums:
    """Runs of one size: how many, and their times in all, nanoseconds. Of a decoder: steps that advanced so many
    sequences, all of their time as `infer_ns`."""

    num_batches: int = 0
    collate_ns: int = 0
    infer_ns: int = 0
    reduce_ns: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a version gave beside what was served: of so many answers so many agree; of so many scores that both gave
    the |differences| in all."""

    num_answers: int
    num_agreeing: int
    sum_difference: float = 0.0
    num_scores: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowSnapshot:
    """How a version fares that is asked beside the one that answers.

    num_requests           copies that were computed or failed
    num_failed             of these, the failed; the served request had been answered
    num_dropped            copies that were not made: too many waited, or the version could not take them
    num_answers            answers compared: one an input, a document, a pair or a tensor
    agreement              share of these that agree, 0…1; 0 where none was compared
    mean_score_difference  mean |difference| of scores, both had; for embeddings of the cosine from 1
    p99_latency_ns         of copies that were computed, within 1%; 0 where there are none
    """

    num_requests: int = 0
    num_failed: int = 0
    num_dropped: int = 0
    num_answers: int = 0
    agreement: float = 0.0
    mean_score_difference: float = 0.0
    p99_latency_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StatisticsSnapshot:
    """Counts and sums of one version, times in nanoseconds; those of requests that failed are in `failed_ns` alone.

    Copies of requests that a version computes as a shadow are in its batches and under `shadow`, and in nothing else.
    """

    num_succeeded: int = 0
    num_failed: int = 0  # failed or refused, once the version was chosen
    num_rows: int = 0
    num_batches: int = 0
    queue_ns: int = 0
    preprocess_ns: int = 0
    infer_ns: int = 0
    postprocess_ns: int = 0
    latency_ns: int = 0  # from the lease to the answer
    failed_ns: int = 0  # from the lease to the failure
    last_request_time: float | None = None  # Unix seconds
    batches: Mapping[int, BatchSums] = field(default_factory=lambda: MappingProxyType({}))  # by number of rows
    shadow: ShadowSnapshot | None = None  # None: no copy was ever sent to it

    @property
    def batch_sizes(self) -> dict[int, int]:
        """Number of runs, by number of rows."""
        return {size: sums.num_batches for size, sums in self.batches.items()}


class VersionStatistics:
    """Counts one version's requests and runs. Thread-safe; about 0.5 µs a request that is answered.

    What is told of a request is put aside, by one append that needs no lock, and added up many requests at a time.
    """

    __slots__ = (
        "_batches", "_failed_ns", "_last", "_lock", "_num_failed", "_num_succeeded", "_pending", "_shadow", "_sums",
        "_windows",
    )  # fmt: skip

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num_succeeded = self._num_failed = self._failed_ns = 0
        self._sums = [0, 0, 0, 0, 0, 0]  # rows, queue, preprocess, infer, postprocess, latency
        self._pending: list[tuple[int, ...]] = []  # what is not yet in the sums, in their order
        self._last: float | None = None
        self._batches: dict[int, list[int]] = {}  # by size: runs, collate, infer, reduce
        self._shadow: _ShadowSums | None = None
        self._windows: tuple[SlidingWindow, ...] = ()

    def on_request(self, record: RequestRecord) -> None:
        """A request has ended."""
        self._last = time()
        if record.failure is None:
            timings, pending = record.timings, self._pending
            pending.append(
                (
                    record.num_rows,
                    timings.queue_ns,
                    timings.preprocess_ns,
                    timings.infer_ns,
                    timings.postprocess_ns,
                    record.latency_ns,
                )
            )
            if len(pending) >= _PENDING:
                with self._lock:
                    self._add_up()
        else:
            with self._lock:
                self._num_failed += 1
                self._failed_ns += record.latency_ns
        if self._windows and (record.fault or record.failure is None):
            for window in self._windows:
                window.add_request(record.latency_ns, record.fault)

    def on_group(self, record: GroupRecord) -> None:
        """Requests have been answered together."""
        self._last = time()
        timings, num_rows, latency_ns = record.timings, record.num_rows, record.latency_ns
        shared = (timings.preprocess_ns, timings.infer_ns, timings.postprocess_ns, latency_ns)
        self._pending += [(num_rows, queue_ns, *shared) for queue_ns in record.queues_ns]
        if len(self._pending) >= _PENDING:
            with self._lock:
                self._add_up()
        for window in self._windows:
            for _ in record.queues_ns:
                window.add_request(latency_ns, False)

    def on_batch(self, size: int, stages: StageTimes) -> None:
        """A run of `size` rows has ended."""
        with self._lock:
            sums = self._batches.get(size)
            if sums is None:
                sums = self._batches[size] = [0, 0, 0, 0]
            sums[0] += 1
            sums[1] += stages.collate_ns
            sums[2] += stages.infer_ns
            sums[3] += stages.reduce_ns

    def on_copy(self, latency_ns: int, compared: Comparison) -> None:
        """A copy came back and was compared."""
        with self._lock:
            sums = self._shadowed()
            sums.num_requests += 1
            sums.num_answers += compared.num_answers
            sums.num_agreeing += compared.num_agreeing
            sums.sum_difference += compared.sum_difference
            sums.num_scores += compared.num_scores
            sums.latency.add(bucket_of(latency_ns))
        for window in self._windows:
            window.add_copy(compared.num_answers, compared.num_answers - compared.num_agreeing)

    def on_copy_failed(self, num_answers: int) -> None:
        """A copy failed, whose request the other version gave so many answers: for the rules they all disagree."""
        with self._lock:
            sums = self._shadowed()
            sums.num_requests += 1
            sums.num_failed += 1
        for window in self._windows:
            window.add_copy(num_answers, num_answers)

    def on_copies_dropped(self, count: int = 1) -> None:
        """Copies were not made."""
        with self._lock:
            self._shadowed().num_dropped += count

    def window(self, window_s: float, make: Callable[[float], SlidingWindow] = SlidingWindow) -> SlidingWindow:
        """The sliding window of this length; begun now, by `make`, where there was none."""
        with self._lock:
            found = next((window for window in self._windows if window.window_s == window_s), None)
            if found is None:
                found = make(window_s)
                self._windows = (*self._windows, found)
            return found

    def close_windows(self) -> None:
        """Forgets every window; counting costs less then."""
        with self._lock:
            self._windows = ()

    def snapshot(self) -> StatisticsSnapshot:
        """As it stands."""
        with self._lock:
            self._add_up()
            num_rows, queue_ns, preprocess_ns, infer_ns, postprocess_ns, latency_ns = self._sums
            return StatisticsSnapshot(
                num_succeeded=self._num_succeeded,
                num_failed=self._num_failed,
                num_rows=num_rows,
                num_batches=sum(sums[0] for sums in self._batches.values()),
                queue_ns=queue_ns,
                preprocess_ns=preprocess_ns,
                infer_ns=infer_ns,
                postprocess_ns=postprocess_ns,
                latency_ns=latency_ns,
                failed_ns=self._failed_ns,
                last_request_time=self._last,
                batches=MappingProxyType({size: BatchSums(*sums) for size, sums in sorted(self._batches.items())}),
                shadow=None if self._shadow is None else self._shadow.snapshot(),
            )

    def _add_up(self) -> None:
        """Under the lock; others may append meanwhile."""
        count = len(self._pending)
        if count:
            part = self._pending[:count]
            del self._pending[:count]
            self._num_succeeded += count
            self._sums = [
                total + sum(column) for total, column in zip(self._sums, zip(*part, strict=True), strict=True)
            ]

    def _shadowed(self) -> _ShadowSums:
        """Under the lock."""
        if self._shadow is None:
            self._shadow = _ShadowSums()
        return self._shadow


class _ShadowSums:
    __slots__ = (
        "latency", "num_agreeing", "num_answers", "num_dropped", "num_failed", "num_requests", "num_scores",
        "sum_difference",
    )  # fmt: skip

    def __init__(self) -> None:
        self.num_requests = self.num_failed = self.num_dropped = 0
        self.num_answers = self.num_agreeing = self.num_scores = 0
        self.sum_difference = 0.0
        self.latency = LatencyHistogram()

    def snapshot(self) -> ShadowSnapshot:
        return ShadowSnapshot(
            num_requests=self.num_requests,
            num_failed=self.num_failed,
            num_dropped=self.num_dropped,
            num_answers=self.num_answers,
            agreement=self.num_agreeing / self.num_answers if self.num_answers else 0.0,
            mean_score_difference=self.sum_difference / self.num_scores if self.num_scores else 0.0,
            p99_latency_ns=self.latency.percentile_ns(0.99),
        )
