"""Repository: the models of a directory, and which of their versions are loaded.

Requests that name neither version nor label go by the model's split where one is set, else to the pinned version, else
to the newest that is ready. While a newer one loads, what serves goes on serving; at start nothing answers for it. A
version whose files have changed is loaded beside the one that serves and takes its place at once; if it fails, the old
one goes on and says why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from pathlib import Path

from headrace_server.config import LifecycleOptions, ThreadBudget
from headrace_server.errors import Reason, Resource, ServingError
from headrace_server.models.layout import FoundVersion, Layout, fingerprint, read_layout, version_key
from headrace_server.models.load import LoadDefaults
from headrace_server.models.model import Model
from headrace_server.serving.batch import BatchObserver
from headrace_server.serving.decided_store import DecidedStore
from headrace_server.serving.decoder.observer import DecoderObserver
from headrace_server.serving.known_model import KnownModel
from headrace_server.serving.loader import Check, Loader
from headrace_server.serving.memory import MemoryBudget
from headrace_server.serving.statistics import RequestObserver
from headrace_server.serving.version import Lease, ModelState, ModelStatus, Version
from headrace_server.serving.watch import Look, VersionName, Watcher, take_look
from headrace_server.telemetry.stall_meter import StallMeter

__all__ = ["Lease", "ModelState", "ModelStatus", "Repository"]

logger = logging.getLogger(__name__)

_LEFT_OUT = "left out by the version policy"
_UNLOADED = "unloaded by an operator"
_GONE = "its folder is no longer there"
_CHANGED = "its files have changed"


class Repository(DecidedStore):
    """The versions of one directory. Thread-safe.

    directory  `<name>/<version>/…`, a folder a model, or one model's folder
    defaults   engine, batching and limits that a model's manifest may override
    threads    the one budget that every engine divides
    lifecycle  which versions are loaded, how often the directory is looked at, where decisions are kept
    check      given every servable before it may serve; raises ServingError where it does not answer as it should
    admit      given every model before its engine is made; raises ServingError where it may not be
    stalls     measures for how long a load keeps everything else from running
    batches    told of what models that read rows do; `decoders` of what text generators do; `requests` of all requests
    on_change  called after a version's state or a decision changed, on whichever thread did it, holding no lock
    """

    def __init__(
        self,
        directory: Path,
        *,
        defaults: LoadDefaults | None = None,
        threads: ThreadBudget | None = None,
        lifecycle: LifecycleOptions | None = None,
        check: Check | None = None,
        admit: Callable[[Model], None] | None = None,
        stalls: StallMeter | None = None,
        batches: BatchObserver | None = None,
        decoders: DecoderObserver | None = None,
        requests: RequestObserver | None = None,
        on_change: Callable[[], None] | None = None,
        num_loaders: int = 2,
    ) -> None:
        lifecycle = lifecycle or LifecycleOptions()
        memory = MemoryBudget(lifecycle.memory_budget_mb << 20)
        loader = Loader(
            defaults=defaults,
            threads=threads,
            batches=batches,
            decoders=decoders,
            check=check,
            admit=admit,
            memory=memory,
            stalls=stalls,
        )
        super().__init__(
            loader,
            lifecycle=lifecycle,
            memory=memory,
            requests=requests,
            on_change=on_change,
            num_loaders=num_loaders,
        )
        self._directory = directory
        self._found: dict[VersionName, FoundVersion] = {}
        self._last_look: Look | None = None
        self._watcher = Watcher(self.look, lifecycle.poll_s) if lifecycle.poll_s else None
        idle_s = lifecycle.idle_unload_s
        self._idle_watcher = Watcher(self.residence.rest_idle, max(0.05, idle_s / 8)) if idle_s else None
        self._layout_notes: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What was passed over in the directory, what is wrong with files of decisions, and why."""
        with self._lock:
            faults = [f"{model.name}: {model.fault}" for model in self._models.values() if model.fault]
        return (*self._layout_notes, *faults, *filter(None, [self._state_note]))

    def start(self) -> None:
        """Finds the versions and begins to load them; returns at once. `notes` then say what was passed over.

        raises  ServingError MODEL_INVALID when the directory is not a readable folder
        """
        with self._control:
            layout = read_layout(self._directory)
            self._decisions, self._state_note = self._state.load()
            self._take_in(layout)
            self._reconcile(list(self._models.values()))
        if self._watcher is not None:
            self._watcher.start()
        if self._idle_watcher is not None:
            self._idle_watcher.start()

    def close(self, timeout_s: float = 30.0) -> None:
        """As `VersionStore.close`, and looks no more."""
        for watcher in (self._watcher, self._idle_watcher):
            if watcher is not None:
                watcher.stop()
        super().close(timeout_s)

    # versions come and go

    def load(self, name: str, version: str = "", *, serve: bool = True) -> Future[ModelStatus]:
        """Loads a version (the newest where none is named) from the directory as it is now; future of its status.

        One that is ready is loaded again, beside itself, where its files have changed. A load that fails changes
        nothing else; its status says why.

        serve   True: it shall answer requests that name no version, and is pinned where it would not as the newest.
                False: it shall answer only if asked for; one that serves already goes on
        raises  ServingError MODEL_NOT_FOUND, VERSION_NOT_FOUND, SHUTTING_DOWN; STORAGE_FAILED
        """
        with self._control:
            layout = read_layout(self._directory)
            self._take_in(layout)
            there = {found.version: found for found in layout.versions if found.name == name}
            with self._lock:
                model = self._known(name)
                version = version or next(reversed(there), "")
                entry = model.require_known(version) if version else None
                found = there.get(version)
                loading = next((each for each in model.records() if _is_loading(each, version)), None)
            if found is None or entry is None:
                raise _gone(name, version)
            if loading is not None:
                loading.serve = serve
                return loading.loaded
            if entry.state is not ModelState.READY or fingerprint(found.folder) != entry.fingerprint:
                return self._begin(model, found, serve).loaded
            self._decide(model, self._decided_by_load(model, entry, serve))
            self._reconcile([model])
            done: Future[ModelStatus] = Future()
            with self._lock:
                if entry.servable is None:
                    self.residence.begin_return(entry)
                done.set_result(model.status_of(entry))
        self._tell()
        return done

    def unload(self, name: str, version: str = "") -> list[ModelStatus]:
        """Takes a version, or all of a model's, out of service; each is closed once its last lease is given back.

        raises  ServingError MODEL_NOT_FOUND, VERSION_NOT_FOUND, SHUTTING_DOWN; STORAGE_FAILED
        """
        with self._control:
            with self._lock:
                model = self._known(name)
                entries = [model.require_known(version)] if version else list(model.versions.values())
            versions = frozenset(entry.version for entry in entries)
            self._decide(model, self._decided(name).after_unload(versions))
            labels = sorted(label for label, its in model.choices.labels.items() if its in versions)
            said = f"{_UNLOADED}, and still labelled {', '.join(labels)}" if labels else _UNLOADED
            logger.warning("model %s: %s: %s", name, ", ".join(sorted(versions)), said)
            with self._lock:
                for entry in entries:
                    self._take_out(model, entry, said)
                statuses = [model.status_of(entry) for entry in entries]
            self._reconcile([model])
        self._tell()
        return statuses

    def look(self) -> None:
        """Looks at the directory; what `poll_s` does again and again.

        A version that is new, or whose files have changed, is loaded once it was the same at two looks; one that was
        gone at two looks is taken out of service. A look that finds no model at all where some were known is not
        believed: a disk may be away.

        raises  ServingError MODEL_INVALID when the directory is not a readable folder
        """
        now = take_look(self._directory)
        with self._control:
            before, self._last_look = self._last_look, now
            if self._closing or before is None:
                return
            if self._found and not now.layout.versions:
                logger.error("no model is found in the directory any more; what is loaded goes on serving")
                return
            gone = [name for name in self._found if now.gone(before, name)]
            settled = now.settled(before)
            known = [found for found in now.layout.versions if found[:2] in settled or found[:2] in self._found]
            self._take_in(Layout(tuple(known), now.layout.notes, now.layout.versions_files), gone)
            self._load_again(settled)
            self._reconcile(list(self._models.values()))

    # the directory; all under `_control`

    def _take_in(self, layout: Layout, gone: Iterable[VersionName] = ()) -> None:
        """Makes what was found known, without loading it, and reads what files say of models."""
        for note in layout.notes:
            if note not in self._layout_notes:
                logger.warning("%s", note)
        self._layout_notes = layout.notes
        self._found.update({found[:2]: found for found in layout.versions})
        with self._lock:
            for found in layout.versions:
                model = self._models.setdefault(found.name, KnownModel(found.name, self._policy))
                if found.version not in model.versions:
                    model.add(Version(found.name, found.version, ModelState.UNLOADED))
            for name, version in gone:
                del self._found[name, version]
                self._forget(self._models[name], version)
        for name, model in self._models.items():
            self._read_file(model, layout.versions_files.get(name))
            self._choose_again(model)

    def _forget(self, model: KnownModel, version: str) -> None:
        """A version's folder is gone. Under the lock."""
        entry = model.versions.get(version)
        if entry is not None:
            logger.warning("model %s/%s: %s; unloaded", model.name, version, _GONE)
            self._take_out(model, entry, _GONE)
            del model.versions[version]
            self._choose_serving(model)

    def _load_again(self, settled: Mapping[VersionName, str]) -> None:
        """Loads what is ready or has failed, and whose files have changed and rest."""
        for name, mark in settled.items():
            model = self._models.get(name[0])
            entry = None if model is None else model.versions.get(name[1])
            if model is None or entry is None or mark == entry.refused:
                continue
            if mark == entry.fingerprint:
                if entry.refused:  # the files are those that serve again
                    entry.refused = entry.reason = ""
                continue
            if entry.state is ModelState.READY and name[1] not in model.candidates:
                self._begin(model, self._found[name], None)
            elif entry.state is ModelState.FAILED:
                with self._lock:
                    entry.state, entry.reason = ModelState.UNLOADED, _CHANGED

    def _reconcile(self, models: Iterable[KnownModel]) -> None:
        """Loads what is wanted and not loaded, the newest of each model first; unloads what is not wanted, once what is
        wanted is ready."""
        if self._closing:
            return
        missing: list[tuple[bool, KnownModel, str]] = []  # whether a newer one of its model is missing too
        for model in models:
            with self._lock:
                wanted = model.wanted()
                complete = bool(wanted) and all(model.versions[each].state is ModelState.READY for each in wanted)
                for version, entry in model.versions.items():
                    if version in wanted:
                        if entry.state in (ModelState.UNLOADED, ModelState.UNLOADING):
                            missing.append((any(each is model for _, each, _ in missing), model, version))
                    elif entry.state is ModelState.READY and complete:
                        self._take_out(model, entry, _LEFT_OUT)
                    elif entry.state is ModelState.UNLOADED and not entry.reason:
                        entry.reason = _UNLOADED if version in model.choices.unloaded else _LEFT_OUT
        missing.sort(key=lambda each: version_key(each[2]), reverse=True)
        for _, model, version in sorted(missing, key=lambda each: each[0]):
            self._begin(model, self._found[model.name, version], None)


def _is_loading(entry: Version, version: str) -> bool:
    return entry.version == version and entry.state is ModelState.LOADING


def _gone(name: str, version: str) -> ServingError:
    return ServingError(
        Reason.VERSION_NOT_FOUND,
        f"model {name!r} version {version!r}: {_GONE}",
        resource=Resource("model_version", f"{name}/{version}"),
    )
