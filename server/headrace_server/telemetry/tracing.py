"""Tracing: OpenTelemetry spans of RPCs, sent to a collector by a thread of its own.

    Exchange ──begin──▶ CallTrace ──end──▶ queue (bounded) ──▶ thread: spans ──▶ OTLP/HTTP

A request pays for writing down its times alone. Where the collector is slow or dead the queue fills up, and what does
not fit is dropped and counted. Which RPCs are traced is decided as they come: the caller's decision stands; of those
that begin a trace here, `sample_ratio` of all.

Certificates and headers for the collector are read from the OTEL_EXPORTER_OTLP_… variables by the exporter itself, and
attributes of the resource from OTEL_RESOURCE_ATTRIBUTES.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Iterable, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from headrace_server.config import TracingOptions
from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.telemetry.call_trace import CallTrace, Span, SpanSource
from headrace_server.telemetry.instruments import Counters, Family
from headrace_server.telemetry.trace_parent import trace_parent

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter

__all__ = ["Tracing", "open_tracing"]

logger = logging.getLogger(__name__)

MAX_WAITING = 8192  # RPCs and batches whose spans wait for the thread
_MAX_SPANS = 2048  # of one request to the collector
_EVERY_S = 0.3  # how long spans wait for company
_EXPORT_TIMEOUT_S = 5.0
_CLOCK_STEP_NS = 1_000_000  # the machine's clock was set: a smaller difference is none
_PATH = "/v1/traces"


def open_tracing(options: TracingOptions, server_version: str) -> Tracing | None:
    """What is asked for; None where no endpoint is named.

    raises  ServingError CONFIG_INVALID for an endpoint that is no URL, and where OpenTelemetry is not installed
    """
    if options.endpoint is None:
        return None
    url = _traces_url(options.endpoint)
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
    except ImportError:
        raise _refused(
            options.endpoint, "traces need OpenTelemetry, which is not installed: pip install 'headrace[otel]'"
        ) from None
    resource = Resource.create({"service.name": options.service_name, "service.version": server_version})
    exporter = OTLPSpanExporter(endpoint=url, timeout=_EXPORT_TIMEOUT_S)
    return Tracing(_Export(exporter, resource, server_version), sample_ratio=options.sample_ratio)


class Tracing:
    """Begins traces, and exports them between `start` and `stop`. Thread-safe.

    every_s  how long spans wait for company
    """

    def __init__(
        self, export: _Export, *, sample_ratio: float, max_waiting: int = MAX_WAITING, every_s: float = _EVERY_S
    ) -> None:
        self._export = export
        self._sample_ratio = sample_ratio
        self._max_waiting = max_waiting
        self._every_s = every_s
        self._queue: SimpleQueue[SpanSource | None] = SimpleQueue()
        self._stopping = False
        self.offset_ns = _offset_ns()  # from `time.perf_counter_ns()` to Unix time
        self._thread = threading.Thread(target=self._work, name="headrace-tracing", daemon=True)
        self._spans = Counters("headrace_trace_spans", "Spans sent to the collector, or lost.", "outcome")
        self._exported = self._spans.child("exported")
        self._failed = self._spans.child("failed")
        self._dropped = self._spans.child("dropped")

    @property
    def families(self) -> tuple[Family, ...]:
        return (self._spans,)

    def begin(self, method: str, metadata: Sequence[tuple[str, str | bytes]], began_ns: int) -> CallTrace | None:
        """The trace of an RPC that was accepted at `time.perf_counter_ns()`; None: this one is not traced."""
        parent = trace_parent(metadata)
        if parent is not None:
            sampled = parent.sampled
        else:  # nobody wants to read of probes: health, reflection and channelz begin no trace
            sampled = random.random() < self._sample_ratio and not method.startswith("/grpc.")
        return CallTrace(self, method, parent, began_ns) if sampled else None

    def put(self, source: SpanSource) -> None:
        """Takes what spans are made of, or drops it."""
        if self._stopping or self._queue.qsize() >= self._max_waiting:
            self._dropped.add(source.num_spans)
        else:
            self._queue.put(source)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 2.0) -> None:
        """Exports what waits, for so long at most; the rest is dropped."""
        self._stopping = True
        if self._thread.is_alive():
            self._queue.put(None)
            self._thread.join(timeout_s)
        self._export.close()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _work(self) -> None:
        while True:
            sources, last = self._taken()
            offset_ns = _offset_ns()
            if abs(offset_ns - self.offset_ns) > _CLOCK_STEP_NS:
                self.offset_ns = offset_ns
            if sources:
                self._send(sources)
            if last:
                return

    def _taken(self) -> tuple[list[SpanSource], bool]:
        """What came within `every_s` of the first, as much as fits one request; and whether it is the last."""
        sources: list[SpanSource] = []
        num_spans, due = 0, 0.0
        while num_spans < _MAX_SPANS:
            try:
                source = self._queue.get(timeout=max(0.0, due - time.monotonic()) if sources else None)
            except Empty:
                break
            if source is None:
                return sources, True
            if not sources:
                due = time.monotonic() + self._every_s
            sources.append(source)
            num_spans += source.num_spans
        return sources, False

    def _send(self, sources: Iterable[SpanSource]) -> None:
        try:
            spans = [span for source in sources for span in source.spans()]
            counter = self._exported if self._export(spans) else self._failed
            counter.add(len(spans))
        except Exception:
            logger.exception("spans could not be exported")
            self._failed.add(sum(source.num_spans for source in sources))


class _Export:
    """Sends spans through an exporter of OpenTelemetry. One thread."""

    def __init__(self, exporter: SpanExporter, resource: Resource, server_version: str) -> None:
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self._exporter = exporter
        self._resource = resource
        self._scope = InstrumentationScope("headrace_server", server_version)

    def __call__(self, spans: Sequence[Span]) -> bool:
        """Whether the collector took them."""
        from opentelemetry.sdk.trace.export import SpanExportResult

        return self._exporter.export([self._readable(span) for span in spans]) is SpanExportResult.SUCCESS

    def close(self) -> None:
        """Ends an export that is trying again."""
        self._exporter.shutdown()

    def _readable(self, span: Span) -> ReadableSpan:
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

        flags = TraceFlags(TraceFlags.SAMPLED)
        state = TraceState.from_header([span.state]) if span.state else None
        trace_id, span_id = span.id
        parent = None
        if span.parent_id:
            parent = SpanContext(trace_id, span.parent_id, span.remote_parent, flags, state)
        return ReadableSpan(
            name=span.name,
            context=SpanContext(trace_id, span_id, False, flags, state),
            parent=parent,
            resource=self._resource,
            attributes=span.attributes,
            events=[Event(name, timestamp=at_ns) for name, at_ns in span.events],
            links=[Link(SpanContext(*linked, False, flags)) for linked in span.links],
            kind=SpanKind.SERVER if span.server else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR) if span.failed else Status(StatusCode.UNSET),
            start_time=span.began_ns,
            end_time=span.ended_ns,
            instrumentation_scope=self._scope,
        )


def _offset_ns() -> int:
    """What is to be added to `time.perf_counter_ns()` for Unix time: of several readings the least disturbed."""
    best, shortest = 0, None
    for _ in range(8):
        before, unix, after = time.perf_counter_ns(), time.time_ns(), time.perf_counter_ns()
        if shortest is None or after - before < shortest:
            best, shortest = unix - (before + after) // 2, after - before
    return best


def _traces_url(endpoint: str) -> str:
    """The URL that traces are posted to: the endpoint's own path where it has one."""
    try:
        parts = urlsplit(endpoint)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise _refused(endpoint, "not a URL such as http://host:4318")
    return endpoint if parts.path not in ("", "/") else f"{endpoint.rstrip('/')}{_PATH}"


def _refused(endpoint: str, why: str) -> ServingError:
    description = f"{endpoint!r}: {why}"
    return ServingError(
        Reason.CONFIG_INVALID,
        f"tracing.endpoint: {description}",
        violations=[Violation("tracing.endpoint", description)],
    )
