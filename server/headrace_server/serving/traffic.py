"""What operators have decided about a model's versions: labels, split, shadow, rules; plain values, kept on disk.

A request that names neither version nor label goes by the split where one is set, else to the pinned version, else to
the newest that is ready.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from headrace_server.errors import invalid_input

__all__ = [
    "RollbackCondition",
    "RollbackRule",
    "Shadow",
    "TrafficShare",
    "TrafficSplit",
    "VersionChoices",
    "check_label",
]

RollbackCondition = Literal["error_rate", "p99_latency", "disagreement"]

MAX_WEIGHT = 1_000_000
MAX_SHARES = 64
MAX_RULES = 16
_is_label = re.compile(r"[a-z0-9_-]{1,64}").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RollbackRule:
    """When a version loses its traffic: what is watched goes over `limit` within the window.

    limit  share 0…1 of failed requests, or of shadowed answers that disagree; seconds for "p99_latency"
    raises ServingError INVALID_INPUT naming the field
    """

    condition: RollbackCondition
    limit: float
    window_s: float = 60.0
    min_requests: int = 20

    def check(self, where: str) -> None:
        """Raises INVALID_INPUT naming `{where}.…`."""
        if self.condition == "p99_latency":
            if not 0 < self.limit <= 3600:
                raise invalid_input(f"{where}.max_p99_latency", f"{self.limit} s, more than 0 and at most 3600 s")
        elif not 0 <= self.limit <= 1:
            raise invalid_input(f"{where}.max_{self.condition}", f"{self.limit}, from 0 to 1")
        if not 1 <= self.window_s <= 3600:
            raise invalid_input(f"{where}.window", f"{self.window_s} s, from 1 s to 3600 s")
        if not 1 <= self.min_requests <= 1_000_000:
            raise invalid_input(f"{where}.min_requests", f"{self.min_requests}, from 1 to 1000000")


@dataclass(frozen=True, slots=True)
class TrafficShare:
    """A version's weight; its share is that over the sum of weights."""

    version: str
    weight: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSplit:
    """How a model's requests are divided. No shares: all go to the serving version."""

    shares: tuple[TrafficShare, ...] = ()
    rules: tuple[RollbackRule, ...] = ()

    def check(self, where: str = "split") -> None:
        """Raises ServingError INVALID_INPUT naming the field, the value and the limit."""
        if len(self.shares) > MAX_SHARES:
            raise invalid_input(f"{where}.shares", f"{len(self.shares)}, limit {MAX_SHARES}", limit=MAX_SHARES)
        if len(self.rules) > MAX_RULES:
            raise invalid_input(f"{where}.rollback_rules", f"{len(self.rules)}, limit {MAX_RULES}", limit=MAX_RULES)
        seen: set[str] = set()
        for index, share in enumerate(self.shares):
            if not 0 <= share.weight <= MAX_WEIGHT:
                raise invalid_input(f"{where}.shares[{index}].weight", f"{share.weight}, from 0 to {MAX_WEIGHT}")
            if share.version in seen:
                raise invalid_input(f"{where}.shares[{index}].version", f"{share.version!r} is named twice")
            seen.add(share.version)
        if self.shares and not any(share.weight for share in self.shares):
            raise invalid_input(f"{where}.shares", "every weight is 0, one must be more")
        if self.rules and not self.shares:
            raise invalid_input(f"{where}.rollback_rules", "rules without shares: there is nothing to roll back")
        for index, rule in enumerate(self.rules):
            rule.check(f"{where}.rollback_rules[{index}]")

    @property
    def main_version(self) -> str:
        """The version with the largest share, the first of equals: what a rollback gives all traffic to. "": none."""
        return max(self.shares, key=lambda share: share.weight).version if self.shares else ""


@dataclass(frozen=True, slots=True)
class Shadow:
    """A version that is asked beside the one that answers, for a share of the requests, 0…1."""

    version: str
    sample_rate: float = 1.0

    def check(self, where: str = "") -> None:
        """Raises ServingError INVALID_INPUT naming the field."""
        if not 0 <= self.sample_rate <= 1:
            raise invalid_input(f"{where}sample_rate", f"{self.sample_rate}, from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionChoices:
    """All that operators have decided about one model.

    labels    label → version
    split     None: none
    shadow    None: none
    pinned    the version that serves although it is not the newest; "": the newest that is ready
    unloaded  versions that an operator took out of service: neither a poll nor a restart loads them
    loaded    versions that an operator loaded although the version policy leaves them out
    held      versions that were loaded without letting them serve: asked by name, label, split or shadow alone
    notes     by version, why it lost its traffic: what a rollback recorded
    """

    labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    split: TrafficSplit | None = None
    shadow: Shadow | None = None
    pinned: str = ""
    unloaded: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    notes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


def check_label(label: str, where: str = "label") -> None:
    """Raises ServingError INVALID_INPUT for what is no label."""
    if not _is_label(label):
        raise invalid_input(where, f"{label[:80]!r}, 1 to 64 of a-z, 0-9, '_' and '-'")
