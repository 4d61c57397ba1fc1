"""The Python client's calls for text, sync and async, against the served language model."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from generation_serving import Served, eventually

from headrace_client import AsyncClient, GenerationDelta, HeadraceError

PROMPT = "The capital of France is"
OPTIONS: dict[str, Any] = {"max_tokens": 8, "temperature": 0.8, "seed": 5, "ignore_end": True}


def text_of(deltas: list[GenerationDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def test_sync_and_async_streamed_and_whole_are_one_text(smollm2: Served) -> None:
    streamed = list(smollm2.client.generate("smollm2", PROMPT, **OPTIONS))
    whole = smollm2.client.generate_text("smollm2", PROMPT, **OPTIONS)

    async def ask() -> tuple[list[GenerationDelta], str]:
        async with AsyncClient(smollm2.address) as client:
            deltas = [delta async for delta in client.generate("smollm2", PROMPT, **OPTIONS)]
            return deltas, (await client.generate_text("smollm2", PROMPT, **OPTIONS)).text

    async_streamed, async_whole = asyncio.run(ask())
    assert text_of(streamed) == whole.text == text_of(async_streamed) == async_whole
    for deltas in (streamed, async_streamed):
        assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
        assert deltas[-1].summary is not None
        assert deltas[-1].summary.num_generated_tokens == 8
        assert deltas[-1].summary.seed == 5
        assert deltas[-1].summary.model.version == "2"


def test_leaving_an_async_stream_cancels_it(smollm2: Served) -> None:
    decoder = smollm2.decoder("smollm2")

    async def leave() -> None:
        async with AsyncClient(smollm2.address) as client:
            stream = client.generate("smollm2", PROMPT, max_tokens=2000, ignore_end=True)
            await anext(stream)
            assert decoder.num_active == 1
            await stream.aclose()
            assert await asyncio.to_thread(eventually, lambda: decoder.num_active == 0)

    asyncio.run(leave())


def test_a_version_may_be_asked_for(smollm2: Served) -> None:
    assert smollm2.client.generate_text("smollm2", PROMPT, version="1", max_tokens=2).summary.model.version == "1"


def test_a_refusal_names_the_field(smollm2: Served) -> None:
    with pytest.raises(HeadraceError, match="temperature"):
        list(smollm2.client.generate("smollm2", PROMPT, temperature=-1))
    with pytest.raises(HeadraceError, match="json_schema"):
        smollm2.client.generate_text("smollm2", PROMPT, json_schema={"type": "thing"})


def test_options_that_are_none_or_exclude_each_other_are_refused_here(smollm2: Served) -> None:
    with pytest.raises(TypeError, match="'temprature'"):
        smollm2.client.generate_text("smollm2", PROMPT, temprature=1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="json_object and regex"):
        smollm2.client.generate_text("smollm2", PROMPT, json_object=True, regex="a")
    with pytest.raises(ValueError, match="tools"):
        smollm2.client.generate_text("smollm2", PROMPT, tools=[{"name": "clock"}])
