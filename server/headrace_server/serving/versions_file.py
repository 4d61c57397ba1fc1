"""versions.toml beside a model's version folders: which of them are loaded, and who gets which. Every key is optional.

    policy = "latest:2"                       # all | latest | latest:N, or these alone: ["1", "3"]
    shadow = { version = "3", sample_rate = 0.1 }

    [labels]
    stable = "1"

    [split]                                   # version = weight
    "1" = 95
    "2" = 5

    [[rules]]                                 # when a version of the split loses its traffic: one condition a rule
    max_error_rate = 0.05                     # or max_p99_latency_s, or max_disagreement
    window_s = 60
    min_requests = 20

An unknown key is an error that names it and the nearest valid one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.models.layout import VERSIONS_NAME
from headrace_server.models.struct_types import resolve_types
from headrace_server.models.toml_keys import read_toml
from headrace_server.serving.traffic import (
    RollbackCondition,
    RollbackRule,
    Shadow,
    TrafficShare,
    TrafficSplit,
    VersionChoices,
    check_label,
)
from headrace_server.serving.version_policy import VersionPolicy

__all__ = ["VersionsFile", "parse_versions_file", "read_versions_file"]

_MAX_BYTES = 1_048_576
_CONDITIONS: dict[str, RollbackCondition] = {
    "max_error_rate": "error_rate",
    "max_p99_latency_s": "p99_latency",
    "max_disagreement": "disagreement",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionsFile:
    """What a model's file says. policy None: nothing"""

    policy: VersionPolicy | None = None
    choices: VersionChoices = field(default_factory=VersionChoices)


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the file."""


class _Shadow(_Section, frozen=True):
    version: str
    sample_rate: float = 1.0


class _Rule(_Section, frozen=True):
    max_error_rate: float | None = None
    max_p99_latency_s: float | None = None
    max_disagreement: float | None = None
    window_s: float = 60.0
    min_requests: int = 20


class _File(_Section, frozen=True):
    policy: str | tuple[str, ...] = ""
    labels: dict[str, str] = {}
    split: dict[str, int] = {}
    rules: tuple[_Rule, ...] = ()
    shadow: _Shadow | None = None


resolve_types(_File)


def read_versions_file(path: Path) -> VersionsFile:
    """As `parse_versions_file`, of a file."""
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _invalid("", "not readable", detail=repr(error)) from None
    if len(text) > _MAX_BYTES:
        raise _invalid("", f"more than {_MAX_BYTES} bytes")
    return parse_versions_file(text)


def parse_versions_file(text: bytes) -> VersionsFile:
    """What `text` (TOML, UTF-8) says. Raises ServingError CONFIG_INVALID naming key, value and what is valid."""
    file = read_toml(text, _File, _invalid)
    try:
        return VersionsFile(policy=_policy(file), choices=_choices(file))
    except ServingError as error:
        said = error.violations[0]
        raise _invalid(said.field, said.description) from None


def _policy(file: _File) -> VersionPolicy | None:
    if isinstance(file.policy, tuple):
        if not file.policy:
            raise _invalid("policy", "no version is named; leave the key out, or name some")
        return VersionPolicy(names=file.policy)
    try:
        return VersionPolicy.parse(file.policy) if file.policy else None
    except ValueError as error:
        raise _invalid("policy", f"{error}, or a list of versions") from None


def _choices(file: _File) -> VersionChoices:
    for label in file.labels:
        check_label(label, "labels")
    split: TrafficSplit | None = None
    if file.split or file.rules:
        shares = tuple(TrafficShare(version, weight) for version, weight in file.split.items())
        rules = tuple(_rule(rule, f"rules[{index}]") for index, rule in enumerate(file.rules))
        split = TrafficSplit(shares=shares, rules=rules)
        split.check()
    shadow = None if file.shadow is None else Shadow(file.shadow.version, file.shadow.sample_rate)
    if shadow is not None:
        shadow.check("shadow.")
    return VersionChoices(labels=file.labels, split=split, shadow=shadow)


def _rule(rule: _Rule, where: str) -> RollbackRule:
    named = {name: getattr(rule, name) for name in _CONDITIONS if getattr(rule, name) is not None}
    if len(named) != 1:
        raise _invalid(where, f"{len(named)} of {', '.join(_CONDITIONS)}, exactly one")
    ((name, limit),) = named.items()
    return RollbackRule(
        condition=_CONDITIONS[name], limit=limit, window_s=rule.window_s, min_requests=rule.min_requests
    )


def _invalid(key: str, description: str, *, detail: str = "") -> ServingError:
    where = f"{VERSIONS_NAME}: {key}: " if key else f"{VERSIONS_NAME}: "
    return ServingError(
        Reason.CONFIG_INVALID, where + description, violations=[Violation(key, description)], detail=detail
    )
