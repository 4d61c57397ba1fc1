"""VersionObserver: counts a version's runs in its statistics, and passes on to the server's metrics what they hear."""

from __future__ import annotations

from headrace_server.errors import Reason
from headrace_server.serving.batch import BatchObserver, StageTimes
from headrace_server.serving.decoder.observer import DecoderObserver, StepReport
from headrace_server.serving.statistics import VersionStatistics

__all__ = ["VersionObserver"]


class VersionObserver:
    """A BatchObserver and a DecoderObserver of one version.

    Of a decoder each step that advances sequences counts as a run of as many rows; one that only reads a part of a
    prompt, as a run of one row.
    """

    def __init__(
        self,
        statistics: VersionStatistics,
        batches: BatchObserver | None = None,
        decoders: DecoderObserver | None = None,
    ) -> None:
        self.tell(statistics, batches, decoders)

    def tell(
        self, statistics: VersionStatistics, batches: BatchObserver | None, decoders: DecoderObserver | None
    ) -> None:
        """Whom it tells from now on."""
        self._statistics = statistics
        self._batches = batches
        self._decoders = decoders

    def on_batch(self, model: str, version: str, size: int, stages: StageTimes) -> None:
        self._statistics.on_batch(size, stages)
        if self._batches is not None:
            self._batches.on_batch(model, version, size, stages)

    def on_rejected(self, model: str, version: str, reason: Reason, rows: int) -> None:
        if self._batches is not None:
            self._batches.on_rejected(model, version, reason, rows)

    def on_depth(self, model: str, version: str, depth: int) -> None:
        if self._batches is not None:
            self._batches.on_depth(model, version, depth)

    def on_step(self, model: str, version: str, report: StepReport) -> None:
        if report.num_decode_tokens or report.num_prefill_tokens:
            stages = StageTimes(0, 0, int(report.seconds * 1e9), 0)
            self._statistics.on_batch(max(1, report.num_decode_tokens), stages)
        if self._decoders is not None:
            self._decoders.on_step(model, version, report)

    def on_closed(self, model: str, version: str) -> None:
        if self._decoders is not None:
            self._decoders.on_closed(model, version)

    def on_ended(self, model: str, version: str, outcome: str) -> None:
        if self._decoders is not None:
            self._decoders.on_ended(model, version, outcome)

    def on_refused(self, model: str, version: str, reason: Reason) -> None:
        if self._decoders is not None:
            self._decoders.on_refused(model, version, reason)
