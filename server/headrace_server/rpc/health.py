"""grpc.health.v1: whether the server, a service or a model takes requests.

    ""                                    ready and not draining
    headrace.v1.ClassificationService     … and a ready model classifies
    headrace.v1.EmbeddingService          … and a ready model embeds or reranks
    headrace.v1.ModelService, grpc.…      as ""
    model:NAME                            … and the version of that model which answers by default is ready

Check computes the answer, as does List for every service. Watch is told of changes when `refresh` is called: by whoever
loads or unloads models, and by `set_ready` and `drain` themselves. A Watch holds at most one answer that its reader has
not taken: the newest. Draining tells every Watch NOT_SERVING first and ends it then, so that no Watch holds up the end
of the server.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from grpc_health.v1 import health_pb2 as pb  # type: ignore[import-untyped]

from headrace_server.errors import Reason, Resource, ServingError
from headrace_server.models.model import Task
from headrace_server.rpc.dispatch import UnaryRpc, parse
from headrace_server.rpc.exchange import Exchange
from headrace_server.rpc.listing import ModelListing, VersionStatus
from headrace_server.rpc.observer import NoObserver, RpcObserver
from headrace_server.rpc.transport.call import Call, Kind, Method
from headrace_server.serving.context import RequestContext

__all__ = ["MAX_WATCHES", "MODEL_PREFIX", "SERVICE_NAME", "Health"]

SERVICE_NAME = "grpc.health.v1.Health"
MODEL_PREFIX = "model:"
MAX_WATCHES = 1000
_SERVING: int = pb.HealthCheckResponse.SERVING
_NOT_SERVING: int = pb.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN: int = pb.HealthCheckResponse.SERVICE_UNKNOWN


class Health:
    """Says who takes requests. Not ready until told so. Thread-safe.

    tasks  by full service name: a ready model of any of these tasks makes the service SERVING; none: no model is needed
    """

    def __init__(
        self,
        models: ModelListing,
        tasks: Mapping[str, Sequence[Task]],
        *,
        observer: RpcObserver | None = None,
    ) -> None:
        self._models = models
        self._tasks = {name: frozenset(needed) for name, needed in tasks.items()}
        self._observer = observer or NoObserver()
        self._lock = threading.Lock()
        self._ready = False
        self._draining = False
        self._watches: set[_Watch] = set()

    @property
    def num_watches(self) -> int:
        """Watch calls that are open."""
        return len(self._watches)

    @property
    def is_ready(self) -> bool:
        """Requests are taken."""
        return self._ready and not self._draining

    # what the server says

    def set_ready(self, ready: bool = True) -> None:
        """Requests are taken from now on, or no longer."""
        self._ready = ready
        self.refresh()

    def drain(self) -> None:
        """NOT_SERVING for good: every Watch is told so, and ended."""
        with self._lock:
            self._draining = True
            watches, self._watches = self._watches, set()
        for watch in watches:
            watch.offer(self._state(watch.service))
            watch.end(ServingError(Reason.SHUTTING_DOWN, "the server is shutting down"))

    def refresh(self) -> None:
        """Tells every Watch whose answer has changed. Called after a model came, went or failed."""
        with self._lock:
            watches = list(self._watches)
        states: dict[str, int] = {}
        for watch in watches:
            if watch.service not in states:
                states[watch.service] = self._state(watch.service)
            watch.offer(states[watch.service])

    # what callers ask

    def check(self, request: pb.HealthCheckRequest, context: RequestContext) -> pb.HealthCheckResponse:
        """The state of a service. Raises ServingError for a name that the server does not know."""
        state = self._state(request.service)
        if state == _SERVICE_UNKNOWN:
            raise ServingError(
                Reason.ITEM_NOT_FOUND,
                f"service {request.service[:256]!r} is not known",
                resource=Resource("service", request.service[:256]),
            )
        return pb.HealthCheckResponse(status=state)

    def list_all(self, request: Any, context: RequestContext) -> Any:
        """The state of every service; models are left to Check and Watch."""
        states = {name: pb.HealthCheckResponse(status=self._state(name)) for name in ("", *self._tasks)}
        return pb.HealthListResponse(statuses=states)

    @property
    def rpcs(self) -> list[UnaryRpc[Any]]:
        calls = [("Check", "HealthCheckRequest", self.check), ("List", "HealthListRequest", self.list_all)]
        return [
            UnaryRpc(
                name=f"/{SERVICE_NAME}/{name}",
                request_type=getattr(pb, request_type),
                start=start,
                light=lambda request: True,
            )
            for name, request_type, start in calls
            if hasattr(pb, request_type)  # grpcio-health-checking before 1.73 has no List
        ]

    @property
    def watch_method(self) -> Method:
        return Method(f"/{SERVICE_NAME}/Watch", Kind.SERVER_STREAM, self._watch)

    def _watch(self, call: Call) -> None:
        exchange = Exchange(call, self._observer)
        try:
            watch = _Watch(parse(pb.HealthCheckRequest, call.message).service, exchange, self._forget)
            with self._lock:
                if not self._draining:
                    if len(self._watches) >= MAX_WATCHES:
                        raise ServingError(
                            Reason.QUEUE_FULL,
                            f"{MAX_WATCHES} watches are open, which is the limit",
                            retry_after_s=10,
                            limit=MAX_WATCHES,
                        )
                    self._watches.add(watch)
                draining = self._draining
        except ServingError as error:
            exchange.fail(error)
            return
        exchange.context.on_cancel(partial(watch.end, None))
        watch.offer(self._state(watch.service))
        if draining:
            watch.end(ServingError(Reason.SHUTTING_DOWN, "the server is shutting down"))

    def _forget(self, watch: _Watch) -> None:
        with self._lock:
            self._watches.discard(watch)

    def _state(self, service: str) -> int:
        open_for_all = self._ready and not self._draining
        if service.startswith(MODEL_PREFIX):
            name = service.removeprefix(MODEL_PREFIX)
            versions = [status for status in self._models.status() if status.name == name]
            if not versions:
                return _SERVICE_UNKNOWN
            serving = open_for_all and any(status.serving and _is_ready(status) for status in versions)
        elif not service:
            serving = open_for_all
        elif service in self._tasks:
            tasks = self._tasks[service]
            serving = open_for_all and (not tasks or self._any_ready(tasks))
        else:
            return _SERVICE_UNKNOWN
        return _SERVING if serving else _NOT_SERVING

    def _any_ready(self, tasks: frozenset[Task]) -> bool:
        return any(
            _is_ready(status) and status.model is not None and not tasks.isdisjoint(status.model.tasks)
            for status in self._models.status()
        )


class _Watch:
    """One Watch call: sends each change once; of several that its reader has not taken, the newest."""

    def __init__(self, service: str, exchange: Exchange, forget: Callable[[_Watch], None]) -> None:
        self.service = service
        self._exchange = exchange
        self._forget = forget
        self._lock = threading.RLock()  # on_writable may call back on this very thread
        self._newest: int | None = None
        self._sent: int | None = None
        self._blocked = False
        self._ended = False

    def offer(self, state: int) -> None:
        with self._lock:
            self._newest = state
            self._send()

    def end(self, error: ServingError | None) -> None:
        """After what is queued; None: the caller has gone."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        self._forget(self)
        if error is None:
            self._exchange.abandon()
        else:
            self._exchange.fail(error, after_queued=True)

    def _send(self) -> None:
        if self._ended or self._blocked or self._newest is None or self._newest == self._sent:
            return
        self._sent = self._newest
        answer = pb.HealthCheckResponse(status=self._newest)
        call = self._exchange.call
        if not call.send(answer.SerializeToString()) and call.active:
            self._blocked = True
            call.on_writable(self._on_writable)

    def _on_writable(self) -> None:
        with self._lock:
            self._blocked = False
            self._send()


def _is_ready(status: VersionStatus) -> bool:
    return status.state == "ready"
