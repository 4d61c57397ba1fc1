"""What is counted of models at work: implements `serving.batch.BatchObserver` and `serving.statistics.RequestObserver`.

headrace_stage_seconds{model,version,stage}   preprocess, postprocess of a request;
                                              queue (its longest wait), collate, infer, reduce of a batch
headrace_batch_rows{model,version}            rows an engine run
headrace_queue_rejected_rows_total{model,version,reason}
"""

from __future__ import annotations

from typing import Protocol

from headrace_server.errors import Reason
from headrace_server.telemetry.instruments import Counters, Family, Histogram, Histograms
from headrace_server.telemetry.rpc_metrics import SECONDS

__all__ = ["BatchStages", "EndedRequest", "ServingMetrics"]

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
    def preprocess_ns(self) -> int: ...
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
    def failure(self) -> Reason | None: ...  # None: answered


class _OfVersion:
    """The instruments of one version of a model, at hand."""

    __slots__ = ("collate", "infer", "postprocess", "preprocess", "queue", "reduce", "rows")

    def __init__(self, stages: Histograms, rows: Histogram, model: str, version: str) -> None:
        self.preprocess = stages.child(model, version, "preprocess")
        self.queue = stages.child(model, version, "queue")
        self.collate = stages.child(model, version, "collate")
        self.infer = stages.child(model, version, "infer")
        self.reduce = stages.child(model, version, "reduce")
        self.postprocess = stages.child(model, version, "postprocess")
        self.rows = rows


class ServingMetrics:
    """Told of every request and batch of a model; some microseconds each, from any thread."""

    def __init__(self) -> None:
        self._stages = Histograms(
            "headrace_stage_seconds", "Seconds that a request or a batch spent in a stage.",
            "model", "version", "stage", bounds=SECONDS,
        )  # fmt: skip
        self._rows = Histograms("headrace_batch_rows", "Rows an engine run.", "model", "version", bounds=_ROWS)
        self._rejected = Counters(
            "headrace_queue_rejected_rows", "Rows that a queue refused, or that left it unserved.",
            "model", "version", "reason",
        )  # fmt: skip
        self._known: dict[tuple[str, str], _OfVersion] = {}

    @property
    def families(self) -> tuple[Family, ...]:
        return (self._stages, self._rows, self._rejected)

    def on_request(self, record: EndedRequest) -> None:
        """A request has ended; those that failed have no times."""
        if record.failure is None:
            version_of = self._of(record.model, record.version)
            version_of.preprocess.observe(record.timings.preprocess_ns * 1e-9)
            version_of.postprocess.observe(record.timings.postprocess_ns * 1e-9)

    def on_batch(self, model: str, version: str, size: int, stages: BatchStages) -> None:
        """A batch of `size` rows was computed."""
        version_of = self._of(model, version)
        version_of.rows.observe(size)
        version_of.queue.observe(stages.queue_ns * 1e-9)
        version_of.collate.observe(stages.collate_ns * 1e-9)
        version_of.infer.observe(stages.infer_ns * 1e-9)
        version_of.reduce.observe(stages.reduce_ns * 1e-9)

    def on_rejected(self, model: str, version: str, reason: Reason, rows: int) -> None:
        """A request of `rows` rows was refused at the door, or left the queue unserved."""
        self._rejected.child(model, version, reason.value).add(rows)

    def on_depth(self, model: str, version: str, depth: int) -> None:
        """`depth` rows are waiting now. Not kept: who scrapes reads the queue itself, which is never out of date."""

    def _of(self, model: str, version: str) -> _OfVersion:
        found = self._known.get((model, version))
        if found is None:
            found = self._known[model, version] = _OfVersion(
                self._stages, self._rows.child(model, version), model, version
            )
        return found
