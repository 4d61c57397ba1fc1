"""Models that rest, out of memory, answer over gRPC as if they had never left: rows and generated text alike."""

from __future__ import annotations

import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from decoder_folders import write_decoder
from unit.serving import model_folders

from headrace_client import Client, DeadlineExceeded
from headrace_server.config import (
    AdminOptions,
    DecoderPolicy,
    LifecycleOptions,
    ServerConfig,
    ThreadBudget,
    TransportOptions,
)
from headrace_server.server import Server
from headrace_server.serving.version import ModelState

_ROOM_FOR_ONE_MB = 60  # of two that are thought to need 46 MB each, and measured at about 28


@contextmanager
def served(directory: Path, **lifecycle: float) -> Iterator[tuple[Server, Client]]:
    config = ServerConfig(
        repository=directory,
        threads=ThreadBudget(num_cores=2),
        decoder=DecoderPolicy(max_slots=2, max_length=64, prefix_cache_mb=1),
        transport=TransportOptions(listen=("127.0.0.1:0",)),
        admin=AdminOptions(listen="127.0.0.1:0"),
        lifecycle=LifecycleOptions(**lifecycle),  # type: ignore[arg-type]
    )
    with Server(config) as server, Client(server.addresses.grpc[0]) as client:
        yield server, client


def resting(server: Server) -> set[str]:
    return {status.name for status in server.models() if status.state is ModelState.READY and status.engine is None}


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


def metric(server: Server, pattern: str) -> float:
    with urllib.request.urlopen(f"http://{server.addresses.admin}/metrics") as response:
        found = re.findall(rf"^{pattern} (\S+)$", response.read().decode(), re.MULTILINE)
    return sum(map(float, found))


@pytest.fixture
def hold(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Returns wait until it is set."""
    from headrace_server.serving.loader import Loader

    gate, load = threading.Event(), Loader.load

    def held(self: Loader, entry: object, *args: object, **named: object) -> object:
        if getattr(entry, "returning", False):
            assert gate.wait(20)
        return load(self, entry, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Loader, "load", held)
    return gate


def test_two_models_with_room_for_one_are_asked_in_turn_and_at_once(tmp_path: Path) -> None:
    for name in "ab":
        model_folders.text_encoder(tmp_path / name / "1", num_embeddings=200_000)
    with served(tmp_path, memory_budget_mb=_ROOM_FOR_ONE_MB) as (server, client):
        first = {name: client.embed(name, ["w1 w2"]).vectors for name in "ab"}
        for name in "abab":
            assert (client.embed(name, ["w1 w2"]).vectors == first[name]).all()
            assert resting(server) == {"b" if name == "a" else "a"}
        failures: list[BaseException] = []

        def ask(name: str) -> None:
            try:
                for _ in range(3):
                    assert (client.embed(name, ["w1 w2"]).vectors == first[name]).all()
            except BaseException as error:
                failures.append(error)

        askers = [threading.Thread(target=ask, args=(name,)) for name in "abab"]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join(60)
        assert not failures
        assert metric(server, r"headrace_memory_held_bytes") <= _ROOM_FOR_ONE_MB << 20
        assert metric(server, r"headrace_model_rests_total\{cause=\"room\",model=\"a\"\}") >= 2
        assert metric(server, r"headrace_model_returns_total\{model=\"b\",outcome=\"succeeded\"\}") >= 2
        assert metric(server, r"headrace_parked_requests") == 0
        for kind in ("estimated", "counted"):
            assert metric(server, rf"headrace_model_memory_bytes\{{kind=\"{kind}\",model=\"a\",version=\"1\"\}}") > 0


def test_what_does_not_fit_is_listed_as_failed_with_the_figures(tmp_path: Path) -> None:
    model_folders.text_encoder(tmp_path / "small" / "1")
    model_folders.text_encoder(tmp_path / "large" / "1", num_embeddings=400_000)
    with served(tmp_path, memory_budget_mb=50) as (_, client):
        (info,) = [each for each in client.models() if each.name == "large"]
        assert str(info.state).lower().endswith("failed")
        figures = r"needs about \d+ MB, the budget is 50 MB: \d+ of 50 MB are used by small/1"
        assert re.search(figures, info.state_reason)
        assert len(client.embed("small", ["w1"]).vectors) == 1


def test_a_text_generator_that_rested_goes_on_and_counts_its_wait_as_queueing(tmp_path: Path) -> None:
    write_decoder(tmp_path / "talker" / "1")
    with served(tmp_path, idle_unload_s=0.3) as (server, client):
        awake = client.generate_text("talker", "abc", max_tokens=5, temperature=0)
        wait_until(lambda: resting(server) == {"talker"})
        rested = client.generate_text("talker", "abc", max_tokens=5, temperature=0)
        assert rested.text == awake.text
        wait_until(lambda: resting(server) == {"talker"})
        assert (
            "".join(delta.text for delta in client.generate("talker", "abc", max_tokens=5, temperature=0)) == awake.text
        )


def test_a_deadline_and_a_cancel_end_the_wait_for_a_model(tmp_path: Path, hold: threading.Event) -> None:
    model_folders.text_encoder(tmp_path / "m" / "1")
    write_decoder(tmp_path / "talker" / "1")
    with served(tmp_path, idle_unload_s=0.3) as (server, client):
        wait_until(lambda: resting(server) == {"m", "talker"})
        with pytest.raises(DeadlineExceeded):
            client.embed("m", ["w1"], timeout_s=0.3)
        with pytest.raises(DeadlineExceeded):
            client.generate_text("talker", "abc", max_tokens=3, timeout_s=0.3)
        channel = grpc.insecure_channel(server.addresses.grpc[0])
        from headrace_client import requests

        ask = channel.unary_unary("/headrace.v1.EmbeddingService/Embed")
        call = ask.future(requests.embed_request("m", ["w1"]).SerializeToString(), timeout=20)
        wait_until(lambda: metric(server, "headrace_parked_requests") == 1)
        call.cancel()
        wait_until(lambda: metric(server, "headrace_parked_requests") == 0)
        channel.close()
        hold.set()
        assert len(client.embed("m", ["w1"]).vectors) == 1
        assert client.generate_text("talker", "abc", max_tokens=3).text is not None


def test_a_server_that_stops_tells_those_who_wait_for_a_model(tmp_path: Path, hold: threading.Event) -> None:
    model_folders.text_encoder(tmp_path / "m" / "1")
    codes: list[grpc.StatusCode] = []
    with served(tmp_path, idle_unload_s=0.3) as (server, _):
        wait_until(lambda: resting(server) == {"m"})
        channel = grpc.insecure_channel(server.addresses.grpc[0])
        from headrace_client import requests

        ask = channel.unary_unary("/headrace.v1.EmbeddingService/Embed")
        call = ask.future(requests.embed_request("m", ["w1"]).SerializeToString(), timeout=20)
        call.add_done_callback(lambda done: codes.append(done.code()))
        wait_until(lambda: metric(server, "headrace_parked_requests") == 1)
        stopping = threading.Thread(target=server.stop, args=(0.5,))
        stopping.start()
        wait_until(lambda: bool(codes))
        hold.set()
        stopping.join(20)
        channel.close()
    assert codes[0] in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
