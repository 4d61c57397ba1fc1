"""An OTLP/HTTP collector in this process: keeps the spans that are posted to it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span

__all__ = ["Collector", "attributes_of", "collecting"]


class Collector:
    """What was posted. `endpoint` is its URL without a path."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.paths: list[str] = []
        self.requests: list[ExportTraceServiceRequest] = []
        self._changed = threading.Condition()

    def take(self, path: str, body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        with self._changed:
            self.paths.append(path)
            self.requests.append(request)
            self._changed.notify_all()

    @property
    def spans(self) -> list[Span]:
        """Every span so far."""
        return [
            span
            for request in self.requests
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def of_trace(
        self, trace_id: str, count: int, wanted: Callable[[Span], bool] = lambda span: True, timeout_s: float = 20
    ) -> list[Span]:
        """The wanted spans of a trace, once `count` of them have come."""
        limit = time.monotonic() + timeout_s
        with self._changed:
            while True:
                found = [span for span in self.spans if span.trace_id.hex() == trace_id and wanted(span)]
                if len(found) >= count:
                    return found
                left = limit - time.monotonic()
                assert left > 0, f"{len(found)} spans of {count} came: {sorted(span.name for span in found)}"
                self._changed.wait(left)


def attributes_of(span: Any) -> dict[str, Any]:
    """The attributes of a span or a resource as plain values."""
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}


@contextlib.contextmanager
def collecting() -> Iterator[Collector]:
    """A collector on a free port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            collector.take(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            body = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        collector = Collector(f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
