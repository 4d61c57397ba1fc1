"""A server in the foreground: started, announced, ended by a signal without losing a request."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from headrace_server.cli.faults import fail
from headrace_server.cli.summary import summary
from headrace_server.config import ServerConfig
from headrace_server.errors import Reason, ServingError
from headrace_server.server import Addresses, Server, server_version
from headrace_server.serving.repository import ModelState
from headrace_server.telemetry.logs import configure_logging

__all__ = ["run_server"]

logger = logging.getLogger(__name__)

_POLL_S = 0.05  # between looks for a signal while models load


def run_server(
    config: ServerConfig,
    *,
    port_file: Path | None = None,
    strict: bool = False,
    remark: str = "",
    when_ready: Callable[[Addresses], bool] | None = None,
) -> None:
    """Serves until SIGINT or SIGTERM; returns after a drain.

    strict      one model that cannot be loaded ends it
    remark      something to say in the log
    when_ready  told where the server listens, once it takes requests; True: serve on, False: end now
    raises      ServingError where it cannot start, or no model can be loaded; typer.Exit
    """
    started = time.monotonic()
    configure_logging(config.log_level, config.log_format)
    logger.info("configuration", extra={"headrace_version": server_version(), **_effective(config)})
    if remark:
        logger.warning("%s", remark)
    stop = threading.Event()
    with _signals(stop):
        server = Server(config)
        try:
            addresses = server.start()
            _announce(server, addresses)
            with _written(port_file, addresses):
                while not server.wait_ready(_POLL_S):
                    if stop.is_set():
                        break
                else:
                    _say_what_is_served(server, time.monotonic() - started, strict=strict)
                    if when_ready is None or when_ready(addresses):
                        stop.wait()
                logger.info("draining", extra={"grace_s": _grace_s(config), "num_calls": server.num_calls})
        finally:
            server.stop()
    logger.info("stopped")


def _announce(server: Server, addresses: Addresses) -> None:
    name, reason = server.transport_name
    for address in addresses.grpc:
        print(f"gRPC on {address}", flush=True)
    if addresses.admin:
        print(f"admin on http://{addresses.admin}/metrics", flush=True)
    if addresses.management:
        print(f"management on {addresses.management}", flush=True)
    listening = {
        "grpc": list(addresses.grpc),
        "admin": addresses.admin,
        "management": addresses.management,
        "transport": name,
    }
    if reason:
        logger.warning("listening on the fallback transport", extra={**listening, "reason": reason})
    else:
        logger.info("listening", extra=listening)


def _say_what_is_served(server: Server, seconds: float, *, strict: bool) -> None:
    statuses = server.models()
    print(summary(server.config.repository, statuses, server.notes), flush=True)
    failed = [status for status in statuses if status.state is ModelState.FAILED]
    if failed and strict:
        said = "; ".join(f"{status.name}/{status.version}: {status.reason}" for status in failed)
        raise ServingError(Reason.MODEL_FAILED, f"--strict, and not every model could be loaded: {said}")
    print(f"ready after {seconds:.2f} s", flush=True)


@contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Sets `stop` at the first SIGINT or SIGTERM; the second ends the process there and then."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _written(path: Path | None, addresses: Addresses) -> Iterator[None]:
    """The addresses stand in `path` while the server listens. It appears whole, and goes at the end."""
    if path is None:
        yield
        return
    lines = [f"grpc {address}\n" for address in addresses.grpc]
    lines += [f"admin {addresses.admin}\n"] if addresses.admin else []
    lines += [f"management {addresses.management}\n"] if addresses.management else []
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fresh.write_text("".join(lines), encoding="utf-8")
        os.replace(fresh, path)
    except OSError as error:
        raise fail(f"{path}: {error.strerror or error}", cure="give --port-file a folder that can be written") from None
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()


def _effective(config: ServerConfig) -> dict[str, Any]:
    """Every setting as it holds, by its dotted name."""
    return dict(_flat("", replace(config, threads=config.threads.resolved())))


def _flat(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    for each in fields(value):
        held = getattr(value, each.name)
        if is_dataclass(held):
            yield from _flat(f"{prefix}{each.name}.", held)
        else:
            yield f"{prefix}{each.name}", str(held) if isinstance(held, Path) else held


def _grace_s(config: ServerConfig) -> float:
    return config.transport.drain_grace_s if config.transport is not None else 0.0
