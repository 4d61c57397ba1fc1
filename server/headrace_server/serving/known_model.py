"""KnownModel: one model's versions, what was decided about them, and which of them answers whom."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable

from headrace_server.errors import Reason, Resource, ServingError, load_failed
from headrace_server.models.layout import version_key
from headrace_server.serving.routing import route
from headrace_server.serving.traffic import VersionChoices
from headrace_server.serving.version import ModelState, ModelStatus, Version
from headrace_server.serving.version_policy import VersionPolicy

__all__ = ["KnownModel"]

_RETRY_LOADING_S = 1.0


class KnownModel:
    """The repository's lock guards it.

    versions    the record of each, newest first
    candidates  being loaded to take the place of a ready version of the same name, whose files have changed
    policy      which of them are loaded, where no operator said otherwise
    choices     what operators decided
    fault       what is wrong with the file of the model's choices; "": nothing
    serving     answers requests that name neither version nor label where there is no split; None: nobody
    direct      the same, where it needs no further choice: no split, no shadow

    A version that its quantization report holds is ready for those who name it, and for a shadow's copies, which nobody
    is answered by; it counts for nothing else.
    """

    def __init__(self, name: str, policy: VersionPolicy) -> None:
        self.name = name
        self.policy = policy
        self.versions: dict[str, Version] = {}
        self.candidates: dict[str, Version] = {}
        self.choices = VersionChoices()
        self.fault = ""
        self.serving: Version | None = None
        self.direct: Version | None = None
        self._ready: dict[str, Version] = {}
        self._routable: dict[str, Version] = {}

    def add(self, entry: Version) -> None:
        """A record, in the place of what had its version."""
        self.versions[entry.version] = entry
        by_age = sorted(self.versions.items(), key=lambda item: (version_key(item[0]), item[0]), reverse=True)
        self.versions = dict(by_age)

    def records(self) -> Iterable[Version]:
        """Every record, candidates too."""
        return (*self.versions.values(), *self.candidates.values())

    def wanted(self) -> frozenset[str]:
        """The versions, of those known, that are to be loaded: by the policy, and what operators name."""
        choices = self.choices
        able = [version for version, entry in self.versions.items() if entry.state is not ModelState.FAILED]
        # One that is held is loaded, and takes no place of one that may serve.
        free = [version for version in able if not self.versions[version].held_because]
        named = {*choices.loaded, *choices.labels.values(), choices.pinned}
        named.update(share.version for share in (choices.split.shares if choices.split else ()))
        if choices.shadow is not None:
            named.add(choices.shadow.version)
        return (
            self.policy.chosen(able) | self.policy.chosen(free) | named.intersection(self.versions)
        ) - choices.unloaded

    def newest_of(self, versions: Iterable[str], held: frozenset[str]) -> str:
        """Which of these would serve as the newest, if those `held` did not; "": none."""
        may = set(versions) - held
        return next((version for version in self.versions if version in may), "")

    def choose_serving(self) -> None:
        """The pinned version, or the newest that is ready; what serves goes on serving while that one loads.

        To be called whenever a version's state or the choices have changed.
        """
        self._ready = {name: entry for name, entry in self.versions.items() if entry.state is ModelState.READY}
        self._routable = {name: entry for name, entry in self._ready.items() if not entry.held_because}
        current = self.serving
        keeps = current is not None and current.version in self._routable and current.version not in self.choices.held
        self.serving = None
        pinned = self.versions.get(self.choices.pinned)
        for entry in (pinned, *self.versions.values()):
            if entry is None or entry.version in self.choices.held:
                continue
            if entry.state is ModelState.READY and entry.held_because:
                continue
            if entry.state is ModelState.READY:
                self.serving = entry
                break
            if entry.state is ModelState.LOADING:
                self.serving = current if keeps else None
                break
        plain = self.choices.split is None and self.choices.shadow is None
        self.direct = self.serving if plain else None

    def ready(self) -> dict[str, Version]:
        """Versions that can answer, by name, as they were when `choose_serving` was last called."""
        return self._ready

    def routable(self) -> dict[str, Version]:
        """Of `ready`, those that may answer requests which do not name them."""
        return self._routable

    def find(self, version: str, label: str, routing_key: str) -> Version:
        """The ready version that answers. Raises ServingError saying why there is none."""
        if label:
            labelled = self.choices.labels.get(label, "")
            if not labelled:
                raise self._no_label(label)
            version = labelled
        elif not version:
            split = self.choices.split
            if split is not None:
                ready = self._routable
                chosen = ready.get(route(self.name, split.shares, routing_key, ready))
                if chosen is not None:
                    return chosen
            if self.serving is not None:
                return self.serving
        entry = self._only_ready(self._meant(version), label)
        if entry.held_because and (label or not version):
            raise self.refuse_held(entry, f"label {label!r}" if label else "the only one that is loaded")
        return entry

    def shadow_of(self, chosen: Version, draw: Callable[[], float] = random.random) -> str:
        """The ready version that gets a copy of a request that `chosen` answers; "": none."""
        shadow = self.choices.shadow
        if shadow is None or shadow.version == chosen.version or draw() >= shadow.sample_rate:
            return ""
        entry = self.versions.get(shadow.version)
        return shadow.version if entry is not None and entry.state is ModelState.READY else ""

    def serves(self, entry: Version) -> bool:
        """Whether requests that name no version get to it."""
        split = self.choices.split
        if split is not None:
            ready = self._routable
            shares = [share for share in split.shares if share.version in ready]
            if shares:
                some = any(share.weight for share in shares)
                answering = [share.version for share in shares if share.weight or not some]
                return entry.version in (answering if some else answering[:1]) and ready.get(entry.version) is entry
        return self.serving is entry

    def status_of(self, entry: Version) -> ModelStatus:
        """One record as it stands."""
        choices = self.choices
        labels = tuple(sorted(label for label, version in choices.labels.items() if version == entry.version))
        current = self.versions.get(entry.version) is entry
        note = "; ".join(filter(None, (choices.notes.get(entry.version, ""), self.fault)))
        return entry.status(
            serving=current and self.serves(entry), labels=labels if current else (), note=note if current else ""
        )

    def require_known(self, version: str) -> Version:
        """The record of a version. Raises ServingError VERSION_NOT_FOUND."""
        entry = self.versions.get(version)
        if entry is None:
            raise self._not_found(f"model {self.name!r} has no version {version[:256]!r}", version)
        return entry

    def require_ready(self, version: str) -> Version:
        """The record of a version that can answer. Raises ServingError as `find` does."""
        return self._only_ready(self.require_known(version), "")

    def refuse_held(self, entry: Version, where: str) -> ServingError:
        """The error for traffic that a held version was to get; it names the figure and the cure."""
        report = None if entry.model is None else entry.model.quantization
        assert report is not None, "its report is what holds it"
        return ServingError(
            Reason.VERSION_HELD,
            f"model {self.name!r} version {entry.version!r} ({where}) answers only who names it: {report.held_because}."
            f" Cure: {report.cure}",
            model=self.name,
            version=entry.version,
        )

    def require_free(self, version: str, where: str) -> None:
        """Raises ServingError VERSION_HELD for a version that is ready and held."""
        entry = self.versions.get(version)
        if entry is not None and entry.state is ModelState.READY and entry.held_because:
            raise self.refuse_held(entry, where)

    def _meant(self, version: str) -> Version:
        """The record that is asked for, whatever its state; of a model that does not serve, what says most about it."""
        if version:
            return self.require_known(version)
        asked = [entry for name, entry in self.versions.items() if name not in self.choices.held]
        for state in (ModelState.LOADING, ModelState.FAILED):
            for entry in asked:
                if entry.state is state:
                    return entry
        held = next((entry for entry in asked if entry.state is ModelState.READY and entry.held_because), None)
        if held is not None:
            return held
        raise self._not_found(f"no version of model {self.name!r} serves requests that name none", "")

    def _only_ready(self, entry: Version, label: str) -> Version:
        if entry.state is ModelState.READY:
            return entry
        if entry.state is ModelState.LOADING:
            raise ServingError(
                Reason.MODEL_LOADING,
                f"model {self.name!r} is being loaded",
                retry_after_s=_RETRY_LOADING_S,
                model=self.name,
            )
        if entry.state is ModelState.FAILED:
            raise load_failed(self.name, entry.version, entry.reason)
        labelled = f", which label {label!r} is on," if label else ""
        raise self._not_found(f"model {self.name!r} version {entry.version!r}{labelled} is not loaded", entry.version)

    def _no_label(self, label: str) -> ServingError:
        there = ", ".join(f"{name!r} ({version})" for name, version in sorted(self.choices.labels.items()))
        return self._not_found(f"model {self.name!r} has no label {label[:256]!r}; it has {there or 'none'}", label)

    def _not_found(self, message: str, version: str) -> ServingError:
        name = f"{self.name}/{version[:256]}" if version else self.name
        return ServingError(Reason.VERSION_NOT_FOUND, message, resource=Resource("model_version", name))
