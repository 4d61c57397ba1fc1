"""Decisions: what operators have decided about one model while the server ran; each gives the next by plain rules.

They stand over the model's versions.toml, section by section: a section that was ever decided is no longer read from
the file, until it is reset.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from headrace_server.serving.traffic import Shadow, TrafficShare, TrafficSplit, VersionChoices

__all__ = ["Decisions", "Section"]


class Section(enum.Enum):
    """A part of the decisions that can be forgotten alone."""

    LABELS = "labels"
    SPLIT = "split"  # with what rollbacks noted
    SHADOW = "shadow"
    VERSIONS = "versions"  # what was loaded and unloaded by hand, and the pin


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """As `VersionChoices`; None where nothing was decided.

    split   without shares: decided that there is none
    shadow  of version "": decided that there is none
    """

    labels: Mapping[str, str] | None = None
    split: TrafficSplit | None = None
    shadow: Shadow | None = None
    pinned: str = ""
    unloaded: frozenset[str] = frozenset()
    loaded: frozenset[str] = frozenset()
    held: frozenset[str] = frozenset()
    notes: Mapping[str, str] = field(default_factory=dict)

    def over(self, file: VersionChoices) -> VersionChoices:
        """What stands: these decisions, and the file where they are silent."""
        split = file.split if self.split is None else self.split
        shadow = file.shadow if self.shadow is None else self.shadow
        return VersionChoices(
            labels=file.labels if self.labels is None else self.labels,
            split=split if split is not None and split.shares else None,
            shadow=shadow if shadow is not None and shadow.version else None,
            pinned=self.pinned,
            unloaded=self.unloaded,
            loaded=self.loaded,
            held=self.held,
            notes=self.notes,
        )

    def after_label(self, standing: VersionChoices, label: str, version: str) -> Decisions:
        """A label put on a version; "" takes it off."""
        labels = {name: its for name, its in standing.labels.items() if name != label}
        if version:
            labels[label] = version
        return replace(self, labels=dict(sorted(labels.items())))

    def after_split(self, split: TrafficSplit) -> Decisions:
        """Traffic divided anew: what was noted of the versions that get some is settled."""
        settled = {share.version for share in split.shares if share.weight}
        return replace(self, split=split, notes=_without(self.notes, settled))

    def after_shadow(self, shadow: Shadow | None) -> Decisions:
        """Copies go to another version, or to none."""
        return replace(self, shadow=shadow or Shadow(""))

    def after_load(self, version: str, *, serve: bool, left_out: bool, pinned: str | None) -> Decisions:
        """A version was loaded because an operator said so.

        left_out  the policy alone would not have loaded it
        pinned    the version that serves although it is not the newest from now on; None: as it is
        """
        one = frozenset({version})
        return replace(
            self,
            unloaded=self.unloaded - one,
            loaded=self.loaded | one if left_out else self.loaded,
            held=self.held - one if serve else self.held | one,
            pinned=self.pinned if pinned is None else pinned,
            notes=_without(self.notes, one),
        )

    def after_unload(self, versions: frozenset[str]) -> Decisions:
        """Versions were taken out of service."""
        return replace(
            self,
            unloaded=self.unloaded | versions,
            loaded=self.loaded - versions,
            held=self.held - versions,
            pinned="" if self.pinned in versions else self.pinned,
        )

    def after_rollback(self, split: TrafficSplit, version: str, reason: str) -> Decisions:
        """All traffic of the split given to its main version, and why."""
        main = split.main_version
        weight = max(share.weight for share in split.shares)
        return replace(
            self,
            split=TrafficSplit(shares=(TrafficShare(main, weight),)),
            notes={**self.notes, version: reason},
        )

    def after_reset(self, sections: Set[Section]) -> Decisions:
        """These sections as if they had never been decided."""
        silent = Decisions()
        fields = [name for section in sections for name in _FIELDS[section]]
        return replace(self, **{name: getattr(silent, name) for name in fields})


_FIELDS = {
    Section.LABELS: ("labels",),
    Section.SPLIT: ("split", "notes"),
    Section.SHADOW: ("shadow",),
    Section.VERSIONS: ("pinned", "unloaded", "loaded", "held"),
}


def _without(notes: Mapping[str, str], versions: frozenset[str] | set[str]) -> dict[str, str]:
    return {version: note for version, note in notes.items() if version not in versions}
