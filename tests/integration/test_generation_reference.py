"""Greedy text through the whole server in fp32 is what transformers wrote: alone, in full batches, in chunks."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from generation_serving import NUM_SLOTS, Comparison, Served, ids_of, serve_generators

from headrace_server.config import DecoderPolicy

_DATA = Path(__file__).resolve().parents[1] / "data" / "generation" / "greedy.json"
_PROMPTS = json.loads(_DATA.read_text(encoding="utf-8"))["prompts"]
_END = 2
# fp32 sums in another order: logits of one prompt in chunks and whole, alone and in a batch, lie within this.
EPSILON = 2e-3
_SAMPLE = [prompt for prompt in _PROMPTS if prompt["name"] in ("capital", "arabic")]
_SHORT = 8  # tokens of each prompt in the sample


@pytest.fixture(scope="module", params=[16, pytest.param(256, marks=pytest.mark.full)], ids=["chunks-16", "chunks-256"])
def served(
    request: pytest.FixtureRequest, fp32_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    models = tmp_path_factory.mktemp("models")
    (models / "versions").mkdir()
    (models / "versions" / "1").symlink_to(fp32_folder)
    repository = models / "repository"
    repository.mkdir()
    policy = DecoderPolicy(prefill_chunk=request.param, prefix_cache_mb=0, max_slots=NUM_SLOTS, max_length=512)
    with serve_generators(repository, {"fp32": models / "versions"}, policy=policy) as served:
        yield served


def _compare(comparison: Comparison, prompt: dict[str, Any], found: list[int], count: int) -> None:
    wanted = prompt["following"][:count]
    if wanted[-1] == _END:
        wanted = wanted[:-1]  # the model's own end is no token of the text
    comparison.add(prompt["name"], wanted, found, prompt["margins"])


def _over_grpc(served: Served, prompt: dict[str, Any], count: int) -> list[int]:
    return ids_of(list(served.client.generate("fp32", prompt["ids"], max_tokens=count)))


def _in_process(served: Served, prompt: dict[str, Any], count: int) -> list[int]:
    answer = served.server.generate_text("fp32", prompt["ids"], max_tokens=count, logprobs=True)
    return [token.id for token in answer.choices[0].tokens]


def _ended(comparison: Comparison) -> None:
    print(comparison)
    assert not comparison.wrong, comparison
    assert len(comparison.near) <= 2, comparison


@pytest.mark.parametrize("ask", [_over_grpc, _in_process])
def test_text_is_what_transformers_writes(served: Served, ask: Any) -> None:
    comparison = Comparison(EPSILON)
    for prompt in _SAMPLE:
        _compare(comparison, prompt, ask(served, prompt, _SHORT), _SHORT)
    _ended(comparison)
    assert comparison.num_tokens >= 2 * _SHORT - len(comparison.near) * _SHORT


def test_text_is_what_transformers_writes_in_a_full_batch(served: Served) -> None:
    prompts = [prompt for prompt in _PROMPTS if len(prompt["ids"]) < 100][:NUM_SLOTS]
    _in_batch(served, prompts, lambda prompt: min(_SHORT, prompt["new_tokens"]))


@pytest.mark.full
@pytest.mark.parametrize("ask", [_over_grpc, _in_process])
def test_every_text_is_what_transformers_writes(served: Served, ask: Any) -> None:
    comparison = Comparison(EPSILON)
    for prompt in _PROMPTS:
        _compare(comparison, prompt, ask(served, prompt, prompt["new_tokens"]), prompt["new_tokens"])
    _ended(comparison)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(4))
def test_every_text_is_what_transformers_writes_in_full_batches(served: Served, seed: int) -> None:
    prompts = list(_PROMPTS) + _PROMPTS[:5]  # 32: two batches of 16
    random.Random(seed).shuffle(prompts)
    _in_batch(served, prompts, lambda prompt: prompt["new_tokens"])


def _in_batch(served: Served, prompts: list[dict[str, Any]], count: Any) -> None:
    comparison = Comparison(EPSILON)
    with ThreadPoolExecutor(NUM_SLOTS) as pool:
        answers, most = served.most_active(
            "fp32", lambda: list(pool.map(lambda prompt: _over_grpc(served, prompt, count(prompt)), prompts))
        )
    assert most == NUM_SLOTS
    for prompt, answer in zip(prompts, answers, strict=True):
        _compare(comparison, prompt, answer, count(prompt))
    _ended(comparison)
