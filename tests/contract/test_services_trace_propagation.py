"""The Python clients' spans are the parents of the server's; without OpenTelemetry they say nothing of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from contract.services_models import Serving, serving_models, write_repository
from decoder_folders import write_decoder
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from otlp_collector import Collector, collecting

from headrace_client import AsyncClient, Client
from headrace_server.config import TracingOptions

TRACER = TracerProvider().get_tracer("test")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def serving(collector: Collector, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    repository: Path = write_repository(tmp_path_factory.mktemp("models"))
    write_decoder(repository / "llama" / "1")
    tracing = TracingOptions(endpoint=collector.endpoint, sample_ratio=0)
    with serving_models(repository, "auto", tracing=tracing) as serving:
        yield serving


def rpcs(collector: Collector, trace_id: int, count: int) -> list[Span]:
    """The server's spans of a trace, in order."""
    spans = collector.of_trace(f"{trace_id:032x}", count, lambda span: span.kind == Span.SPAN_KIND_SERVER)
    return sorted(spans, key=lambda span: span.start_time_unix_nano)


def methods(spans: list[Span]) -> list[str]:
    return [span.name.rpartition("/")[2] for span in spans]


def test_calls_of_the_client_belong_to_the_span_they_are_made_in(serving: Serving, collector: Collector) -> None:
    with Client(serving.address) as client, TRACER.start_as_current_span("work") as span:
        client.classify("mood", "the cat")
        list(client.embed_stream("sentence", ["a", "b"]))
        list(client.generate("llama", "in the end", max_tokens=3))
    context = span.get_span_context()
    spans = rpcs(collector, context.trace_id, 3)
    assert methods(spans) == ["Classify", "EmbedStream", "Generate"]
    assert {each.parent_span_id for each in spans} == {context.span_id.to_bytes(8, "big")}


def test_calls_of_the_async_client_belong_to_the_span_of_their_own_task(serving: Serving, collector: Collector) -> None:
    async def work(client: AsyncClient, name: str) -> tuple[int, int]:
        with TRACER.start_as_current_span(name) as span:
            await client.classify("mood", name)
            async for _ in client.embed_stream("sentence", [name]):
                pass
            async for _ in client.generate("llama", name, max_tokens=3):
                pass
        context = span.get_span_context()
        return context.trace_id, context.span_id

    async def both() -> list[tuple[int, int]]:
        async with AsyncClient(serving.address) as client:
            return await asyncio.gather(work(client, "the cat"), work(client, "a dog"))

    for trace_id, span_id in asyncio.run(both()):
        spans = rpcs(collector, trace_id, 3)
        assert methods(spans) == ["Classify", "EmbedStream", "Generate"]
        assert {each.parent_span_id for each in spans} == {span_id.to_bytes(8, "big")}


def test_a_program_without_opentelemetry_pays_nothing_for_it(serving: Serving) -> None:
    program = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"  # as if it were not installed
        "from headrace_client import Client\n"
        f"with Client({serving.address!r}) as client:\n"
        "    assert client.classify('mood', 'the cat').results\n"
        "assert not [name for name in sys.modules if name.startswith('opentelemetry.')]\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
