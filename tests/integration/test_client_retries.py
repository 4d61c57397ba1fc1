"""A call that no server took is tried again, as often as was said and within its time; one that was begun is not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from headrace.v1 import classification_pb2, generation_pb2
from headrace_client import AsyncClient, ChannelOptions, Client, Unavailable


class Refusing:
    """Answers UNAVAILABLE so many times to each method, then well."""

    def __init__(self) -> None:
        self.num_refusals = 0
        self.breaks_streams = False
        self.asked: Counter[str] = Counter()
        self._server = grpc.server(ThreadPoolExecutor(4))
        generation = {
            "GenerateText": grpc.unary_unary_rpc_method_handler(self._generate_text),
            "Generate": grpc.unary_stream_rpc_method_handler(self._generate),
        }
        classification = {"ClassifyStream": grpc.stream_stream_rpc_method_handler(self._classify)}
        self._server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler("headrace.v1.GenerationService", generation),
                grpc.method_handlers_generic_handler("headrace.v1.ClassificationService", classification),
            )
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(0).wait()

    def _count(self, method: str, context: grpc.ServicerContext) -> None:
        self.asked[method] += 1
        if self.asked[method] <= self.num_refusals:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")

    def _generate_text(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self._count("GenerateText", context)
        response = generation_pb2.GenerateTextResponse()
        response.choices.add(text="well")
        return response.SerializeToString()

    def _generate(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        self._count("Generate", context)
        yield generation_pb2.GenerateResponse(text="well").SerializeToString()
        if self.breaks_streams:
            context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    def _classify(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        self._count("ClassifyStream", context)
        for _ in requests:
            yield classification_pb2.ClassifyStreamResponse().SerializeToString()


@pytest.fixture
def refusing() -> Iterator[Refusing]:
    server = Refusing()
    yield server
    server.stop()


def _ask(client: Client, method: str) -> str:
    if method == "GenerateText":
        return client.generate_text("m", "p").text
    return "".join(delta.text for delta in client.generate("m", "p"))


async def _ask_async(address: str, method: str) -> str:
    async with AsyncClient(address) as client:
        if method == "GenerateText":
            return (await client.generate_text("m", "p")).text
        return "".join([delta.text async for delta in client.generate("m", "p")])


@pytest.mark.parametrize("method", ["GenerateText", "Generate"])
def test_what_nobody_took_is_tried_again(refusing: Refusing, method: str) -> None:
    refusing.num_refusals = 2
    with Client(refusing.address) as client:
        assert _ask(client, method) == "well"
    assert refusing.asked[method] == 3
    refusing.asked.clear()
    assert asyncio.run(_ask_async(refusing.address, method)) == "well"
    assert refusing.asked[method] == 3


@pytest.mark.parametrize("method", ["GenerateText", "Generate"])
@pytest.mark.parametrize("num_attempts", [1, 2])
def test_no_more_tries_than_allowed(refusing: Refusing, method: str, num_attempts: int) -> None:
    refusing.num_refusals = 9
    options = ChannelOptions(num_attempts=num_attempts)
    with Client(refusing.address, options=options) as client, pytest.raises(Unavailable, match="not yet"):
        _ask(client, method)
    assert refusing.asked[method] == num_attempts


def test_a_stream_that_began_is_not_begun_again(refusing: Refusing) -> None:
    refusing.breaks_streams = True
    texts: list[str] = []
    with Client(refusing.address) as client, pytest.raises(Unavailable, match="gone"):
        texts.extend(delta.text for delta in client.generate("m", "p"))
    assert refusing.asked["Generate"] == 1


def test_a_call_that_sends_a_stream_is_tried_once(refusing: Refusing) -> None:
    refusing.num_refusals = 1
    with Client(refusing.address) as client, pytest.raises(Unavailable, match="not yet"):
        list(client.classify_stream("m", [["a"]]))
    assert refusing.asked["ClassifyStream"] == 1


@pytest.mark.parametrize("closing", [False, True])
def test_tries_end_with_the_time_or_the_client(
    refusing: Refusing, monkeypatch: pytest.MonkeyPatch, closing: bool
) -> None:
    from headrace_client import retries

    monkeypatch.setattr(retries, "_FIRST_PAUSE_S", 20.0)
    refusing.num_refusals = 9
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool, Client(refusing.address) as client:
        asked: Any = pool.submit(client.generate_text, "m", "p", timeout_s=60 if closing else 5)
        if closing:
            while not refusing.asked:
                time.sleep(0.01)
            time.sleep(0.1)
            client.close()
        with pytest.raises(Unavailable, match="not yet"):
            asked.result()
    assert time.monotonic() - began < 4
