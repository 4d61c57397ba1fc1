"""Repository: the models a server knows, their versions and readiness, and the leases that keep a version alive.

    LOADING ──▶ READY ──▶ UNLOADING ──▶ UNLOADED          LOADING ──▶ FAILED (with a reason; hides nobody else)

Every version found is loaded, on threads of its own, newest first; the server may listen meanwhile. Requests that name
no version get the serving version: the newest that is ready. While a newer one loads, what serves goes on serving; at
start nothing answers in its place. A version that is taken out of service is closed once its last lease is given back.
"""

from __future__ import annotations

import difflib
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from headrace_server.config import ThreadBudget
from headrace_server.errors import Reason, Resource, ServingError
from headrace_server.models.layout import FoundVersion, discover, read_layout, version_key
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.serving.batch import BatchObserver
from headrace_server.serving.decoder.observer import DecoderObserver
from headrace_server.serving.loading import load_servable
from headrace_server.serving.servable import Servable
from headrace_server.serving.statistics import RequestObserver
from headrace_server.serving.version import Lease, ModelState, ModelStatus, Version

__all__ = ["Lease", "ModelState", "ModelStatus", "Repository"]

logger = logging.getLogger(__name__)

_RETRY_LOADING_S = 1.0


class Repository:
    """The versions of one directory. Thread-safe.

    directory  `<name>/<version>/…`, a folder a model, or one model's folder
    defaults   engine, batching and limits that a model's manifest may override
    threads    the one budget that every engine divides
    batches    told of what models that read rows do; `decoders` of what text generators do; `requests` of all requests
    on_change  called after a version's state changed, on a loading thread, holding no lock
    """

    def __init__(
        self,
        directory: Path,
        *,
        defaults: LoadDefaults | None = None,
        threads: ThreadBudget | None = None,
        batches: BatchObserver | None = None,
        decoders: DecoderObserver | None = None,
        requests: RequestObserver | None = None,
        on_change: Callable[[], None] | None = None,
        num_loaders: int = 2,
    ) -> None:
        self._directory = directory
        self._defaults = defaults or LoadDefaults()
        self._threads = threads or ThreadBudget()
        self._batches = batches
        self._decoders = decoders
        self._requests = requests
        self._on_change = on_change
        self._changed = threading.Condition()
        self._versions: dict[str, dict[str, Version]] = {}  # by name, newest first
        self._serving: dict[str, Version | None] = {}
        self._leaving: set[Version] = set()  # taken out of service, not yet closed; a new load may have its place
        self._closing = False
        self._loaders = ThreadPoolExecutor(num_loaders, thread_name_prefix="load")
        self.notes: tuple[str, ...] = ()

    def start(self) -> None:
        """Finds the versions and begins to load them; returns at once. `notes` then say what was passed over.

        raises  ServingError MODEL_INVALID when the directory is not a readable folder
        """
        layout = read_layout(self._directory)
        self.notes = layout.notes
        for note in layout.notes:
            logger.warning("%s", note)
        newest_first = sorted(layout.versions, key=lambda found: version_key(found.version), reverse=True)
        newest = {found.name: found for found in reversed(newest_first)}
        # What requests will ask for first is loaded first: the newest of each model, then the others.
        for found in sorted(newest_first, key=lambda found: found is not newest[found.name]):
            self._begin(found)

    def load(self, name: str, version: str = "") -> Future[ModelStatus]:
        """Loads a version (the newest where none is named) from the directory as it is now; future of its status.

        A load that fails changes nothing else; its status says why. A version that is loading or ready is left so.
        raises  ServingError MODEL_NOT_FOUND, VERSION_NOT_FOUND, SHUTTING_DOWN
        """
        there = [found for found in discover(self._directory) if found.name == name]
        if not there:
            raise self._model_not_found(name)
        found = next((found for found in reversed(there) if version in ("", found.version)), None)
        if found is None:
            raise _version_not_found(name, version)
        return self._begin(found)

    def unload(self, name: str, version: str) -> None:
        """Takes a version out of service; it is closed once its last lease is given back.

        raises  ServingError as `acquire` does
        """
        with self._changed:
            entry = self._find(name, version, "")
            entry.state = ModelState.UNLOADING
            self._leaving.add(entry)
            self._choose_serving(name)
            if not entry.num_leases:
                self._loaders.submit(self._retire, entry)
        self._tell()

    def acquire(self, name: str, *, version: str = "", label: str = "", routing_key: str = "") -> Lease:
        """A lease on a ready version: the one named, or the serving one. To be released, once, by whoever holds it.

        routing_key  not read yet: all of a model's traffic goes to its serving version
        raises       ServingError MODEL_NOT_FOUND, VERSION_NOT_FOUND (with the resource), MODEL_LOADING, MODEL_FAILED,
                     SHUTTING_DOWN
        """
        with self._changed:
            entry = self._serving.get(name) if not version and not label and not self._closing else None
            if entry is None:
                entry = self._find(name, version, label)
            entry.num_leases += 1
            assert entry.servable is not None
            return Lease(entry.servable, entry, self._give_back, self._requests)

    def status(self) -> list[ModelStatus]:
        """Every version as it stands, by name, newest first."""
        with self._changed:
            return [
                entry.status(serving=self._serving.get(name) is entry)
                for name, versions in sorted(self._versions.items())
                for entry in versions.values()
            ]

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Waits until nothing is loading. True: everything is ready or failed. False: the time was up."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._closing or not any(entry.state is ModelState.LOADING for entry in self._all()), timeout_s
            )

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for every lease to be given back. False: the time was up."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not any(entry.num_leases for entry in self._all()), timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Refuses new requests, fails what waits with SHUTTING_DOWN, and frees every engine."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        limit = time.monotonic() + timeout_s
        self._loaders.shutdown(wait=False, cancel_futures=True)
        for last in (False, True):  # a load that is under way ends in its own time, and is closed then
            for entry in self._all():
                self._retire(entry, max(0.0, limit - time.monotonic()))
            if not last:
                self._loaders.shutdown(wait=True)

    # loading

    def _begin(self, found: FoundVersion) -> Future[ModelStatus]:
        with self._changed:
            if self._closing:
                raise ServingError(Reason.SHUTTING_DOWN, "the server is shutting down")
            versions = self._versions.setdefault(found.name, {})
            present = versions.get(found.version)
            if present is not None and present.state in (ModelState.LOADING, ModelState.READY):
                assert present.loaded is not None
                return present.loaded
            entry = Version(found.name, found.version)
            versions[found.version] = entry
            by_age = sorted(versions.items(), key=lambda item: (version_key(item[0]), item[0]), reverse=True)
            self._versions[found.name] = dict(by_age)
            self._choose_serving(found.name)
            entry.loaded = self._loaders.submit(self._load, entry, found.folder)
            return entry.loaded

    def _load(self, entry: Version, folder: Path) -> ModelStatus:
        started = time.monotonic()
        servable: Servable | None = None
        reason = ""
        try:
            entry.model = load_model(folder, name=entry.name, version=entry.version, defaults=self._defaults)
            servable = load_servable(entry.model, self._threads, batches=self._batches, decoders=self._decoders)
        except ServingError as error:
            reason = error.message
            logger.error("model %s/%s: not loaded: %s %s", entry.name, entry.version, reason, error.detail)
        except BaseException:
            reason = "a fault of the server; its log says more"
            logger.exception("model %s/%s: not loaded", entry.name, entry.version)
        else:
            logger.info("model %s/%s: ready in %.2f s", entry.name, entry.version, time.monotonic() - started)
        with self._changed:
            if servable is None:
                entry.state, entry.reason = ModelState.FAILED, reason
            else:
                entry.state, entry.ready_time, entry.servable = ModelState.READY, time.time(), servable
            self._choose_serving(entry.name)
            status = entry.status(serving=self._serving.get(entry.name) is entry)
            self._changed.notify_all()
        self._tell()
        return status

    def _choose_serving(self, name: str) -> None:
        """The newest ready version; what serves goes on serving while a newer one loads. Under the lock."""
        current = self._serving.get(name)
        keeps = current is not None and current.state is ModelState.READY
        chosen: Version | None = None
        for entry in self._versions[name].values():
            if entry.state is ModelState.READY:
                chosen = entry
                break
            if entry.state is ModelState.LOADING:
                chosen = current if keeps else None
                break
        self._serving[name] = chosen

    # leases

    def _find(self, name: str, version: str, label: str) -> Version:
        """A ready version, or why there is none. Under the lock."""
        if self._closing:
            raise ServingError(Reason.SHUTTING_DOWN, "the server is shutting down")
        versions = self._versions.get(name)
        if not versions:
            raise self._model_not_found(name)
        if label:
            raise _version_not_found(name, label, kind="label")
        entry = versions.get(version) if version else self._serving.get(name)
        if entry is None:
            if version:
                raise _version_not_found(name, version)
            waiting = (other for other in versions.values() if other.state is ModelState.LOADING)
            entry = next(waiting, next(iter(versions.values())))
        if entry.state is ModelState.LOADING:
            raise ServingError(
                Reason.MODEL_LOADING, f"model {name!r} is being loaded", retry_after_s=_RETRY_LOADING_S, model=name
            )
        if entry.state is ModelState.FAILED:
            raise ServingError(
                Reason.MODEL_FAILED,
                f"model {name!r} version {entry.version!r} could not be loaded: {entry.reason}",
                model=name,
                version=entry.version,
            )
        if entry.state is not ModelState.READY:
            raise _version_not_found(name, entry.version)
        return entry

    def _give_back(self, lease: Lease) -> None:
        with self._changed:
            entry, lease.version = lease.version, None
            if entry is None:
                return
            entry.num_leases -= 1
            if entry.num_leases:
                return
            if self._closing:
                self._changed.notify_all()
            elif entry.state is ModelState.UNLOADING:
                # Not closed here: this may be a worker of the very batcher that is to be closed.
                self._loaders.submit(self._retire, entry)

    def _retire(self, entry: Version, timeout_s: float = 30.0) -> None:
        """Closes a version that nobody leases any more, once."""
        with self._changed:
            servable, entry.servable = entry.servable, None
        if servable is None:
            return
        servable.close(timeout_s)
        with self._changed:
            entry.state = ModelState.UNLOADED
            self._leaving.discard(entry)
            self._choose_serving(entry.name)
            self._changed.notify_all()
        self._tell()

    def _all(self) -> list[Version]:
        known = [entry for versions in self._versions.values() for entry in versions.values()]
        return known + [entry for entry in self._leaving if entry not in known]

    def _model_not_found(self, name: str) -> ServingError:
        near = difflib.get_close_matches(name[:256], list(self._versions), n=3)
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        return ServingError(
            Reason.MODEL_NOT_FOUND,
            f"model {name[:256]!r} is not in the repository{hint}",
            resource=Resource("model", name[:256]),
        )

    def _tell(self) -> None:
        if self._on_change is not None:
            try:
                self._on_change()
            except Exception:
                logger.exception("the listener for model changes failed")


def _version_not_found(name: str, version: str, kind: str = "version") -> ServingError:
    return ServingError(
        Reason.VERSION_NOT_FOUND,
        f"model {name!r} has no {kind} {version[:256]!r}",
        resource=Resource("model_version", f"{name}/{version[:256]}"),
    )
