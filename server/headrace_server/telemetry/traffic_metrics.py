"""What is counted of splits, rollbacks and shadows: implements `serving.statistics.RequestObserver`,
`serving.rollback.RollbackObserver` and `jobs.shadow.ShadowObserver`.

headrace_split_requests_total{model,version,outcome}   requests that a split gave to a version: answered, or why not
headrace_rollbacks_total{model,version,condition}      versions that lost their traffic: error_rate, p99_latency,
                                                       disagreement
headrace_shadow_requests_total{model,version,outcome}  copies of requests: compared, failed, dropped
headrace_shadow_answers_total{model,version,outcome}   answers compared: agreed, disagreed
headrace_shadow_score_difference_total{model,version}  sum of |differences| of scores; over headrace_shadow_scores_total
                                                       it is the mean
headrace_shadow_latency_seconds{model,version}         from a copy's lease to its answer
"""

from __future__ import annotations

from typing import Protocol

from headrace_server.errors import Reason
from headrace_server.telemetry.instruments import Counters, Family, Histograms
from headrace_server.telemetry.rpc_metrics import SECONDS

__all__ = ["ComparedAnswers", "RoutedRequest", "TrafficMetrics"]

_MODEL = ("model", "version")


class RoutedRequest(Protocol):
    """A request as it ended."""

    @property
    def model(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def failure(self) -> Reason | None: ...  # None: answered
    @property
    def by_split(self) -> bool: ...


class ComparedAnswers(Protocol):
    """What a shadow gave beside what was served."""

    @property
    def num_answers(self) -> int: ...
    @property
    def num_agreeing(self) -> int: ...
    @property
    def sum_difference(self) -> float: ...
    @property
    def num_scores(self) -> int: ...


class TrafficMetrics:
    """Told of requests, rollbacks and copies, from any thread; of requests without a split it costs a look."""

    def __init__(self) -> None:
        self._split = Counters(
            "headrace_split_requests", "Requests that a split gave to a version.", *_MODEL, "outcome"
        )
        self._rollbacks = Counters("headrace_rollbacks", "Versions that lost their traffic.", *_MODEL, "condition")
        self._copies = Counters("headrace_shadow_requests", "Copies of requests.", *_MODEL, "outcome")
        self._answers = Counters("headrace_shadow_answers", "Answers of a shadow compared.", *_MODEL, "outcome")
        self._difference = Counters(
            "headrace_shadow_score_difference", "Sum of differences of scores, without sign.", *_MODEL
        )
        self._scores = Counters("headrace_shadow_scores", "Scores compared.", *_MODEL)
        self._latency = Histograms(
            "headrace_shadow_latency_seconds", "Seconds from a copy's lease to its answer.", *_MODEL, bounds=SECONDS
        )

    @property
    def families(self) -> tuple[Family, ...]:
        return (
            self._split, self._rollbacks, self._copies, self._answers, self._difference, self._scores, self._latency
        )  # fmt: skip

    def on_request(self, record: RoutedRequest) -> None:
        """A request has ended."""
        if record.by_split:
            outcome = "answered" if record.failure is None else record.failure.value
            self._split.child(record.model, record.version, outcome).add()

    def on_group(self, record: object) -> None:
        """Requests have been answered together; no split gave them to their version."""

    def on_rollback(self, model: str, version: str, condition: str) -> None:
        """A version has lost its traffic."""
        self._rollbacks.child(model, version, condition).add()

    def on_copy(self, model: str, version: str, latency_ns: int, compared: ComparedAnswers) -> None:
        """A copy came back and was compared."""
        self._copies.child(model, version, "compared").add()
        self._answers.child(model, version, "agreed").add(compared.num_agreeing)
        self._answers.child(model, version, "disagreed").add(compared.num_answers - compared.num_agreeing)
        self._difference.child(model, version).add(compared.sum_difference)
        self._scores.child(model, version).add(compared.num_scores)
        self._latency.child(model, version).observe(latency_ns * 1e-9)

    def on_copy_failed(self, model: str, version: str) -> None:
        """A copy failed."""
        self._copies.child(model, version, "failed").add()

    def on_copy_dropped(self, model: str, version: str) -> None:
        """A copy was not made."""
        self._copies.child(model, version, "dropped").add()
