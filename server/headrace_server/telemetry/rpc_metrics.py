"""What is counted of RPCs: the implementation of `rpc.observer.RpcObserver`.

headrace_rpc_seconds{service,method,model,code}   from acceptance to the end of an RPC
headrace_rpcs_in_flight{service,method}
headrace_rpc_rejections_total{reason}             RPCs refused, or left unserved, for load or time
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from headrace_server.telemetry.instruments import Counters, Family, Gauge, Gauges, Histogram, Histograms

if TYPE_CHECKING:
    from headrace_server.telemetry.tracing import Tracing

__all__ = ["SECONDS", "RpcMetrics", "code_name"]

# 100 µs to 100 s: a light answer, and a generation.
SECONDS = (.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 100)  # fmt: skip
_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip


def code_name(code: int) -> str:
    """The name of a gRPC status code."""
    return _CODES[code] if 0 <= code < len(_CODES) else str(code)


class RpcMetrics:
    """Told of every RPC's start and end; a microsecond or two each, from any thread.

    tracer  whom RPCs tell their traces; None: nobody
    slow_s  RPCs that took so long are logged
    """

    def __init__(self, tracer: Tracing | None = None, slow_s: float = inf) -> None:
        self.tracer = tracer
        self.slow_s = slow_s
        self._seconds = Histograms(
            "headrace_rpc_seconds", "Seconds from acceptance to the end of an RPC.",
            "service", "method", "model", "code", bounds=SECONDS,
        )  # fmt: skip
        self._in_flight = Gauges("headrace_rpcs_in_flight", "RPCs accepted and not ended.", "service", "method")
        self._rejections = Counters(
            "headrace_rpc_rejections", "RPCs refused, or left unserved, for load or time.", "reason"
        )
        # What the hot path asks for, by the keys that it has at hand.
        self._gauge_of: dict[str, Gauge] = {}
        self._histogram_of: dict[tuple[str, str, int], Histogram] = {}

    @property
    def families(self) -> tuple[Family, ...]:
        return (self._seconds, self._in_flight, self._rejections)

    def on_start(self, method: str, count: int = 1) -> None:
        """RPCs of `method` ("/package.Service/Method") were accepted."""
        self._gauge(method).add(count)

    def on_end(self, method: str, model: str, code: int, seconds: float) -> None:
        """It ended with a gRPC status code, `seconds` after it was accepted."""
        self.on_end_all(method, model, code, [seconds])

    def on_end_all(self, method: str, model: str, code: int, seconds: list[float]) -> None:
        """Several ended, each so many seconds after it was accepted."""
        self._gauge(method).add(-len(seconds))
        key = (method, model, code)
        histogram = self._histogram_of.get(key)
        if histogram is None:
            labels = (*_service_and_method(method), model, code_name(code))
            histogram = self._histogram_of[key] = self._seconds.child(*labels)
        histogram.observe_all(seconds)

    def on_rejected(self, reason: str) -> None:
        """An RPC was refused, or left a queue unserved, for load or time."""
        self._rejections.child(reason).add()

    def _gauge(self, method: str) -> Gauge:
        found = self._gauge_of.get(method)
        if found is None:
            found = self._gauge_of[method] = self._in_flight.child(*_service_and_method(method))
        return found


def _service_and_method(path: str) -> tuple[str, str]:
    service, _, method = path.removeprefix("/").rpartition("/")
    return service, method
