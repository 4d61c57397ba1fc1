"""The admin listener: metrics, liveness and readiness over plain HTTP, for scrapers and orchestrators.

    /metrics   Prometheus text, or OpenMetrics where Accept asks for it
    /healthz   200 while the process runs
    /readyz    200 while the server takes requests, else 503

It takes GET and HEAD, reads no body, knows no other path, and serves few connections at a time: it is not for the open
net and has no secrets to tell.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any, ClassVar

from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.telemetry.metrics import Metrics

__all__ = ["AdminListener"]

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 16
_TIMEOUT_S = 5.0  # a client that is silent for so long is let go
_TEXT = "text/plain; charset=utf-8"


class AdminListener:
    """Listens from construction, serves from `start` to `stop`.

    listen    host:port; port 0: a free one
    is_ready  whether the server takes requests now
    raises    ServingError CONFIG_INVALID naming the address that cannot be opened
    """

    def __init__(self, listen: str, metrics: Metrics, is_ready: Callable[[], bool]) -> None:
        host, port = _host_and_port(listen)

        class Handler(_Handler):
            pages: ClassVar = {
                "/metrics": _metrics_page(metrics),
                "/healthz": _alive_page,
                "/readyz": _ready_page(is_ready),
            }

        try:
            self._server = _Server((host, port), Handler)
        except OSError as error:
            raise _refused(listen, f"cannot be opened ({error.strerror or error})") from None
        bound_host, bound_port = self._server.server_address[:2]
        self.address = f"[{host}]:{bound_port}" if ":" in str(bound_host) else f"{host}:{bound_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="headrace-admin", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Closes the listener; requests that are being answered are."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 32

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self._free = threading.BoundedSemaphore(_MAX_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        # HTTPServer would look its own name up in DNS, which can take seconds.
        super(HTTPServer, self).server_bind()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("an admin connection failed", exc_info=True)


Page = Callable[[str], tuple[HTTPStatus, bytes, str]]  # from the Accept header: status, body, content type


class _Handler(BaseHTTPRequestHandler):
    pages: ClassVar[dict[str, Page]]
    timeout = _TIMEOUT_S
    protocol_version = "HTTP/1.1"
    server_version = "headrace"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0], _no_page)
        status, body, content_type = page(self.headers.get("Accept", ""))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.close_connection = True

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _metrics_page(metrics: Metrics) -> Page:
    def page(accept: str) -> tuple[HTTPStatus, bytes, str]:
        try:
            return HTTPStatus.OK, *metrics.exposition(accept)
        except Exception:
            logger.exception("a scrape failed")
            return HTTPStatus.INTERNAL_SERVER_ERROR, b"the scrape failed\n", _TEXT

    return page


def _alive_page(accept: str) -> tuple[HTTPStatus, bytes, str]:
    return HTTPStatus.OK, b"ok\n", _TEXT


def _ready_page(is_ready: Callable[[], bool]) -> Page:
    def page(accept: str) -> tuple[HTTPStatus, bytes, str]:
        if is_ready():
            return HTTPStatus.OK, b"ready\n", _TEXT
        return HTTPStatus.SERVICE_UNAVAILABLE, b"not ready\n", _TEXT

    return page


def _no_page(accept: str) -> tuple[HTTPStatus, bytes, str]:
    return HTTPStatus.NOT_FOUND, b"not found: /metrics, /healthz, /readyz\n", _TEXT


def _host_and_port(listen: str) -> tuple[str, int]:
    host, colon, port = listen.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise _refused(listen, "not host:port, port from 0 to 65535")
    return host.strip("[]"), int(port)


def _refused(listen: str, why: str) -> ServingError:
    description = f"{listen!r}, {why}"
    return ServingError(
        Reason.CONFIG_INVALID, f"admin.listen: {description}", violations=[Violation("admin.listen", description)]
    )
