"""One request alone and among fifteen others, in both served builds: the same text, drawn or not."""

from __future__ import annotations

import math
from typing import Any

import pytest
from generation_serving import NUM_SLOTS, Comparison, Served, fill_slots, ids_of, margins_of

# A prompt that is cut elsewhere sums in another order; where activations are rounded to 8 bits, that shows in logits.
EPSILON = {"1": 0.05, "2": 0.25}
_PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a valley between two mountains,",
    "def fibonacci(n):\n",
    "Die Hauptstadt von Deutschland ist",
    "مرحبا، اسمي محمد وأنا من",
    "水从山上流下来,",
    "Weather report: ☀️ in the morning, 🌧️ in the afternoon",
    "The printing press changed Europe in three ways. First, it made books cheap enough for people who had never owned "
    "one. Second, it fixed the spelling of words. Third,",
)
builds = pytest.mark.parametrize("version", ["1", "2"], ids=["accurate", "fast"])


def _ask(smollm2: Served, version: str, prompt: str, **options: Any) -> tuple[list[int], list[float]]:
    deltas = list(smollm2.client.generate("smollm2", prompt, version=version, top_logprobs=2, logprobs=True, **options))
    return ids_of(deltas), margins_of(deltas)


def _compare(smollm2: Served, version: str, prompts: tuple[str, ...], **options: Any) -> Comparison:
    alone = [_ask(smollm2, version, prompt, **options) for prompt in prompts]
    comparison = Comparison(math.inf if options.get("temperature") else EPSILON[version])
    with fill_slots(smollm2.client, "smollm2", NUM_SLOTS - 1, version=version):
        for prompt, (ids, margins) in zip(prompts, alone, strict=True):
            (found, _), most = smollm2.most_active(
                "smollm2", lambda prompt=prompt: _ask(smollm2, version, prompt, **options), version
            )
            assert most == NUM_SLOTS
            comparison.add(prompt[:20], ids, found, margins)
    print(comparison)
    assert not comparison.wrong, comparison
    return comparison


@builds
def test_greedy_text_is_the_same_among_others(smollm2: Served, version: str) -> None:
    _compare(smollm2, version, _PROMPTS[:1], max_tokens=10)


@builds
def test_drawn_text_is_the_same_among_others(smollm2: Served, version: str) -> None:
    comparison = _compare(smollm2, version, _PROMPTS[3:4], max_tokens=10, temperature=0.9, seed=5)
    assert len(comparison.near) <= 1


@pytest.mark.full
@builds
def test_every_greedy_text_is_the_same_among_others(smollm2: Served, version: str) -> None:
    comparison = _compare(smollm2, version, _PROMPTS, max_tokens=40)
    assert len(comparison.near) <= 2


@pytest.mark.full
@builds
def test_every_drawn_text_is_the_same_among_others(smollm2: Served, version: str) -> None:
    comparison = _compare(smollm2, version, _PROMPTS, max_tokens=40, temperature=0.9, seed=5)
    assert len(comparison.near) <= 2
