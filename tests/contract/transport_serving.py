"""A transport under test in this process, and its clients in others."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transport_service import Service

from headrace_server.config import TransportOptions
from headrace_server.rpc.transport.refusals import Refusals
from headrace_server.rpc.transport.select import open_transport
from headrace_server.rpc.transport.transport import Transport

on_both_transports = pytest.mark.parametrize("transport_name", ["direct", "aio"])


@dataclass
class Serving:
    transport: Transport
    service: Service
    addresses: list[str]

    @property
    def address(self) -> str:
        return self.addresses[0]

    def wait_idle(self, timeout_s: float = 5) -> None:
        """Waits until no call is in flight, and fails when one stays."""
        wait_until(lambda: self.transport.active_calls == 0, timeout_s)
        assert self.transport.active_calls == 0


@contextlib.contextmanager
def serving(transport_name: str, *, refusals: Refusals | None = None, **options: Any) -> Iterator[Serving]:
    options.setdefault("listen", ("127.0.0.1:0",))
    options.setdefault("max_concurrent_streams", 4000)
    service = Service()
    transport = open_transport(
        TransportOptions(transport=transport_name, **options), service.methods(), refusals=refusals
    )
    try:
        addresses = transport.start()
        try:
            yield Serving(transport, service, addresses)
        except BaseException:
            drop_clients()  # one may be in the middle of something
            raise
        finally:
            transport.stop(0)
            assert transport.active_calls == 0
    finally:
        service.close()


class Client:
    """A process that runs the functions of transport_client.py, one at a time."""

    def __init__(self) -> None:
        script = Path(__file__).with_name("transport_client.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        atexit.register(self.process.kill)

    def begin(self, function: str, address: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([function, address, arguments]) + "\n")
        self.process.stdin.flush()

    def result(self, timeout_s: float = 30) -> Any:
        assert self.process.stdout is not None
        watch = threading.Timer(timeout_s, self.process.kill)
        watch.start()
        line = self.process.stdout.readline()
        watch.cancel()
        if not line:
            self.process.wait()
            raise AssertionError("the client process ended or hung")
        answer = json.loads(line)
        assert "error" not in answer, answer.get("error")
        return answer["result"]

    def call(self, function: str, address: str, *, within_s: float = 30, **arguments: Any) -> Any:
        self.begin(function, address, **arguments)
        return self.result(within_s)


_clients: list[Client] = []


def client(index: int = 0) -> Client:
    """The index-th client process, started on first use and shared by all tests."""
    while len(_clients) <= index:
        _clients.append(Client())
    if _clients[index].process.poll() is not None:
        _clients[index] = Client()
    return _clients[index]


def drop_clients() -> None:
    for each in _clients:
        each.process.kill()
        each.process.wait()


def wait_until(condition: Callable[[], bool], timeout_s: float = 5) -> bool:
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def resident_mb() -> float:
    """Memory that this process uses, in megabytes, without what its allocator only keeps."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6
