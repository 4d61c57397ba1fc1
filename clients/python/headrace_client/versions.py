"""How a model's versions get its traffic and how they fare, from and to messages: shared by the sync and the async
client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from google.protobuf import duration_pb2

from headrace.v1 import model_service_pb2 as pb
from headrace_client.requests import selector

__all__ = [
    "ModelStatistics",
    "RollbackRule",
    "Section",
    "Shadow",
    "ShadowStatistics",
    "Traffic",
    "TrafficSplit",
    "load_model_request",
    "reset_request",
    "set_shadow_request",
    "set_split_request",
    "shadow",
    "split",
    "statistics",
    "statistics_request",
    "traffic",
    "unload_model_request",
]

# What operators may have decided about a model. Of versions: loads and unloads by hand, and which of them serve.
Section = Literal["labels", "split", "shadow", "versions"]

_SECTIONS: dict[str, pb.ModelSection] = {
    "labels": pb.MODEL_SECTION_LABELS,
    "split": pb.MODEL_SECTION_SPLIT,
    "shadow": pb.MODEL_SECTION_SHADOW,
    "versions": pb.MODEL_SECTION_VERSIONS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRule:
    """When a version loses its traffic; exactly one of the three limits is given. Raises ValueError otherwise.

    max_error_rate     share of failed requests, 0…1
    max_p99_latency_s  99th percentile of latency, seconds
    max_disagreement   share of shadowed answers that disagree, 0…1
    window_s           over how long, 1 to 3600
    min_requests       only once so many were seen in the window
    """

    max_error_rate: float | None = None
    max_p99_latency_s: float | None = None
    max_disagreement: float | None = None
    window_s: float = 60.0
    min_requests: int = 20

    def __post_init__(self) -> None:
        limits = (self.max_error_rate, self.max_p99_latency_s, self.max_disagreement)
        if sum(limit is not None for limit in limits) != 1:
            raise ValueError("give exactly one of max_error_rate, max_p99_latency_s and max_disagreement")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSplit:
    """How a model's requests are divided: weights by version; a version's share is its weight over their sum."""

    shares: Mapping[str, int] = field(default_factory=dict)
    rules: tuple[RollbackRule, ...] = ()


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that gets copies of a share of the requests, 0…1."""

    version: str
    sample_rate: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How a model's requests find their version.

    serving_version  answers requests that name none; of a split, the version with the largest share; "": none does
    labels           version by label
    state_reasons    by version, why it failed or lost its traffic
    """

    model: str
    serving_version: str
    labels: Mapping[str, str]
    split: TrafficSplit | None
    shadow: Shadow | None
    state_reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShadowStatistics:
    """How a version fares beside the one that answers.

    num_requests  copied to it; `num_failed` of them failed, and `num_dropped` more were not copied: too many waited
    num_answers   answers compared; `agreement` is the share that agrees, 0…1
    """

    num_requests: int
    num_failed: int
    num_dropped: int
    num_answers: int
    agreement: float
    mean_score_difference: float
    p99_latency_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatistics:
    """One version since it was loaded. Times are sums over requests, seconds; those of failed ones in `failed_s` alone.

    batch_sizes  runs, by number of rows
    shadow       None: it is none
    """

    name: str
    version: str
    num_succeeded: int
    num_failed: int
    num_rows: int
    num_batches: int
    queue_s: float
    preprocess_s: float
    infer_s: float
    postprocess_s: float
    latency_s: float
    failed_s: float
    last_request_time: datetime | None
    batch_sizes: Mapping[int, int]
    shadow: ShadowStatistics | None


def load_model_request(model: str, version: str, *, serve: bool) -> pb.LoadModelRequest:
    return pb.LoadModelRequest(model=selector(model, version), serve=serve)


def unload_model_request(model: str, version: str) -> pb.UnloadModelRequest:
    return pb.UnloadModelRequest(model=selector(model, version))


def statistics_request(model: str, version: str, label: str) -> pb.GetModelStatisticsRequest:
    return pb.GetModelStatisticsRequest(model=selector(model, version, label))


def set_split_request(
    model: str, shares: Mapping[str, int], rules: Sequence[RollbackRule]
) -> pb.SetTrafficSplitRequest:
    """Raises ValueError for a weight that no message can hold."""
    message = pb.TrafficSplit(model=model, rollback_rules=map(_rule_message, rules))
    for version, weight in shares.items():
        message.shares.add(version=version, weight=weight)
    return pb.SetTrafficSplitRequest(split=message)


def set_shadow_request(model: str, version: str, sample_rate: float) -> pb.SetShadowRequest:
    return pb.SetShadowRequest(model=model, version=version, sample_rate=sample_rate)


def reset_request(model: str, sections: Sequence[Section]) -> pb.ResetModelRequest:
    """Raises ValueError for a section that there is not."""
    for section in sections:
        if section not in _SECTIONS:
            raise ValueError(f"section {section!r}, must be one of {', '.join(_SECTIONS)}")
    return pb.ResetModelRequest(model=model, sections=[_SECTIONS[section] for section in sections])


def split(message: pb.TrafficSplit) -> TrafficSplit:
    shares = {share.version: share.weight for share in message.shares}
    return TrafficSplit(shares=shares, rules=tuple(map(_rule, message.rollback_rules)))


def shadow(version: str, sample_rate: float) -> Shadow | None:
    """None where there is none."""
    return Shadow(version, sample_rate) if version else None


def traffic(model: str, response: pb.GetTrafficResponse) -> Traffic:
    return Traffic(
        model=model,
        serving_version=response.serving_version,
        labels=dict(response.labels),
        split=split(response.split) if response.HasField("split") else None,
        shadow=shadow(response.shadow_version, response.shadow_sample_rate),
        state_reasons=dict(response.state_reasons),
    )


def statistics(message: pb.ModelStatistics) -> ModelStatistics:
    last = message.last_request_time
    return ModelStatistics(
        name=message.version.name,
        version=message.version.version,
        num_succeeded=message.num_succeeded,
        num_failed=message.num_failed,
        num_rows=message.num_rows,
        num_batches=message.num_batches,
        queue_s=_seconds(message.queue_time),
        preprocess_s=_seconds(message.preprocess_time),
        infer_s=_seconds(message.infer_time),
        postprocess_s=_seconds(message.postprocess_time),
        latency_s=_seconds(message.latency_time),
        failed_s=_seconds(message.failed_time),
        last_request_time=last.ToDatetime(UTC) if message.HasField("last_request_time") else None,
        batch_sizes=dict(sorted(message.batch_sizes.items())),
        shadow=_shadow_statistics(message.shadow) if message.HasField("shadow") else None,
    )


def _shadow_statistics(message: pb.ShadowStatistics) -> ShadowStatistics:
    return ShadowStatistics(
        num_requests=message.num_requests,
        num_failed=message.num_failed,
        num_dropped=message.num_dropped,
        num_answers=message.num_answers,
        agreement=message.agreement,
        mean_score_difference=message.mean_score_difference,
        p99_latency_s=_seconds(message.p99_latency),
    )


def _rule(message: pb.RollbackRule) -> RollbackRule:
    which = message.WhichOneof("condition")
    return RollbackRule(
        max_error_rate=message.max_error_rate if which == "max_error_rate" else None,
        max_p99_latency_s=_seconds(message.max_p99_latency) if which == "max_p99_latency" else None,
        max_disagreement=message.max_disagreement if which == "max_disagreement" else None,
        window_s=_seconds(message.window),
        min_requests=message.min_requests,
    )


def _rule_message(rule: RollbackRule) -> pb.RollbackRule:
    return pb.RollbackRule(
        max_error_rate=rule.max_error_rate,
        max_p99_latency=None if rule.max_p99_latency_s is None else _duration(rule.max_p99_latency_s),
        max_disagreement=rule.max_disagreement,
        window=_duration(rule.window_s),
        min_requests=rule.min_requests,
    )


def _seconds(message: duration_pb2.Duration) -> float:
    return message.ToNanoseconds() / 1e9  # not × 1e-9, which makes 30.000000000000004 of 30 s


def _duration(seconds: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
