"""What the rpc layer tells whoever counts, traces and logs: Protocols that telemetry implements."""

from __future__ import annotations

from math import inf
from typing import Protocol

from headrace_server.rpc.transport.call import Metadata
from headrace_server.serving.context import RequestTrace, Timings

__all__ = ["CallTrace", "CallTracer", "NoObserver", "RpcObserver"]


class CallTrace(RequestTrace, Protocol):
    """The trace of one RPC. Quick, from any thread, raises nothing."""

    def request(self) -> RequestTrace:
        """The trace of the next request of a stream of many."""
        ...

    def end(self, ended_ns: int, code: int, request_id: str, timings: Timings) -> None:
        """It is over; what is told later is not kept."""


class CallTracer(Protocol):
    """Who keeps traces."""

    def begin(self, method: str, metadata: Metadata, began_ns: int) -> CallTrace | None:
        """The trace of an RPC that was accepted at `time.perf_counter_ns()`; None: this one is not traced."""
        ...


class RpcObserver(Protocol):
    """Told of every RPC, on the thread that starts or ends it. Quick, and never the cause of an error.

    method  "/package.Service/Method", always one that the server knows
    model   the model that answered; "" where none was asked or it is not there, so that callers cannot invent names
    code    the gRPC status code as a number
    reason  a `Reason`'s value: QUEUE_FULL, DEADLINE_INFEASIBLE, DEADLINE_EXCEEDED, SHUTTING_DOWN
    tracer  None: nothing is traced
    slow_s  an RPC that asked a model and took so long is logged with where the time went
    """

    @property
    def tracer(self) -> CallTracer | None: ...
    @property
    def slow_s(self) -> float: ...

    def on_start(self, method: str, count: int = 1) -> None:
        """RPCs were accepted."""

    def on_end(self, method: str, model: str, code: int, seconds: float) -> None:
        """It ended, `seconds` after it was accepted."""

    def on_end_all(self, method: str, model: str, code: int, seconds: list[float]) -> None:
        """Several ended, each so many seconds after it was accepted."""

    def on_rejected(self, reason: str) -> None:
        """A request was refused, or left a queue unserved, for load or time."""


class NoObserver:
    """Nobody counts."""

    tracer: CallTracer | None = None
    slow_s: float = inf

    def on_start(self, method: str, count: int = 1) -> None:
        """Nothing."""

    def on_end(self, method: str, model: str, code: int, seconds: float) -> None:
        """Nothing."""

    def on_end_all(self, method: str, model: str, code: int, seconds: list[float]) -> None:
        """Nothing."""

    def on_rejected(self, reason: str) -> None:
        """Nothing."""
