"""Endpoints: all that a server does over gRPC: the data listeners, and beside them the management listener.

    start   both listen; health NOT_SERVING
    ready   health SERVING
    stop    health NOT_SERVING, every Watch ended, no version is changed any more ─▶ running calls end (grace), watched
            by whoever looks at the management listener ─▶ management ends

Management has its own transport and its own preparing threads: a full queue of requests does not keep an operator out.
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Iterator
from dataclasses import replace

from headrace_server.config import ServerConfig, TransportOptions
from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.health import Health
from headrace_server.rpc.jobs import Jobs
from headrace_server.rpc.management import ModelManagement
from headrace_server.rpc.model_changes import ModelChanges
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.readings import transport_readings
from headrace_server.rpc.refusals import transport_refusals
from headrace_server.rpc.service_table import (
    build_health,
    build_management_health,
    build_management_methods,
    build_methods,
)
from headrace_server.rpc.transport.select import open_transport
from headrace_server.rpc.transport.transport import Transport
from headrace_server.telemetry.metrics import Reading

__all__ = ["Endpoints", "is_local"]

logger = logging.getLogger(__name__)

_MANAGEMENT_THREADS = 2
_MANAGEMENT_WAITING = 64
_MANAGEMENT_CALLS = 64
_MANAGEMENT_GRACE_S = 2.0


class Endpoints:
    """Made with everything that answers; started once, stopped once.

    raises  ServingError CONFIG_INVALID for a transport that is not possible here, or certificates that cannot be read
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        jobs: Jobs,
        models: ModelManagement,
        observer: RpcObserver,
    ) -> None:
        self._draining = False
        self._changes = ModelChanges(models, lambda: self._draining)
        self._data: _Endpoint | None = None
        self._management: _Endpoint | None = None
        if config.transport is not None:
            self._data = self._data_endpoint(config, config.transport, jobs, models, observer)
        if config.management.listen is not None:
            options = _management_options(config, self._data)
            self._management = self._management_endpoint(options, models, observer)

    @property
    def transport_name(self) -> tuple[str, str]:
        """("direct" or "aio", why the direct one was not taken); ("", "") where no data listener is."""
        return ("", "") if self._data is None else (self._data.transport.name, self._data.transport.reason)

    @property
    def num_calls(self) -> int:
        """RPCs in flight on the data listeners."""
        return 0 if self._data is None else self._data.transport.active_calls

    def readings(self) -> Iterator[Reading]:
        """What is shown to whoever reads the metrics."""
        return iter(()) if self._data is None else transport_readings(self._data.transport)

    def start(self) -> tuple[tuple[str, ...], str | None]:
        """Opens every listener; the addresses of data and that of management, with real ports.

        raises  ServingError CONFIG_INVALID naming the address that cannot be opened; to be stopped then too
        """
        management = None
        if self._management is not None:
            try:
                (management,) = self._management.start()
            except ServingError as error:
                raise _of_management(error) from error
            if not is_local(management):
                logger.warning("whoever reaches %s can change what is served: no one is asked who he is", management)
        data = () if self._data is None else tuple(self._data.start())
        return data, management

    def set_ready(self) -> None:
        """Requests are taken from now on."""
        for endpoint in self._both():
            endpoint.health.set_ready()

    def refresh(self) -> None:
        """A model came, went or failed: those who watch are told."""
        for endpoint in self._both():
            endpoint.health.refresh()

    def stop(self, grace_s: float) -> None:
        """Returns when the last call is over."""
        self._draining = True
        for endpoint in self._both():
            endpoint.health.drain()
        if self._data is not None:
            self._data.stop(grace_s)
        if self._management is not None:
            self._management.stop(min(grace_s, _MANAGEMENT_GRACE_S))

    def _both(self) -> list[_Endpoint]:
        return [endpoint for endpoint in (self._data, self._management) if endpoint is not None]

    def _data_endpoint(
        self,
        config: ServerConfig,
        options: TransportOptions,
        jobs: Jobs,
        models: ModelManagement,
        observer: RpcObserver,
    ) -> _Endpoint:
        num_threads = config.threads.resolved().prepare_threads
        workers = Workers(num_threads=num_threads, max_waiting=options.max_waiting_requests)
        health = build_health(
            models, catalogs=jobs.catalogs is not None, reflection=options.reflection, observer=observer
        )
        methods = build_methods(
            jobs=jobs,
            models=models,
            health=health,
            workers=workers,
            changes=self._changes if config.management.on_data_port else None,
            limits=config.limits,
            observer=observer,
            stall_s=options.stream_stall_s,
            reflection=options.reflection,
        )
        return _Endpoint(open_transport(options, methods, refusals=transport_refusals()), health, workers)

    def _management_endpoint(
        self, options: TransportOptions, models: ModelManagement, observer: RpcObserver
    ) -> _Endpoint:
        workers = Workers(
            num_threads=_MANAGEMENT_THREADS, max_waiting=options.max_waiting_requests, name="headrace-manage"
        )
        health = build_management_health(models, reflection=options.reflection, observer=observer)
        methods = build_management_methods(
            models=models,
            changes=self._changes,
            health=health,
            workers=workers,
            observer=observer,
            reflection=options.reflection,
        )
        return _Endpoint(open_transport(options, methods, refusals=transport_refusals()), health, workers)


class _Endpoint:
    """One transport with what is its own."""

    def __init__(self, transport: Transport, health: Health, workers: Workers) -> None:
        self.transport = transport
        self.health = health
        self._workers = workers
        self._started = False

    def start(self) -> list[str]:
        self._started = True
        return self.transport.start()

    def stop(self, grace_s: float) -> None:
        if self._started:  # else there is nothing to stop, and nobody to say when it has
            self.transport.stop(grace_s)
        self._workers.close()


def _management_options(config: ServerConfig, data: _Endpoint | None) -> TransportOptions:
    """As the data listeners are, but small, and on the transport that serves them; without TLS."""
    assert config.management.listen is not None
    options = config.transport or TransportOptions()
    return replace(
        options,
        listen=(config.management.listen,),
        tls=None,
        transport=options.transport if data is None else data.transport.name,  # type: ignore[arg-type]
        max_waiting_requests=_MANAGEMENT_WAITING,
        max_concurrent_calls=_MANAGEMENT_CALLS,
        max_connection_age_ms=0,
    )


def _of_management(error: ServingError) -> ServingError:
    """What a transport says of its address, said of management's."""
    violations = [Violation("management.listen", violation.description) for violation in error.violations]
    return ServingError(Reason.CONFIG_INVALID, f"management.listen: {violations[0].description}", violations=violations)


def is_local(address: str) -> bool:
    """Whether nobody beyond this machine can reach an address."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
