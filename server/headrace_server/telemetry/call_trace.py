"""CallTrace: what is kept of one traced RPC while it runs; its spans are made when it is over, elsewhere.

    <service>/<method>        server span: the RPC
      ├─ queue                waiting for preparation
      ├─ tokenise             or preprocess: inputs that are no text
      ├─ queue                waiting for a batch, or a slot
      ├─ collate, infer, reduce    the engine run, linked to the span `batch`; of a catalog: scan
      │  or prefill, decode        of a text generator, with the event `first token`
      └─ post                 results into the answer
    batch                     a trace of its own: one engine run, linked to the RPCs whose rows it carried

Of a stream of many requests, a span `request` stands between each and the RPC. Every span below the RPC has the
attribute headrace.stage: the stage of `Timings`, of metrics and of trailing metadata, that counts it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from headrace_server.telemetry.rpc_metrics import code_name
from headrace_server.telemetry.trace_parent import TraceParent

__all__ = ["BatchSpan", "CallTrace", "RequestOutcome", "Span", "SpanId", "SpanSource", "Spans"]

MAX_STRETCHES = 128  # of one request
MAX_REQUESTS = 256  # of one stream: more of them have no spans

# The server's own faults; the others are the caller's affair (OpenTelemetry's conventions for gRPC servers).
_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})

Value = str | int | bool
SpanId = tuple[int, int]  # trace and span


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One span, ended; times in Unix nanoseconds."""

    name: str
    id: SpanId
    parent_id: int = 0  # 0: a root
    remote_parent: bool = False
    state: str = ""  # tracestate
    server: bool = False
    failed: str = ""  # the code of a fault; "": none
    began_ns: int
    ended_ns: int
    attributes: dict[str, Value] = field(default_factory=dict)
    events: tuple[tuple[str, int], ...] = ()
    links: tuple[SpanId, ...] = ()


class SpanSource(Protocol):
    """What spans are made of, once."""

    @property
    def num_spans(self) -> int: ...
    def spans(self) -> Iterator[Span]: ...


class Spans(Protocol):
    """Where they go. Never blocks.

    offset_ns  from `time.perf_counter_ns()` to Unix time
    """

    @property
    def offset_ns(self) -> int: ...
    def put(self, source: SpanSource) -> None: ...


class RequestOutcome(Protocol):
    """What is known of a request at its end."""

    @property
    def model(self) -> str: ...
    @property
    def model_version(self) -> str: ...
    @property
    def batch_size(self) -> int: ...


Stretch = tuple[str, str, int, int, tuple[SpanId, ...], tuple[tuple[str, int], ...]]


def new_id(bits: int) -> int:
    """A random number that is not 0."""
    return random.getrandbits(bits) or 1


@dataclass(slots=True)
class BatchSpan:
    """The span of one engine run."""

    id: SpanId
    model: str
    version: str
    num_rows: int
    num_units: int
    began_ns: int
    ended_ns: int
    requests: tuple[SpanId, ...]

    @property
    def num_spans(self) -> int:
        return 1

    def spans(self) -> Iterator[Span]:
        attributes: dict[str, Value] = {"headrace.batch.rows": self.num_rows, "headrace.batch.units": self.num_units}
        if self.model:
            attributes |= {"headrace.model": self.model, "headrace.model_version": self.version}
        yield Span(
            name="batch",
            id=self.id,
            began_ns=self.began_ns,
            ended_ns=self.ended_ns,
            attributes=attributes,
            links=self.requests,
        )


@dataclass(frozen=True, slots=True)
class _Trace:
    """What all spans of one RPC have in common."""

    id: int
    state: str
    offset_ns: int  # as it stood when the RPC came, for all of its spans
    sink: Spans


