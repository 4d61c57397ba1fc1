"""Streams of text whose readers stall, are many, or outlive the server; over real gRPC, on both transports."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract.services_models import Serving, serving_models
from decoder_folders import write_decoder

from headrace.v1 import generation_pb2, generation_pb2_grpc
from headrace_server.serving.text_servable import TextServable

TIMEOUT_S = 30
STALL_S = 1.0
# Hundreds of kilobytes of log-probabilities: more than the window of a client that takes what HTTP/2 begins with.
NARROW = [("grpc.use_local_subchannel_pool", 1), ("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_535)]
MUCH: dict[str, Any] = {"max_tokens": 240, "num_choices": 8, "logprobs": True, "top_logprobs": 20}


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("models")
    write_decoder(folder / "llama" / "1")
    return folder


@pytest.fixture(scope="module", params=["direct", "aio"])
def serving(request: pytest.FixtureRequest, repository: Path) -> Iterator[Serving]:
    with serving_models(repository, request.param, stream_stall_s=STALL_S, stream_high_water=8) as serving:
        yield serving


def generate(channel: grpc.Channel, **request: Any) -> Any:
    message = generation_pb2.GenerateRequest(
        **{"model": {"name": "llama"}, "prompt": "in the end", "ignore_end": True, **request}
    )
    return generation_pb2_grpc.GenerationServiceStub(channel).Generate(message, timeout=TIMEOUT_S)


def decoder_of(serving: Serving) -> Any:
    with serving.server._repository.acquire("llama") as lease:
        assert isinstance(lease.servable, TextServable)
        return lease.servable.decoder


def eventually(holds: Any, timeout_s: float = 10) -> bool:
    limit = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.005)
    return True


def num_tokens(messages: list[Any]) -> int:
    return sum(len(message.tokens) for message in messages)


def test_a_reader_that_stops_loses_its_call_and_its_slots(serving: Serving) -> None:
    with grpc.insecure_channel(serving.address, NARROW) as channel:
        call = generate(channel, **MUCH)
        next(call)
        assert eventually(lambda: decoder_of(serving).num_active == 0), "its generation ends though nobody reads"
        assert eventually(lambda: serving.server.num_calls == 0, STALL_S + 10), "the call itself ends, unread"
        read = []
        with pytest.raises(grpc.RpcError) as failed:
            read.extend(call)
        assert failed.value.code() is grpc.StatusCode.CANCELLED
        assert num_tokens(read) < 8 * 240


@pytest.mark.parametrize("transport", ["direct", "aio"])
def test_a_finished_stream_that_nobody_reads_to_its_end_is_cut(repository: Path, transport: str) -> None:
    queue = {"stream_high_water": 8192, "stream_hard_limit": 16_384}  # takes it all: the stream never blocks
    with (
        serving_models(repository, transport, stream_stall_s=STALL_S, **queue) as serving,
        grpc.insecure_channel(serving.address, NARROW) as channel,
    ):
        call = generate(channel, **MUCH)
        next(call)
        assert eventually(lambda: decoder_of(serving).num_active == 0)
        assert serving.server.num_calls == 1
        assert eventually(lambda: serving.server.num_calls == 0, 2 * STALL_S + 5), "ended long before its deadline"
        read = []
        with pytest.raises(grpc.RpcError) as failed:
            read.extend(call)
        assert failed.value.code() is grpc.StatusCode.CANCELLED
        assert num_tokens(read) < 8 * 240


@pytest.mark.parametrize("transport", ["direct", "aio"])
def test_a_finished_stream_that_is_read_slowly_is_read_whole(repository: Path, transport: str) -> None:
    queue = {"stream_high_water": 8192, "stream_hard_limit": 16_384}
    with (
        serving_models(repository, transport, stream_stall_s=STALL_S / 2, **queue) as serving,
        grpc.insecure_channel(serving.address, NARROW) as channel,
    ):
        call, began, tokens = generate(channel, **MUCH), time.monotonic(), 0
        for number, message in enumerate(call):
            tokens += len(message.tokens)
            if number % 200 == 0:
                time.sleep(STALL_S / 4)
        assert tokens == 8 * 240
        assert time.monotonic() - began > STALL_S


def test_a_reader_slower_than_the_decoder_gets_everything(serving: Serving) -> None:
    call, tokens, texts, summaries, largest = generate(serving.channel, **MUCH), [0] * 8, [""] * 8, 0, 0
    for number, message in enumerate(call):
        if number % 50 == 0:
            time.sleep(STALL_S / 4)  # slow, and never stalled
        tokens[message.choice] += len(message.tokens)
        texts[message.choice] += message.text
        summaries += message.HasField("summary")
        largest = max(largest, message.ByteSize())
    assert tokens == [240] * 8
    assert len(set(texts)) == 1  # greedy
    assert summaries == 1
    assert largest < 200_000, "what waited was joined, within bounds"


def test_a_stalled_reader_costs_the_others_nothing(serving: Serving) -> None:
    def gaps() -> list[float]:
        times = [time.perf_counter() for message in generate(serving.channel, max_tokens=200) if message.tokens]
        return [later - earlier for earlier, later in itertools.pairwise(times)]

    with ThreadPoolExecutor(4) as pool:
        before = [gap for gaps_ in pool.map(lambda _: gaps(), range(4)) for gap in gaps_]
        with grpc.insecure_channel(serving.address, NARROW) as channel:
            stalled = generate(channel, **MUCH)
            next(stalled)
            assert eventually(lambda: decoder_of(serving).num_active == 0)
            beside = [gap for gaps_ in pool.map(lambda _: gaps(), range(4)) for gap in gaps_]
            stalled.cancel()
    alone_s, beside_s = statistics.median(before), statistics.median(beside)
    print(f"median gap {alone_s * 1e3:.2f} ms, beside a stalled reader {beside_s * 1e3:.2f} ms")
    assert beside_s < 4 * alone_s + 0.005
    assert max(beside) < STALL_S


def test_sixty_four_streams_at_once_are_all_whole(serving: Serving) -> None:
    begun = threading.Barrier(64)

    def one(number: int) -> int:
        begun.wait(TIMEOUT_S)
        return num_tokens(list(generate(serving.channel, prompt=f"{number} is", max_tokens=12)))

    with ThreadPoolExecutor(64) as pool:
        assert list(pool.map(one, range(64))) == [12] * 64


@pytest.mark.parametrize("transport", ["direct", "aio"])
def test_a_stop_lets_every_stream_that_began_finish(repository: Path, transport: str) -> None:
    grace_s = 20.0
    begun, outcomes = threading.Semaphore(0), []

    def read(channel: grpc.Channel) -> tuple[str, int]:
        tokens, first = 0, True
        call = generate(channel, max_tokens=200)
        try:
            for message in call:
                tokens += len(message.tokens)
                if first:
                    first = False
                    begun.release()
        except grpc.RpcError as error:
            begun.release()
            return error.code().name, tokens
        return "OK", tokens

    with serving_models(repository, transport) as serving, ThreadPoolExecutor(24) as pool:
        readers = [pool.submit(read, serving.channel) for _ in range(24)]
        for _ in range(16):
            assert begun.acquire(timeout=TIMEOUT_S)
        started = time.monotonic()
        serving.server.stop(grace_s)
        assert time.monotonic() - started < grace_s + 10
        outcomes = [reader.result(TIMEOUT_S) for reader in readers]
    assert all(tokens == 200 for code, tokens in outcomes if code == "OK")
    assert {code for code, _ in outcomes} <= {"OK", "UNAVAILABLE", "CANCELLED"}, outcomes
    assert sum(code == "OK" for code, _ in outcomes) >= 16
    assert not any(tokens for code, tokens in outcomes if code != "OK"), "who had begun was let finish"
