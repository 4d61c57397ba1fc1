"""VersionPolicy: which of the versions found are loaded.

all         every one
latest      the newest        latest:N  the N newest; of those that cannot be loaded, the next older ones
"1", "3"    these alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["VersionPolicy"]

_MAX_NEWEST = 1000


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """num_newest  how many of the newest; 0: all    names  these alone, where there are any"""

    num_newest: int = 0
    names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> VersionPolicy:
        """The policy that `text` names. Raises ValueError saying what is valid."""
        kind, colon, count = text.partition(":")
        if text in ("all", "latest"):
            return cls(0 if text == "all" else 1)
        if kind == "latest" and colon and count.isascii() and count.isdigit() and 1 <= int(count[:5]) <= _MAX_NEWEST:
            return cls(int(count))
        raise ValueError(f"{text[:80]!r}, one of all, latest, latest:N (N from 1 to {_MAX_NEWEST})")

    def chosen(self, newest_first: Sequence[str]) -> frozenset[str]:
        """Of these versions, those to be loaded."""
        if self.names:
            return frozenset(self.names).intersection(newest_first)
        return frozenset(newest_first[: self.num_newest] if self.num_newest else newest_first)