class _Told:
    """Stretches of time of one request, in the order in which they were told."""

    __slots__ = ("_batches", "_events", "span_id", "stretches", "trace")

    def __init__(self, trace: _Trace) -> None:
        self.trace = trace
        self.span_id = new_id(64)
        self.stretches: list[Stretch] = []
        self._batches: tuple[SpanId, ...] = ()
        self._events: tuple[tuple[str, int], ...] = ()

    @property
    def trace_id(self) -> str:
        return f"{self.trace.id:032x}"

    def add(self, stage: str, name: str, began_ns: int, ended_ns: int) -> None:
        links: tuple[SpanId, ...] = ()
        events: tuple[tuple[str, int], ...] = ()
        if stage == "infer":
            links, self._batches = self._batches, ()
            events, self._events = self._events, ()
        if len(self.stretches) < MAX_STRETCHES and ended_ns > began_ns:
            self.stretches.append((stage, name, began_ns, ended_ns, links, events))

    def event(self, name: str, at_ns: int) -> None:
        self._events += ((name, at_ns),)

    def batch(
        self,
        requests: Sequence[object],
        *,
        model: str,
        version: str,
        num_rows: int,
        num_units: int,
        began_ns: int,
        ended_ns: int,
    ) -> BatchSpan:
        batch = BatchSpan(
            id=(new_id(128), new_id(64)),
            model=model,
            version=version,
            num_rows=num_rows,
            num_units=num_units,
            began_ns=began_ns + self.trace.offset_ns,
            ended_ns=ended_ns + self.trace.offset_ns,
            requests=tuple((each.trace.id, each.span_id) for each in requests if isinstance(each, _Told)),
        )
        self.trace.sink.put(batch)
        return batch

    def joined(self, batch: object) -> None:
        if isinstance(batch, BatchSpan):
            self._batches += (batch.id,)

    def stages(self) -> Iterator[Span]:
        """A span a stretch."""
        offset_ns = self.trace.offset_ns
        for stage, name, began_ns, ended_ns, links, events in self.stretches:
            yield Span(
                name=name,
                id=(self.trace.id, new_id(64)),
                parent_id=self.span_id,
                state=self.trace.state,
                began_ns=began_ns + offset_ns,
                ended_ns=ended_ns + offset_ns,
                attributes={"headrace.stage": stage},
                events=tuple((event, at_ns + offset_ns) for event, at_ns in events),
                links=links,
            )


class _Message(_Told):
    """One request of a stream."""

    __slots__ = ("index",)

    def __init__(self, trace: _Trace, index: int) -> None:
        super().__init__(trace)
        self.index = index

    def spans(self, parent_id: int) -> Iterator[Span]:
        if not self.stretches:
            return
        offset_ns = self.trace.offset_ns
        yield Span(
            name="request",
            id=(self.trace.id, self.span_id),
            parent_id=parent_id,
            state=self.trace.state,
            began_ns=min(began_ns for _, _, began_ns, _, _, _ in self.stretches) + offset_ns,
            ended_ns=max(ended_ns for _, _, _, ended_ns, _, _ in self.stretches) + offset_ns,
            attributes={"headrace.message_index": self.index},
        )
        yield from self.stages()


class CallTrace(_Told):
    """One RPC, and what is told of it until its end. From any thread; costs some microseconds in all."""

    __slots__ = ("_attributes", "_began_ns", "_code", "_ended_ns", "_messages", "_method", "_num_messages", "_parent")

    def __init__(self, sink: Spans, method: str, parent: TraceParent | None, began_ns: int) -> None:
        offset_ns = sink.offset_ns
        if parent is None:
            super().__init__(_Trace(new_id(128), "", offset_ns, sink))
        else:
            super().__init__(_Trace(parent.trace_id, parent.state, offset_ns, sink))
        self._method = method.removeprefix("/")
        self._parent = parent
        self._began_ns = began_ns
        self._ended_ns = 0
        self._code = ""
        self._attributes: dict[str, Value] = {}
        self._messages: list[_Message] = []
        self._num_messages = 0

    def request(self) -> _Message:
        message = _Message(self.trace, self._num_messages)
        self._num_messages += 1
        if len(self._messages) < MAX_REQUESTS:
            self._messages.append(message)
        return message

    def end(self, ended_ns: int, code: int, request_id: str, timings: RequestOutcome) -> None:
        self._ended_ns = ended_ns
        self._code = code_name(code)
        self._attributes = {
            "rpc.system.name": "grpc",
            "rpc.method": self._method,
            "rpc.response.status_code": self._code,
            "headrace.request_id": request_id,
        }
        if timings.model:
            self._attributes["headrace.model"] = timings.model
            self._attributes["headrace.model_version"] = timings.model_version
        if timings.batch_size:
            self._attributes["headrace.batch_size"] = timings.batch_size
        # What a cancelled request's batch still tells belongs to nobody: copies are exported.
        self.stretches = [each for each in self.stretches if each[3] <= ended_ns]
        for message in self._messages:
            message.stretches = [each for each in message.stretches if each[3] <= ended_ns]
        self.trace.sink.put(self)

    @property
    def num_spans(self) -> int:
        return 1 + len(self.stretches) + sum(1 + len(message.stretches) for message in self._messages)

    def spans(self) -> Iterator[Span]:
        parent = self._parent
        if self._code in _FAULTS:
            self._attributes["error.type"] = self._code
        yield Span(
            name=self._method,
            id=(self.trace.id, self.span_id),
            parent_id=0 if parent is None else parent.span_id,
            remote_parent=parent is not None,
            state=self.trace.state,
            server=True,
            failed=self._code if self._code in _FAULTS else "",
            began_ns=self._began_ns + self.trace.offset_ns,
            ended_ns=self._ended_ns + self.trace.offset_ns,
            attributes=self._attributes,
        )
        yield from self.stages()
        for message in self._messages:
            yield from message.spans(self.span_id)
