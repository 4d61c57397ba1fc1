"""DecidedStore: loaded versions, and what operators decide about them: labels, split, shadow, pins, rollbacks.

A decision is kept in the state file first, and stands then; one that cannot be kept is not made, but for a rollback.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Mapping, Set
from pathlib import Path

from headrace_server.config import LifecycleOptions
from headrace_server.errors import Reason, ServingError
from headrace_server.models.layout import VERSIONS_NAME
from headrace_server.serving.decisions import Decisions, Section
from headrace_server.serving.known_model import KnownModel
from headrace_server.serving.loader import Loader
from headrace_server.serving.memory import MemoryBudget
from headrace_server.serving.state_file import StateFile
from headrace_server.serving.statistics import RequestObserver
from headrace_server.serving.traffic import Shadow, TrafficSplit, VersionChoices, check_label
from headrace_server.serving.version import Version
from headrace_server.serving.version_policy import VersionPolicy
from headrace_server.serving.version_store import VersionStore
from headrace_server.serving.versions_file import VersionsFile, read_versions_file

__all__ = ["DecidedStore"]

logger = logging.getLogger(__name__)


class DecidedStore(VersionStore):
    """Versions by what was decided about them, without what finds them. Thread-safe.

    lifecycle  the policy for models whose own file names none; where decisions are kept; what may rest
    memory, requests, on_change, num_loaders  as of `VersionStore`
    """

    def __init__(
        self,
        loader: Loader,
        *,
        lifecycle: LifecycleOptions,
        memory: MemoryBudget | None = None,
        requests: RequestObserver | None = None,
        on_change: Callable[[], None] | None = None,
        num_loaders: int = 2,
    ) -> None:
        super().__init__(
            loader,
            requests=requests,
            on_change=on_change,
            num_loaders=num_loaders,
            memory=memory,
            idle_s=lifecycle.idle_unload_s,
        )
        self._policy = VersionPolicy.parse(lifecycle.versions)
        self._state = StateFile(lifecycle.state_file)
        self._state_note = ""
        self._decisions: dict[str, Decisions] = {}
        self._files: dict[str, VersionsFile] = {}  # what each model's file said when it was last valid

    def set_label(self, name: str, label: str, version: str) -> Mapping[str, str]:
        """Puts a label on a version that is known, whatever its state; "" takes it off. All labels of the model then.

        raises  ServingError INVALID_INPUT; MODEL_NOT_FOUND, VERSION_NOT_FOUND; VERSION_HELD; STORAGE_FAILED
        """
        check_label(label)
        with self._control:
            with self._lock:
                model = self._known(name)
                if version:
                    model.require_known(version)
                    model.require_free(version, f"label {label!r}")
            self._decide(model, self._decided(name).after_label(model.choices, label, version))
            logger.info("model %s: label %s: %s", name, label, version or "taken off")
            self._reconcile([model])
            labels = dict(model.choices.labels)
        self._tell()
        return labels

    def set_split(self, name: str, split: TrafficSplit) -> TrafficSplit:
        """Splits a model's traffic between ready versions; without shares: no split any more.

        raises  ServingError INVALID_INPUT; MODEL_NOT_FOUND, VERSION_NOT_FOUND, MODEL_LOADING, MODEL_FAILED,
                VERSION_HELD; STORAGE_FAILED
        """
        split.check()
        with self._control:
            with self._lock:
                model = self._known(name)
                for share in split.shares:
                    model.require_ready(share.version)
                    if share.weight:
                        model.require_free(share.version, "a share of the split")
            self._decide(model, self._decided(name).after_split(split))
            logger.info("model %s: split %s", name, {each.version: each.weight for each in split.shares} or "ended")
            self._reconcile([model])
        self._tell()
        return split

    def set_shadow(self, name: str, shadow: Shadow | None) -> Shadow | None:
        """Has copies of a model's requests sent to a ready version; None: no more.

        raises  as `set_split` does; UNSUPPORTED for a version that generates text
        """
        if shadow is not None:
            shadow.check()
        with self._control:
            with self._lock:
                model = self._known(name)
                entry = None if shadow is None else model.require_ready(shadow.version)
            if entry is not None and entry.model is not None and entry.model.generator is not None:
                raise ServingError(
                    Reason.UNSUPPORTED,
                    f"model {name!r} version {entry.version!r} generates text, and cannot be a shadow: two"
                    " texts may differ and both be right",
                    model=name,
                    version=entry.version,
                )
            self._decide(model, self._decided(name).after_shadow(shadow))
            logger.info("model %s: shadow %s", name, shadow or "ended")
            self._reconcile([model])
        self._tell()
        return shadow

    def reset(self, name: str, sections: Set[Section] = frozenset(Section)) -> None:
        """Forgets what operators decided about a model, so that its file and the policy hold again, there and at every
        later start. What is wanted then is loaded, and what is not any more unloaded once that is ready.

        raises  ServingError MODEL_NOT_FOUND; STORAGE_FAILED
        """
        with self._control:
            with self._lock:
                model = self._known(name)
            self._decide(model, self._decided(name).after_reset(sections))
            said = ", ".join(sorted(section.value for section in sections))
            logger.info("model %s: forgotten what was decided of %s", name, said)
            self._reconcile([model])
        self._tell()

    def split(self, name: str) -> TrafficSplit:
        """A model's split as it stands; without shares where there is none. Raises ServingError MODEL_NOT_FOUND."""
        with self._lock:
            return self._known(name).choices.split or TrafficSplit()

    def shadow(self, name: str) -> Shadow | None:
        """A model's shadow as it stands. Raises ServingError MODEL_NOT_FOUND."""
        with self._lock:
            return self._known(name).choices.shadow

    def traffic(self) -> Mapping[str, VersionChoices]:
        """What is decided about every model that has a split or a shadow, by name."""
        with self._lock:
            standing = {name: model.choices for name, model in self._models.items()}
        return {name: each for name, each in standing.items() if each.split is not None or each.shadow is not None}

    def roll_back(self, name: str, version: str, reason: str) -> bool:
        """Gives all traffic of a model's split to its main version, and notes at `version` why. False: there is nothing
        to roll back, as `version` gets no traffic by a split or is the main version.

        It is done even where it cannot be kept for the next start.
        """
        with self._control:
            with self._lock:
                model = self._known(name)
                split = model.choices.split
            if split is None or version == split.main_version:
                return False
            if not any(share.weight for share in split.shares if share.version == version):
                return False
            said = f"rolled back: {reason}"
            logger.warning("model %s/%s: %s; all traffic goes to %s", name, version, said, split.main_version)
            decisions = self._decided(name).after_rollback(split, version, said)
            try:
                self._decide(model, decisions)
            except ServingError as error:
                logger.error("model %s: the rollback holds until a restart: %s", name, error.message)
                self._decisions[name] = decisions
                self._choose_again(model)
        self._tell()
        return True

    # decisions; all under `_control`

    def _decided(self, name: str) -> Decisions:
        return self._decisions.get(name, Decisions())

    def _decide(self, model: KnownModel, decisions: Decisions) -> None:
        """Keeps decisions, and then makes them stand. Raises ServingError STORAGE_FAILED; then the old ones stand."""
        if decisions == self._decided(model.name):
            return
        decided = {**self._decisions, model.name: decisions}
        self._state.save(decided)
        self._decisions = decided
        self._choose_again(model)

    def _choose_again(self, model: KnownModel) -> None:
        file = self._files.get(model.name, VersionsFile())
        with self._lock:
            model.policy = file.policy or self._policy
            model.choices = self._decided(model.name).over(file.choices)
            self._choose_serving(model)

    def _decided_by_load(self, model: KnownModel, loaded: Version, serve: bool) -> Decisions:
        version = loaded.version
        decided = self._decided(model.name)
        with self._lock:
            present = model.versions.get(version)
            serving = present is not None and model.serves(present)
            newest = model.newest_of({*model.routable(), version}, held=decided.held - {version})
            is_held = bool(loaded.held_because)
            left_out = version not in model.policy.chosen(list(model.versions))
        if is_held:  # it serves nobody, and an earlier pin stands
            return decided.after_load(version, serve=serve, left_out=left_out, pinned=None)
        if serving or not serve:
            return decided.after_load(version, serve=serving, left_out=left_out, pinned=None)
        return decided.after_load(version, serve=True, left_out=left_out, pinned="" if newest == version else version)

    def _before_ready(self, model: KnownModel, entry: Version) -> None:
        if entry.held_because:
            logger.warning("model %s/%s: held: %s", model.name, entry.version, entry.held_because)
            with self._lock:
                present = model.versions.get(entry.version)
                replaces = model.candidates.get(entry.version) is entry
                if replaces and present is not None and not present.held_because:
                    raise ServingError(
                        Reason.VERSION_HELD, f"its changed files are held: {entry.held_because}", model=model.name
                    )
        if entry.serve is not None:
            self._decide(model, self._decided_by_load(model, entry, entry.serve))

    def _read_file(self, model: KnownModel, path: Path | None) -> None:
        """What the model's file says; of one that is not valid, the last valid one stands."""
        fault = ""
        try:
            said = VersionsFile() if path is None else read_versions_file(path)
        except ServingError as error:
            fault, said = error.message, self._files.get(model.name, VersionsFile())
        if fault and fault != model.fault:
            logger.error("model %s: %s; the file is passed over", model.name, fault)
        self._files[model.name] = said
        model.fault = fault or _absent(said, model.versions)


def _absent(said: VersionsFile, known: Container[str]) -> str:
    """Which versions a file names that are not there."""
    choices = said.choices
    named = {f"labels.{label}": version for label, version in choices.labels.items()}
    named |= {f"split.{share.version}": share.version for share in (choices.split.shares if choices.split else ())}
    named |= {} if choices.shadow is None else {"shadow.version": choices.shadow.version}
    named |= {f"policy[{index}]": version for index, version in enumerate(said.policy.names if said.policy else ())}
    absent = [f"{key}: no version {version!r}" for key, version in named.items() if version not in known]
    return f"{VERSIONS_NAME}: {'; '.join(absent)}" if absent else ""
