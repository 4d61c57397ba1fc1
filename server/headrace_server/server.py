"""Server: puts the rooms together, starts them, and takes them down without losing a request.

    start   admin listener ─▶ models begin to load ─▶ gRPC listens (health NOT_SERVING) ─▶ returns
    ready   no model is loading any more: health SERVING, /readyz 200. Versions that failed are said and hide nobody;
            where not one could be loaded, `wait_ready` raises, but for a server of catalogs, which does without
    stop    health NOT_SERVING ─▶ running calls end (grace) ─▶ engines close ─▶ admin listener

In one's own process, without a socket:

    with Server(repository="models") as server:
        server.classify("spam", ["You have won!"])
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import inf
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from headrace_server.config import AdminOptions, CatalogOptions, ServerConfig, TransportOptions
from headrace_server.errors import Reason, ServingError
from headrace_server.items.kernel_scanner import KernelScanner
from headrace_server.items.readings import catalog_readings
from headrace_server.items.store import CatalogStore
from headrace_server.jobs.catalogs import Catalogs
from headrace_server.jobs.classify import Classify
from headrace_server.jobs.embed import Embed
from headrace_server.jobs.generate import Generate
from headrace_server.jobs.infer import Infer
from headrace_server.jobs.inprocess import InProcess, Jobs
from headrace_server.jobs.input_vectors import InputVectors
from headrace_server.jobs.readings import scan_readings
from headrace_server.jobs.recommend import Recommend
from headrace_server.jobs.recorded_requests import RecordedRequests
from headrace_server.jobs.rerank import Rerank
from headrace_server.jobs.shadow import ShadowCopies
from headrace_server.jobs.similarity import Similarity
from headrace_server.jobs.tokenize import Tokenize
from headrace_server.models.load import LoadDefaults
from headrace_server.serving.readings import memory_readings, model_readings
from headrace_server.serving.repository import ModelState, ModelStatus, Repository
from headrace_server.serving.rollback import RollbackWatch
from headrace_server.serving.statistics import RequestObservers
from headrace_server.telemetry.metrics import Metrics
from headrace_server.telemetry.tracing import open_tracing

if TYPE_CHECKING:
    from headrace_server.rpc.endpoints import Endpoints
    from headrace_server.telemetry.admin import AdminListener

__all__ = ["Addresses", "Server", "server_version"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a server really listens: gRPC in the order asked for; the admin and the management listener, None: off."""

    grpc: tuple[str, ...] = ()
    admin: str | None = None
    management: str | None = None


