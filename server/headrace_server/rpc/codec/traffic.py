"""What operators decide about a model's traffic: messages ↔ TrafficSplit, Shadow."""

from __future__ import annotations

from google.protobuf import duration_pb2

from headrace.v1 import model_service_pb2 as pb
from headrace_server.errors import invalid_input
from headrace_server.rpc.codec.checks import require_count, require_text
from headrace_server.rpc.codec.selector import MAX_NAME_BYTES, MAX_VERSION_BYTES
from headrace_server.serving.decisions import Section
from headrace_server.serving.traffic import (
    MAX_RULES,
    MAX_SHARES,
    RollbackCondition,
    RollbackRule,
    Shadow,
    TrafficShare,
    TrafficSplit,
)

__all__ = ["decode_model_name", "decode_sections", "decode_shadow", "decode_split", "decode_version", "encode_split"]

_CONDITIONS: dict[str, RollbackCondition] = {
    "max_error_rate": "error_rate",
    "max_p99_latency": "p99_latency",
    "max_disagreement": "disagreement",
}
_SECTIONS: dict[int, Section] = {
    pb.MODEL_SECTION_LABELS: Section.LABELS,
    pb.MODEL_SECTION_SPLIT: Section.SPLIT,
    pb.MODEL_SECTION_SHADOW: Section.SHADOW,
    pb.MODEL_SECTION_VERSIONS: Section.VERSIONS,
}
_DEFAULT_RULE = RollbackRule(condition="error_rate", limit=0)


def decode_model_name(name: str, field: str) -> str:
    """The name of a model. Raises INVALID_INPUT where there is none, or it is too long."""
    if not name:
        raise invalid_input(field, "required")
    return require_text(name, field, MAX_NAME_BYTES)


def decode_version(version: str, field: str) -> str:
    """A version, or "". Raises INVALID_INPUT where it is too long."""
    return require_text(version, field, MAX_VERSION_BYTES)


def decode_split(message: pb.TrafficSplit, field: str = "split") -> tuple[str, TrafficSplit]:
    """A model's name, and its split, checked but for whether its versions are there."""
    model = decode_model_name(message.model, f"{field}.model")
    if message.shares:
        require_count(message.shares, f"{field}.shares", MAX_SHARES)
    if message.rollback_rules:
        require_count(message.rollback_rules, f"{field}.rollback_rules", MAX_RULES)
    shares = []
    for index, share in enumerate(message.shares):
        where = f"{field}.shares[{index}].version"
        if not share.version:
            raise invalid_input(where, "required")
        shares.append(TrafficShare(decode_version(share.version, where), share.weight))
    rules = [
        _decode_rule(rule, f"{field}.rollback_rules[{index}]") for index, rule in enumerate(message.rollback_rules)
    ]
    split = TrafficSplit(shares=tuple(shares), rules=tuple(rules))
    split.check(field)
    return model, split


def decode_shadow(request: pb.SetShadowRequest) -> Shadow | None:
    """The shadow; None: there shall be none."""
    version = decode_version(request.version, "version")
    shadow = Shadow(version, request.sample_rate if request.HasField("sample_rate") else 1.0)
    shadow.check()
    return shadow if version else None


def decode_sections(request: pb.ResetModelRequest) -> frozenset[Section]:
    """What is to be forgotten; none named: everything. Raises INVALID_INPUT for a section that there is not."""
    for index, section in enumerate(request.sections):
        if section not in _SECTIONS:
            known = ", ".join(f"{number} ({each.value})" for number, each in _SECTIONS.items())
            raise invalid_input(f"sections[{index}]", f"{int(section)}, must be one of {known}")
    return frozenset(_SECTIONS[section] for section in request.sections) or frozenset(Section)


def encode_split(model: str, split: TrafficSplit) -> pb.TrafficSplit:
    """The split as it stands."""
    return pb.TrafficSplit(
        model=model,
        shares=[pb.TrafficShare(version=share.version, weight=share.weight) for share in split.shares],
        rollback_rules=map(_encode_rule, split.rules),
    )


def _decode_rule(message: pb.RollbackRule, field: str) -> RollbackRule:
    which = message.WhichOneof("condition")
    if which is None:
        raise invalid_input(f"{field}.condition", f"required: one of {', '.join(_CONDITIONS)}")
    limit = _seconds(message.max_p99_latency) if which == "max_p99_latency" else getattr(message, which)
    return RollbackRule(
        condition=_CONDITIONS[which],
        limit=limit,
        window_s=_seconds(message.window) if message.HasField("window") else _DEFAULT_RULE.window_s,
        min_requests=message.min_requests or _DEFAULT_RULE.min_requests,
    )


def _encode_rule(rule: RollbackRule) -> pb.RollbackRule:
    message = pb.RollbackRule(window=_duration(rule.window_s), min_requests=rule.min_requests)
    if rule.condition == "p99_latency":
        message.max_p99_latency.CopyFrom(_duration(rule.limit))
    elif rule.condition == "error_rate":
        message.max_error_rate = rule.limit
    else:
        message.max_disagreement = rule.limit
    return message


def _seconds(message: duration_pb2.Duration) -> float:
    """What is no valid duration (its nanos out of range, say) counts as what it adds up to: the limits bound it."""
    return message.seconds + message.nanos / 1e9


def _duration(seconds: float) -> duration_pb2.Duration:
    message = duration_pb2.Duration()
    message.FromNanoseconds(round(seconds * 1e9))
    return message
