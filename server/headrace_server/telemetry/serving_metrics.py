"""What is counted of models at work: implements `serving.batch.BatchObserver` and `serving.statistics.RequestObserver`.

headrace_request_seconds{model,version}                from choosing the version to its answer
headrace_request_stage_seconds{model,version,stage}    queue, preprocess, infer, postprocess of a request: its Timings
headrace_failed_requests_total{model,version,reason}   requests that a version did not answer
headrace_batch_stage_seconds{model,version,stage}      queue (its longest wait), collate, infer, reduce of an engine run
headrace_batch_rows{model,version}                     rows an engine run
headrace_queue_rejected_rows_total{model,version,reason}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headrace_server.errors import Reason
from headrace_server.telemetry.instruments import Counters, Family, Histograms
from headrace_server.telemetry.rpc_metrics import SECONDS

__all__ = ["AnsweredGroup", "BatchStages", "EndedRequest", "RequestTimes", "ServingMetrics"]

_MODEL = ("model", "version")
_REQUEST_STAGES = ("queue", "preprocess", "infer", "postprocess")
_BATCH_STAGES = ("queue", "collate", "infer", "reduce")
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class BatchStages(Protocol):
    """Where one batch's time went, nanoseconds."""

    @property
    def queue_ns(self) -> int: ...
    @property
    def collate_ns(self) -> int: ...
    @property
    def infer_ns(self) -> int: ...
    @property
    def reduce_ns(self) -> int: ...


class RequestTimes(Protocol):
    """Where one request's time went, nanoseconds."""

    @property
    def queue_ns(self) -> int: ...
    @property
    def preprocess_ns(self) -> int: ...
    @property
    def infer_ns(self) -> int: ...
    @property
    def postprocess_ns(self) -> int: ...


class EndedRequest(Protocol):
    """A request as it ended."""

    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def timings(self) -> RequestTimes: ...
    @property
    def latency_ns(self) -> int: ...
    @property
    def failure(self) -> Reason | None: ...  # None: answered


class AnsweredGroup(Protocol):
    """Requests that were answered together; they share `timings`, but for how long each waited."""

    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def timings(self) -> RequestTimes: ...
    @property
    def queues_ns(self) -> Sequence[int]: ...
    @property
    def latency_ns(self) -> int: ...


class _OfVersion:
    """The instruments of one version of a model, at hand."""

    __slots__ = ("batch", "request", "rows", "seconds")

    def __init__(self, metrics: ServingMetrics, model: str, version: str) -> None:
        self.seconds = metrics.seconds.child(model, version)
        self.request = [metrics.stages.child(model, version, stage) for stage in _REQUEST_STAGES]
        self.batch = [metrics.batch_stages.child(model, version, stage) for stage in _BATCH_STAGES]
        self.rows = metrics.rows.child(model, version)


class ServingMetrics:
    """Told of every request and batch of a model; some microseconds each, from any thread."""

    def __init__(self) -> None:
        self.seconds = Histograms(
            "headrace_request_seconds", "Seconds from choosing the version to its answer.", *_MODEL, bounds=SECONDS
        )
        self.stages = Histograms(
            "headrace_request_stage_seconds", "Seconds that an answered request spent in a stage.",
            *_MODEL, "stage", bounds=SECONDS,
        )  # fmt: skip
        self.batch_stages = Histograms(
            "headrace_batch_stage_seconds", "Seconds that an engine run spent in a stage.",
            *_MODEL, "stage", bounds=SECONDS,
        )  # fmt: skip
        self.rows = Histograms("headrace_batch_rows", "Rows an engine run.", *_MODEL, bounds=_ROWS)
        self._failed = Counters(
            "headrace_failed_requests", "Requests that a version did not answer.", *_MODEL, "reason"
        )
        self._rejected = Counters(
            "headrace_queue_rejected_rows", "Rows that a queue refused, or that left it unserved.", *_MODEL, "reason"
        )
        self._known: dict[tuple[str, str], _OfVersion] = {}

    @property
    def families(self) -> tuple[Family, ...]:
        return (self.seconds, self.stages, self._failed, self.batch_stages, self.rows, self._rejected)

    def on_request(self, record: EndedRequest) -> None:
        """A request has ended; those that failed have no times."""
        failure = record.failure
        if failure is not None:
            self._failed.child(record.model, record.version, failure.value).add()
            return
        version_of, timings = self._of(record.model, record.version), record.timings
        queue, preprocess, infer, postprocess = version_of.request
        version_of.seconds.observe(record.latency_ns * 1e-9)
        queue.observe(timings.queue_ns * 1e-9)
        preprocess.observe(timings.preprocess_ns * 1e-9)
        infer.observe(timings.infer_ns * 1e-9)
        postprocess.observe(timings.postprocess_ns * 1e-9)

    def on_group(self, record: AnsweredGroup) -> None:
        """Requests have been answered together."""
        version_of, timings, queues_ns = self._of(record.model, record.version), record.timings, record.queues_ns
        queue, preprocess, infer, postprocess = version_of.request
        count = len(queues_ns)
        version_of.seconds.observe_all([record.latency_ns * 1e-9] * count)
        queue.observe_all([queue_ns * 1e-9 for queue_ns in queues_ns])
        preprocess.observe_all([timings.preprocess_ns * 1e-9] * count)
        infer.observe_all([timings.infer_ns * 1e-9] * count)
        postprocess.observe_all([timings.postprocess_ns * 1e-9] * count)

    def on_batch(self, model: str, version: str, size: int, stages: BatchStages) -> None:
        """A batch of `size` rows was computed."""
        version_of = self._of(model, version)
        queue, collate, infer, reduce = version_of.batch
        version_of.rows.observe(size)
        queue.observe(stages.queue_ns * 1e-9)
        collate.observe(stages.collate_ns * 1e-9)
        infer.observe(stages.infer_ns * 1e-9)
        reduce.observe(stages.reduce_ns * 1e-9)

    def on_rejected(self, model: str, version: str, reason: Reason, rows: int) -> None:
        """A request of `rows` rows was refused at the door, or left the queue unserved."""
        self._rejected.child(model, version, reason.value).add(rows)

    def on_depth(self, model: str, version: str, depth: int) -> None:
        """`depth` rows are waiting now. Not kept: who scrapes reads the queue itself, which is never out of date."""

    def _of(self, model: str, version: str) -> _OfVersion:
        found = self._known.get((model, version))
        if found is None:
            found = self._known[model, version] = _OfVersion(self, model, version)
        return found