class Server(InProcess):
    """One model repository, served over gRPC, in this process, or both. Started once, stopped once.

    config      everything; or, instead of it,
    repository  the models' directory, with
    listen      addresses for gRPC; none: no socket is opened
    admin       address of the admin listener; None: off
    catalogs    the directory of item catalogs, opened by `start`; None: no catalogs
    sections    other fields of ServerConfig: threads, engine, batching, limits
    raises      ServingError CONFIG_INVALID
    """

    def __init__(
        self,
        config: ServerConfig | None = None,
        *,
        repository: str | os.PathLike[str] | None = None,
        listen: str | Sequence[str] | None = None,
        admin: str | None = None,
        catalogs: str | os.PathLike[str] | None = None,
        **sections: Any,
    ) -> None:
        if catalogs is not None:
            sections["catalogs"] = CatalogOptions(directory=Path(catalogs))
        self.config = _config(config, repository, listen, admin, sections)
        self._tracing = open_tracing(self.config.tracing, server_version())
        self.metrics = Metrics(server_version(), tracing=self._tracing, slow_s=self.config.log_slow_s or inf)
        threads = self.config.threads.resolved()
        self._repository = Repository(
            self.config.repository,
            defaults=_load_defaults(self.config),
            threads=threads,
            lifecycle=self.config.lifecycle,
            check=RecordedRequests(self.config.limits).check,
            stalls=self.metrics.stalls,
            batches=self.metrics.serving,
            decoders=self.metrics.decoder,
            requests=RequestObservers(self.metrics.serving, self.metrics.traffic),
            on_change=self._on_change,
        )
        self._rollback = RollbackWatch(self._repository, self.metrics.traffic)
        self._copies = ShadowCopies(self._repository, self.metrics.traffic)
        limits = self.config.limits
        jobs = Jobs(
            classify=Classify(self._repository, limits, self._copies),
            embed=Embed(self._repository, limits, self._copies),
            similarity=Similarity(self._repository, limits, self._copies),
            rerank=Rerank(self._repository, limits, self._copies),
            tokenize=Tokenize(self._repository, limits),
            generate=Generate(self._repository, limits),
            infer=Infer(self._repository, limits, self._copies),
        )
        super().__init__(jobs, self._repository)
        self.metrics.watch(lambda: model_readings(self._repository))
        self.metrics.watch(lambda: memory_readings(self._repository.residence))
        self.addresses = Addresses()  # where it really listens, once started
        self._num_kernel_threads = threads.kernel_threads
        self._store: CatalogStore | None = None
        self._endpoints: Endpoints | None = None
        self._admin: AdminListener | None = None
        self._lock = threading.Lock()
        self._ready = False
        self._stopping = False
        self._stopped = threading.Event()

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_ready()
        except BaseException:
            self.stop(grace_s=0)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> Addresses:
        """Opens every listener and begins to load the models; returns where it listens, before they are ready.

        raises  ServingError CONFIG_INVALID for an address that cannot be opened; MODEL_INVALID for a repository that is
                no readable folder; STORAGE_LOCKED, STORAGE_CORRUPT, STORAGE_FAILED for catalogs that cannot be opened.
                Then nothing listens any more.
        """
        started = time.monotonic()
        if self._tracing is not None:
            self._tracing.start()
        self.metrics.stalls.start()
        try:
            self._repository.start()
            self._open_catalogs()
            admin = self._open_admin()
            grpc, management = self._open_endpoints()
        except BaseException:
            self.stop(grace_s=0)
            raise
        threading.Thread(target=self._become_ready, args=(started,), name="headrace-ready", daemon=True).start()
        self.addresses = Addresses(grpc, admin, management)
        return self.addresses

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Waits until no model is loading. True: requests are taken. False: the time was up.

        raises  ServingError MODEL_FAILED where not one version could be loaded and there are no catalogs to serve,
                SHUTTING_DOWN where the server stops
        """
        if not self._repository.wait_ready(timeout_s):
            return False
        if self._stopping:
            raise ServingError(Reason.SHUTTING_DOWN, "the server is shutting down")
        statuses = self._repository.status()
        if self._store is None and not any(status.state is ModelState.READY for status in statuses):
            raise ServingError(Reason.MODEL_FAILED, _why_none(statuses, self._repository.notes))
        self._set_ready()
        return True

    @property
    def is_ready(self) -> bool:
        """Whether requests are taken: models are loaded and the server is not stopping."""
        return self._ready and not self._stopping

    @property
    def notes(self) -> tuple[str, ...]:
        """What was passed over in the repository, and why."""
        return self._repository.notes

    @property
    def transport_name(self) -> tuple[str, str]:
        """("direct" or "aio", why the direct one was not taken); ("", "") where there is none."""
        return ("", "") if self._endpoints is None else self._endpoints.transport_name

    @property
    def num_calls(self) -> int:
        """RPCs in flight."""
        return 0 if self._endpoints is None else self._endpoints.num_calls

    def models(self) -> list[ModelStatus]:
        """Every version as it stands, by name, newest first."""
        return self._repository.status()

    def stop(self, grace_s: float | None = None) -> None:
        """Says NOT_SERVING, refuses new calls, lets running ones end for `grace_s` (None: as configured), and frees
        everything. Returns when that is done; a second call waits for the first."""
        with self._lock:
            first, self._stopping = not self._stopping, True
        if not first:
            self._stopped.wait()
            return
        transport = self.config.transport
        if grace_s is None:
            grace_s = transport.drain_grace_s if transport is not None else 30.0
        limit = time.monotonic() + grace_s
        self.metrics.set_ready(False)
        if self._endpoints is not None:
            self._endpoints.stop(grace_s)
        self._rollback.close()
        self._copies.close()
        self._repository.drain(max(0.0, limit - time.monotonic()))
        self._repository.close()
        if self.jobs.recommend is not None:
            self.jobs.recommend.drain(max(0.0, limit - time.monotonic()))
            self.jobs.recommend.close()
        if self._store is not None:
            self._store.close()
        if self._tracing is not None:
            self._tracing.stop()
        if self._admin is not None:
            self._admin.stop()
        self.metrics.stalls.stop()
        self._stopped.set()

    # starting

    def _open_admin(self) -> str | None:
        if self.config.admin.listen is None:
            return None
        from headrace_server.telemetry.admin import AdminListener

        self._admin = AdminListener(self.config.admin.listen, self.metrics, lambda: self.is_ready)
        self._admin.start()
        return self._admin.address

    def _open_catalogs(self) -> None:
        directory = self.config.catalogs.directory
        if directory is None:
            return
        scanner = KernelScanner(self._num_kernel_threads)
        self._store = store = CatalogStore(directory, scanner=scanner)
        self.metrics.watch(lambda: catalog_readings(store))
        embedder = InputVectors(self._repository, self.config.limits, self._copies)
        recommend = Recommend(store, embedder, observer=self.metrics.scans)
        self.metrics.watch(lambda: scan_readings(scanner, recommend))
        self.jobs = replace(self.jobs, catalogs=Catalogs(store, embedder), recommend=recommend)

    def _open_endpoints(self) -> tuple[tuple[str, ...], str | None]:
        if self.config.transport is None and self.config.management.listen is None:
            return (), None
        # grpc is not imported by a server without a socket; models load meanwhile.
        from headrace_server.rpc.endpoints import Endpoints
        from headrace_server.rpc.jobs import Jobs as AskedJobs

        jobs = AskedJobs(
            classify=self.jobs.classify,
            embed=self.jobs.embed,
            similarity=self.jobs.similarity,
            rerank=self.jobs.rerank,
            tokenize=self.jobs.tokenize,
            generate=self.jobs.generate,
            infer=self.jobs.infer,
            catalogs=self.jobs.catalogs,
            recommend=self.jobs.recommend,
        )
        endpoints = Endpoints(self.config, jobs=jobs, models=self._repository, observer=self.metrics.rpc)
        self._endpoints = endpoints
        self.metrics.watch(endpoints.readings)
        return endpoints.start()

    def _become_ready(self, started: float) -> None:
        """Waits for the models, and says how it went."""
        try:
            self.wait_ready()
        except ServingError as error:
            if error.reason is not Reason.SHUTTING_DOWN:
                logger.error("not ready: %s", error.message)
            return
        statuses = self._repository.status()
        states = [status.state for status in statuses]
        if ModelState.READY not in states:
            logger.warning("catalogs alone are served: %s", _why_none(statuses, self._repository.notes))
        logger.info(
            "ready",
            extra={
                "seconds": round(time.monotonic() - started, 3),
                "num_ready": states.count(ModelState.READY),
                "num_failed": states.count(ModelState.FAILED),
            },
        )

    def _set_ready(self) -> None:
        with self._lock:
            if self._ready or self._stopping:
                return
            self._ready = True
        self.metrics.set_ready(True)
        if self._endpoints is not None:
            self._endpoints.set_ready()

    def _on_change(self) -> None:
        self._rollback.look_again()
        if self._endpoints is not None:
            self._endpoints.refresh()


def server_version() -> str:
    """The installed distribution's version; "0" where the code runs uninstalled."""
    try:
        return version("headrace")
    except PackageNotFoundError:
        return "0"


def _load_defaults(config: ServerConfig) -> LoadDefaults:
    return LoadDefaults(engine=config.engine, batching=config.batching, decoder=config.decoder, limits=config.limits)


def _config(
    config: ServerConfig | None,
    repository: str | os.PathLike[str] | None,
    listen: str | Sequence[str] | None,
    admin: str | None,
    sections: dict[str, Any],
) -> ServerConfig:
    if (config is None) == (repository is None):
        raise TypeError("Server needs a config or a repository, and not both")
    if config is not None:
        if listen is not None or admin is not None or sections:
            raise TypeError("what a Server listens on and how it runs stand in its config")
        return config
    assert repository is not None
    addresses = (listen,) if isinstance(listen, str) else tuple(listen or ())
    transport = sections.pop("transport", None)
    if addresses:
        transport = replace(transport or TransportOptions(), listen=addresses)
    return ServerConfig(repository=Path(repository), transport=transport, admin=AdminOptions(listen=admin), **sections)


def _why_none(statuses: Sequence[ModelStatus], notes: Sequence[str]) -> str:
    failed = [f"{status.name}/{status.version}: {status.reason}" for status in statuses]
    return f"no model could be loaded: {'; '.join(failed or notes)}"
