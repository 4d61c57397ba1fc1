"""A server that stops at once under many readers of streams: each of them hears of it."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from decoder_folders import write_decoder

from headrace_client import Cancelled, Client, HeadraceError, Unavailable

_NUM_READERS = 8
_TIMEOUT_S, _GRACE_S = 3.0, 2.0
# Two slots: most readers have heard nothing yet when the server stops, which is where a core that retries loses them.
_SERVER = """
import sys
from headrace_server.config import DecoderPolicy
from headrace_server.server import Server
while True:
    server = Server(repository=sys.argv[1], listen="127.0.0.1:0", decoder=DecoderPolicy(max_slots=2))
    server.start()
    server.wait_ready()
    print(server.addresses.grpc[0], flush=True)
    if not sys.stdin.readline():
        break
    server.stop(grace_s=0)
"""


class StoppingServer:
    """A process that serves a small decoder, and on `stop` ends it at once and serves anew elsewhere."""

    def __init__(self, repository: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(repository)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def address(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def stopping(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoppingServer]:
    repository = tmp_path_factory.mktemp("stopped")
    write_decoder(repository / "llama" / "1")
    server = StoppingServer(repository)
    yield server
    server.end()


def _read_until_told(client: Client, told: list[HeadraceError]) -> None:
    try:
        while True:
            for _ in client.generate("llama", "the end", max_tokens=60, ignore_end=True, timeout_s=_TIMEOUT_S):
                pass
    except HeadraceError as error:
        told.append(error)


@pytest.mark.parametrize("num_stops", [4, pytest.param(150, marks=pytest.mark.full)])
def test_no_reader_outlives_a_server_that_stops_at_once(stopping: StoppingServer, num_stops: int) -> None:
    for stop in range(num_stops):
        told: list[HeadraceError] = []
        with Client(stopping.address()) as client:
            readers = [
                threading.Thread(target=_read_until_told, args=(client, told), daemon=True) for _ in range(_NUM_READERS)
            ]
            for reader in readers:
                reader.start()
            time.sleep(0.1 + 0.01 * (stop % 10))
            stopping.stop()
            limit = time.monotonic() + _TIMEOUT_S + _GRACE_S
            for reader in readers:
                reader.join(max(0.0, limit - time.monotonic()))
            assert not [reader for reader in readers if reader.is_alive()], f"stop {stop} left readers waiting"
        assert {type(error) for error in told} <= {Unavailable, Cancelled}
        assert len(told) == _NUM_READERS
