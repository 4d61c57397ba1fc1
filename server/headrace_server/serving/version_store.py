"""VersionStore: versions loaded on threads of their own, leased, swapped, and closed once nobody leases them any more.

    LOADING ──▶ READY ──▶ UNLOADING ──▶ UNLOADED          LOADING ──▶ FAILED (with a reason; hides nobody else)

A version that is READY may rest, out of memory: see residence.py.

Two locks. `_control` is held by whoever changes which versions there are, over reads of the directory and writes of the
state file; `_lock` for moments only, by every request. `_control` is taken first.
"""

from __future__ import annotations

import difflib
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from headrace_server.errors import Reason, Resource, ServingError
from headrace_server.models.layout import FoundVersion
from headrace_server.serving.known_model import KnownModel
from headrace_server.serving.loader import Loader
from headrace_server.serving.memory import MemoryBudget
from headrace_server.serving.residence import Residence
from headrace_server.serving.servable import Servable
from headrace_server.serving.statistics import RequestObserver, StatisticsSnapshot, VersionStatistics
from headrace_server.serving.version import Lease, ModelState, ModelStatus, Version

__all__ = ["VersionStore"]

logger = logging.getLogger(__name__)


class VersionStore(ABC):
    """The loaded versions, without what decides which are loaded. Thread-safe.

    requests   told of every request
    on_change  called after a version's state changed, on whichever thread did it, holding no lock
    """

    def __init__(
        self,
        loader: Loader,
        *,
        requests: RequestObserver | None = None,
        on_change: Callable[[], None] | None = None,
        num_loaders: int = 2,
        memory: MemoryBudget | None = None,
        idle_s: float = 0.0,
    ) -> None:
        self._loader = loader
        self._requests = requests
        self._on_change = on_change
        self._control = threading.RLock()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._models: dict[str, KnownModel] = {}
        self._direct: dict[str, Version] = {}  # by model: answers without any choice; empty while closing
        self._leaving: set[Version] = set()  # taken out of service, not yet closed; a new load may have its place
        self._closing = False
        self._loaders = ThreadPoolExecutor(num_loaders, thread_name_prefix="load")
        self._closers = ThreadPoolExecutor(1, thread_name_prefix="unload")
        self._num_unsettled = 0  # loads that have not ended, or that others may follow from
        self._num_loads: Counter[tuple[str, str]] = Counter()
        self.residence = Residence(
            self._changed,
            self._models,
            budget=memory or MemoryBudget(),
            load=self._load_resting,
            begin=self._loaders.submit,
            on_failed=lambda entry: self._choose_serving(self._models[entry.name]),
            on_change=self._tell,
            idle_s=idle_s,
        )

    def acquire(self, name: str, *, version: str = "", label: str = "", routing_key: str = "") -> Lease:
        """A lease on a ready version: the one named or labelled, or the one that answers requests which name none.
        To be given back, once, by whoever holds it.

        routing_key  requests of one key get to the same version of a split
        raises       ServingError MODEL_NOT_FOUND, VERSION_NOT_FOUND (with the resource), MODEL_LOADING, MODEL_FAILED,
                     SHUTTING_DOWN
        """
        shadow = ""
        by_split = False
        with self._lock:
            entry = None if version or label else self._direct.get(name)
            if entry is None:
                model = self._known(name)
                entry = model.find(version, label, routing_key)
                if not version:
                    shadow = model.shadow_of(entry)
                    by_split = not label and model.choices.split is not None
            if entry.servable is None:
                raise self.residence.resting(entry)
            entry.num_leases += 1
            return Lease(entry.servable, entry, self._give_back, self._requests, shadow, by_split)

    def status(self) -> list[ModelStatus]:
        """Every version as it stands, by name, newest first."""
        with self._lock:
            return [
                model.status_of(entry) for _, model in sorted(self._models.items()) for entry in model.versions.values()
            ]

    def statistics(self, name: str = "", version: str = "") -> Sequence[tuple[str, str, StatisticsSnapshot]]:
        """(model, version, counts) of every loaded version that is meant, by name, newest first.

        raises  ServingError MODEL_NOT_FOUND, VERSION_NOT_FOUND, SHUTTING_DOWN
        """
        with self._lock:
            models = [self._known(name)] if name else [model for _, model in sorted(self._models.items())]
            if name and version:
                models[0].require_known(version)
            loaded = [entry for model in models for entry in model.ready().values() if version in ("", entry.version)]
        return [(entry.name, entry.version, entry.statistics.snapshot()) for entry in loaded]

    def statistics_of(self, name: str, version: str) -> VersionStatistics | None:
        """Where the requests of a ready version are counted; None: it is not ready."""
        with self._lock:
            model = self._models.get(name)
            entry = None if model is None else model.ready().get(version)
            return None if entry is None else entry.statistics

    def num_loads(self) -> Mapping[tuple[str, str], int]:
        """Loads that have ended, by model and outcome ("succeeded" or "failed")."""
        with self._lock:
            return dict(self._num_loads)

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Waits until nothing is loading. True: everything is ready or failed. False: the time was up."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closing or not self._num_unsettled, timeout_s)

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for every lease to be given back. False: the time was up."""
        with self._changed:
            self._refuse_all()
            return self._changed.wait_for(lambda: not any(entry.num_leases for entry in self._all()), timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Refuses new requests, fails what waits with SHUTTING_DOWN, and frees every engine."""
        with self._lock:
            self._refuse_all()
        limit = time.monotonic() + timeout_s
        self._loaders.shutdown(wait=False, cancel_futures=True)
        self._closers.shutdown(wait=False, cancel_futures=True)
        for last in (False, True):  # a load that is under way ends in its own time, and is closed then
            with self._lock:
                entries = self._all()
            for entry in entries:
                self._retire(entry, max(0.0, limit - time.monotonic()))
            if not last:
                self._loaders.shutdown(wait=True)
                self._closers.shutdown(wait=True)
        self.residence.join()

    # loading

    @abstractmethod
    def _before_ready(self, model: KnownModel, entry: Version) -> None:
        """A version is loaded and about to be ready. Raises ServingError where it must not be. Under `_control`."""

    @abstractmethod
    def _reconcile(self, models: Iterable[KnownModel]) -> None:
        """Versions or decisions have changed: loads what is wanted, unloads what is not. Under `_control`."""

    def _begin(self, model: KnownModel, found: FoundVersion, serve: bool | None) -> Version:
        """A version's loading: beside itself where it is ready, else in its own place. Under `_control`."""
        entry = Version(found.name, found.version, serve=serve, folder=found.folder)
        entry.loaded.set_running_or_notify_cancel()
        with self._lock:
            if self._closing:
                raise _shutting_down()
            present = model.versions.get(found.version)
            if present is not None and present.state is ModelState.READY:
                model.candidates[found.version] = entry
            else:
                model.add(entry)
                self._choose_serving(model)
            running = self._loaders.submit(self._load, model, entry, found)
            self._num_unsettled += 1
        running.add_done_callback(lambda running: _tell_of_cancelled(running, entry))
        return entry

    def _load(self, model: KnownModel, entry: Version, found: FoundVersion) -> None:
        try:
            self._load_and_place(model, entry, found)
        finally:
            with self._changed:
                self._num_unsettled -= 1
                self._changed.notify_all()

    def _load_and_place(self, model: KnownModel, entry: Version, found: FoundVersion) -> None:
        servable, failure = self._loader.load(entry, found.folder, self.residence.admit)
        with self._control:
            if servable is not None and not self._closing and entry.state is ModelState.LOADING:
                try:
                    self._before_ready(model, entry)
                except ServingError as error:
                    logger.error("model %s/%s: not ready: %s %s", *found[:2], error.message, error.detail)
                    servable.close()
                    servable, failure = None, error
            with self._lock:
                status = self._put_in_place(model, entry, servable, "" if failure is None else failure.message)
            if not self._closing:
                self._reconcile([model])
        if servable is None:
            self.residence.release(entry)
        entry.loaded.set_result(status)
        self._tell()

    def _load_resting(self, entry: Version) -> tuple[Servable | None, ServingError | None]:
        assert entry.folder is not None, "what is ready was loaded from a folder"
        return self._loader.load(entry, entry.folder, self.residence.admit)

    def _put_in_place(self, model: KnownModel, entry: Version, servable: Servable | None, failure: str) -> ModelStatus:
        """What a load has come to, seen by all requests at once. Under the lock."""
        self._num_loads[entry.name, "failed" if servable is None else "succeeded"] += 1
        replaces = model.candidates.get(entry.version) is entry
        if replaces:
            del model.candidates[entry.version]
        old = model.versions.get(entry.version)
        entry.servable = servable
        if entry.state is not ModelState.LOADING:  # taken out of service meanwhile
            self._leave(entry)
        elif servable is None:
            entry.state, entry.reason = ModelState.FAILED, failure
            if replaces and old is not None:
                old.reason, old.refused = f"replacement failed: {failure}", entry.fingerprint
        else:
            entry.state, entry.ready_time = ModelState.READY, time.time()
            entry.last_used = time.monotonic()
            if replaces and old is not None:
                model.add(entry)
                self._leave(old)
        self._choose_serving(model)
        return model.status_of(entry)

    def _choose_serving(self, model: KnownModel) -> None:
        """Under the lock."""
        model.choose_serving()
        if model.direct is None or self._closing:
            self._direct.pop(model.name, None)
        else:
            self._direct[model.name] = model.direct

    # taking out of service

    def _take_out(self, model: KnownModel, entry: Version, reason: str) -> None:
        """Ends a version's service, and the loading of what would replace it. Under the lock."""
        candidate = model.candidates.get(entry.version)
        if candidate is not None:
            candidate.state = ModelState.UNLOADING
        entry.reason = reason
        if entry.state is ModelState.READY:
            self._leave(entry)
        elif entry.state is ModelState.LOADING:
            entry.state = ModelState.UNLOADING  # closed when the load has ended
        elif entry.state is ModelState.FAILED:
            entry.state = ModelState.UNLOADED
        self._choose_serving(model)

    def _leave(self, entry: Version) -> None:
        """Under the lock."""
        entry.state = ModelState.UNLOADING
        self._leaving.add(entry)
        if not entry.num_leases and not self._closing:
            self._closers.submit(self._retire, entry)

    def _retire(self, entry: Version, timeout_s: float = 30.0) -> None:
        """Closes a version that nobody leases any more, once."""
        with self._lock:
            servable, entry.servable = entry.servable, None
            if servable is None and entry not in self._leaving:
                return
        if servable is not None:
            servable.close(timeout_s)
            del servable
        self.residence.release(entry)
        with self._lock:
            entry.state = ModelState.UNLOADED
            self._leaving.discard(entry)
            model = self._models.get(entry.name)
            if model is not None:
                self._choose_serving(model)
            self._changed.notify_all()
        self._tell()

    def _give_back(self, lease: Lease) -> None:
        with self._lock:
            entry, lease.version = lease.version, None
            if entry is None:
                return
            entry.num_leases -= 1
            if entry.num_leases:
                return
            entry.last_used = time.monotonic()
            if self._closing:
                self._changed.notify_all()
            elif entry.state is ModelState.UNLOADING:
                # Not closed here: this may be a worker of the very batcher that is to be closed.
                self._closers.submit(self._retire, entry)

    def _refuse_all(self) -> None:
        """Under the lock."""
        self._closing = True
        self._direct.clear()
        self.residence.close()
        self._changed.notify_all()

    # knowing

    def _known(self, name: str) -> KnownModel:
        """Under the lock. Raises ServingError MODEL_NOT_FOUND, SHUTTING_DOWN."""
        if self._closing:
            raise _shutting_down()
        model = self._models.get(name)
        if model is not None and model.versions:
            return model
        near = difflib.get_close_matches(name[:256], [each for each in self._models if each != name], n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ServingError(
            Reason.MODEL_NOT_FOUND,
            f"model {name[:256]!r} is not in the repository{hint}",
            resource=Resource("model", name[:256]),
        )

    def _all(self) -> list[Version]:
        """Every record that may hold memory or be leased. Under the lock."""
        known = [entry for model in list(self._models.values()) for entry in model.records()]
        return known + [entry for entry in list(self._leaving) if entry not in known]

    def _tell(self) -> None:
        if self._on_change is not None:
            try:
                self._on_change()
            except Exception:
                logger.exception("the listener for model changes failed")


def _shutting_down() -> ServingError:
    return ServingError(Reason.SHUTTING_DOWN, "the server is shutting down")


def _tell_of_cancelled(running: Future[None], entry: Version) -> None:
    """A load that the end of the server left unbegun, or that a fault of ours ended."""
    if entry.loaded.done():
        return
    error = None if running.cancelled() else running.exception()
    if error is not None:
        logger.error("model %s/%s: the load ended by a fault", entry.name, entry.version, exc_info=error)
    entry.loaded.set_exception(_shutting_down())
