"""Endpoints: all that a server does over gRPC: the data listeners with their methods, health and preparing threads.

start   listens; health NOT_SERVING
ready   health SERVING
stop    health NOT_SERVING, every Watch ended ─▶ running calls end (grace) ─▶ the preparing threads end
"""

from __future__ import annotations

from collections.abc import Iterator

from headrace_server.config import ServerConfig, TransportOptions
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.jobs import Jobs
from headrace_server.rpc.management import ModelManagement
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.readings import transport_readings
from headrace_server.rpc.refusals import transport_refusals
from headrace_server.rpc.service_table import build_health, build_methods
from headrace_server.rpc.transport.select import open_transport
from headrace_server.telemetry.metrics import Reading

__all__ = ["Endpoints"]


class Endpoints:
    """Made with everything that answers; started once, stopped once.

    raises  ServingError CONFIG_INVALID for a transport that is not possible here, or certificates that cannot be read
    """

    def __init__(
        self,
        config: ServerConfig,
        options: TransportOptions,
        *,
        jobs: Jobs,
        models: ModelManagement,
        observer: RpcObserver,
    ) -> None:
        self._workers = Workers(
            num_threads=config.threads.resolved().prepare_threads, max_waiting=options.max_waiting_requests
        )
        self._health = build_health(
            models, catalogs=jobs.catalogs is not None, reflection=options.reflection, observer=observer
        )
        methods = build_methods(
            jobs=jobs,
            models=models,
            management=models,
            manages=config.management.on_data_port,
            health=self._health,
            workers=self._workers,
            limits=config.limits,
            observer=observer,
            stall_s=options.stream_stall_s,
            reflection=options.reflection,
        )
        self._transport = open_transport(options, methods, refusals=transport_refusals())

    @property
    def transport_name(self) -> tuple[str, str]:
        """("direct" or "aio", why the direct one was not taken)."""
        return self._transport.name, self._transport.reason

    @property
    def num_calls(self) -> int:
        """RPCs in flight."""
        return self._transport.active_calls

    def readings(self) -> Iterator[Reading]:
        """What is shown to whoever reads the metrics."""
        return transport_readings(self._transport)

    def start(self) -> tuple[str, ...]:
        """Opens every listener; their addresses, with real ports.

        raises  ServingError CONFIG_INVALID naming the address that cannot be opened; to be stopped then too
        """
        return tuple(self._transport.start())

    def set_ready(self) -> None:
        """Requests are taken from now on."""
        self._health.set_ready()

    def refresh(self) -> None:
        """A model came, went or failed: those who watch are told."""
        self._health.refresh()

    def stop(self, grace_s: float) -> None:
        """Returns when the last call is over."""
        self._health.drain()
        self._transport.stop(grace_s)
        self._workers.close()
