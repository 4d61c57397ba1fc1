"""Exchange: an RPC from start to end: request id, context, trailing metadata, access record, metrics, trace."""

from __future__ import annotations

import logging
import time

from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.metadata import request_id_of, trailing_metadata
from headrace_server.rpc.observer import CallTrace, RpcObserver
from headrace_server.rpc.status import Code, status_of
from headrace_server.rpc.transport.call import Call, Status
from headrace_server.serving.context import RequestContext, Timings

__all__ = ["Exchange", "access", "record_access"]

# A record a call would cost more than a light call itself: answers are DEBUG, refusals INFO, our own faults and what
# took too long WARNING.
access = logging.getLogger("headrace.access")

_GONE = {Code.CANCELLED: "The call was cancelled.", Code.DEADLINE_EXCEEDED: "The deadline passed."}
_LOAD = frozenset({Reason.QUEUE_FULL, Reason.DEADLINE_EXCEEDED, Reason.DEADLINE_INFEASIBLE, Reason.SHUTTING_DOWN})


class Exchange:
    """Begins when it is made; ends with the one `reply`, `finish`, `fail` or `abandon` that its method calls.

    started_ns  of a call that has begun already, and was counted: when
    trace       its own, where it has been begun
    """

    __slots__ = ("_observer", "_started_ns", "call", "context", "trace")

    def __init__(self, call: Call, observer: RpcObserver, started_ns: int = 0, trace: CallTrace | None = None) -> None:
        self._started_ns = started_ns or time.perf_counter_ns()
        self._observer = observer
        self.call = call
        metadata = call.metadata
        if trace is None and observer.tracer is not None:
            trace = observer.tracer.begin(call.method, metadata, self._started_ns)
        self.trace = trace
        self.context = RequestContext(deadline=call.deadline, request_id=request_id_of(metadata), trace=self.trace)
        if not started_ns:
            observer.on_start(call.method)
        call.on_cancel(self.context.cancel)

    @property
    def request_id(self) -> str:
        return self.context.request_id

    def request_context(self) -> RequestContext:
        """The context of the next request of a stream of many; whoever makes it cancels it."""
        parent = self.context
        trace = None if self.trace is None else self.trace.request()
        return RequestContext(deadline=parent.deadline, request_id=parent.request_id, trace=trace)

    def waited(self, waited_ns: int) -> None:
        """A worker has taken it up, after so long."""
        now = time.perf_counter_ns()
        self.context.timings.waited(now - waited_ns, now)

    def reply(self, message: bytes) -> None:
        """The one response of a unary call, status OK."""
        self.set_trailing()
        self.end(Code.OK if self.call.reply(message) else self._code_when_gone())

    def fail(self, error: BaseException, *, after_queued: bool = False) -> None:
        """Ends the call with the status of `error`; with `after_queued`, once what a stream has queued is sent."""
        if self.context.cancelled and isinstance(error, ServingError):  # whatever it says, nobody is there to be told
            self.abandon()
            return
        status = status_of(error, self.request_id, self.context.timings.log_fields)
        self.set_trailing()
        if after_queued:
            self.call.finish(status)
        else:
            self.call.abort(status)
        if isinstance(error, ServingError) and error.reason in _LOAD:
            self._observer.on_rejected(error.reason.value)
        self.end(Code(status.code))

    def finish(self) -> None:
        """Ends a stream with OK after what is queued."""
        self.set_trailing()
        self.call.finish()
        self.end(Code.OK)

    def abandon(self) -> None:
        """Ends a call whose caller has gone, or whose deadline has passed."""
        code = self._code_when_gone()
        self.call.abort(Status(int(code), _GONE[code]))
        self.end(code)

    def set_trailing(self) -> None:
        self.call.set_trailing_metadata(trailing_metadata(self.request_id, self.context.timings))

    def end(self, code: Code) -> None:
        """Records the end."""
        ended_ns = time.perf_counter_ns()
        seconds = (ended_ns - self._started_ns) * 1e-9
        timings = self.context.timings
        self._observer.on_end(self.call.method, timings.model, int(code), seconds)
        if self.trace is not None:
            self.trace.end(ended_ns, int(code), self.request_id, timings)
        record_access(self.call, code, seconds, timings, self._observer.slow_s)

    def _code_when_gone(self) -> Code:
        return Code.DEADLINE_EXCEEDED if self.context.expired else Code.CANCELLED


def record_access(call: Call, code: Code, seconds: float, timings: Timings, slow_s: float) -> None:
    """The line of the log about a call that has ended."""
    slow = seconds >= slow_s and bool(timings.model)
    level = logging.WARNING if slow else _level(code)
    if access.isEnabledFor(level):
        access.log(
            level,
            "%s %s%s",
            call.method,
            code.name,
            ", slow" if slow else "",
            extra={
                **timings.log_fields,
                "rpc": call.method,
                "code": code.name,
                "seconds": round(seconds, 6),
                "peer": call.peer,
                **(_stages(timings) if timings.model else {}),
            },
        )


def _level(code: Code) -> int:
    if code is Code.OK:
        return logging.DEBUG
    return logging.WARNING if code in (Code.INTERNAL, Code.UNKNOWN) else logging.INFO


def _stages(timings: Timings) -> dict[str, int]:
    return {
        "batch_size": timings.batch_size,
        "queue_us": timings.queue_ns // 1000,
        "preprocess_us": timings.preprocess_ns // 1000,
        "infer_us": timings.infer_ns // 1000,
        "postprocess_us": timings.postprocess_ns // 1000,
    }
