"""What the demo's language model answers over gRPC: facts, chats, forms, stops, figures, characters."""

from __future__ import annotations

import json
import math
import re
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from generation_serving import NUM_SLOTS, Served, ids_of
from tokenizers import Tokenizer

from headrace_client import Generated
from headrace_server.jobs.generation_queries import FinishReason

builds = pytest.mark.parametrize("version", ["1", "2"], ids=["accurate", "fast"])
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog", "heron"]},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
REGEX = r"[A-Z][a-z]{2,9} is [0-9]{1,3} (years|months) old\."
GRAMMAR = """
start: sum " = " /[0-9]{1,2}/
sum: number (" " operator " " number){1,2}
number: /[1-9]/
operator: "+" | "-"
"""
MANY_BYTES = (
    "☀️ 🌧️ 👩‍👩‍👧 Rain, 🏞️ river, 🦢 swan:",
    "مرحبا، اسمي محمد وأنا من مدينة",
    "水从山上流下来,经过古老的磨坊,",
    "川のそばに古い水車小屋が",
)


@pytest.fixture(scope="module")
def tokenizer(demo_models: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo_models / "smollm2" / "2" / "tokenizer.json"))


# answers


@builds
def test_paris_is_the_capital_of_france(smollm2: Served, version: str) -> None:
    answer = smollm2.client.generate_text("smollm2", "The capital of France is", version=version, max_tokens=6)
    assert answer.text.startswith(" Paris")
    answer = smollm2.server.generate_text("smollm2", "The capital of France is", max_tokens=6)  # type: ignore[assignment]
    assert answer.choices[0].text.startswith(" Paris")


@builds
def test_a_chat_refers_back(smollm2: Served, version: str) -> None:
    chat = [SYSTEM, {"role": "user", "content": "Name the capital of France."}]
    first = smollm2.client.generate_text("smollm2", chat, version=version, max_tokens=16)
    chat += [
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "What is this city famous for?"},
    ]
    second = smollm2.client.generate_text("smollm2", chat, version=version, max_tokens=16)
    assert first.text == "The capital of France is Paris."
    assert "Paris" in second.text
    assert second.summary.num_cached_tokens > 0


def test_a_second_turn_computes_only_what_is_new(smollm2: Served) -> None:
    said = "We live beside the river, where an old mill turns its wheel, and walk to the bridge and back. " * 8

    def both_turns(number: int) -> tuple[Generated, Generated]:
        chat = [SYSTEM, {"role": "user", "content": f"Letter {number}. {said} Answer with one word."}]
        first = smollm2.client.generate_text("smollm2", chat, max_tokens=4)
        chat += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "And now another."}]
        return first, smollm2.client.generate_text("smollm2", chat, max_tokens=4)

    turns = [both_turns(number) for number in range(3)]
    for first, second in turns:
        assert first.summary.num_cached_tokens < 64
        assert second.summary.num_cached_tokens > first.summary.num_prompt_tokens - 32
    first_us, second_us = (statistics.median(turn[at].summary.first_token_us for turn in turns) for at in (0, 1))
    print(f"time to the first token: {first_us / 1e3:.1f} ms on the first turn, {second_us / 1e3:.1f} on the second")
    assert second_us < first_us


def test_a_chat_ends_where_the_model_says(smollm2: Served) -> None:
    chat = [SYSTEM, {"role": "user", "content": "What is the capital of France?"}]
    (choice,) = smollm2.client.generate_text("smollm2", chat, max_tokens=60).choices
    assert "Paris" in choice.text
    assert choice.finish_reason == "end"
    assert "<|im_end|>" not in choice.text


# forms


def _valid_json(text: str) -> bool:
    value = json.loads(text)
    assert value.keys() == SCHEMA["properties"].keys()  # type: ignore[attr-defined]
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 12
    assert isinstance(value["age"], int)
    assert 0 <= value["age"] <= 120
    assert value["kind"] in ("cat", "dog", "heron")
    assert len(value["tags"]) <= 2
    assert all(isinstance(tag, str) and len(tag) <= 8 for tag in value["tags"])
    return True


def _valid_grammar(text: str) -> bool:
    return re.fullmatch(r"[1-9]( [+-] [1-9]){1,2} = [0-9]{1,2}", text) is not None


def _valid_regex(text: str) -> bool:
    return re.fullmatch(REGEX, text) is not None


_FORMS = {"json_schema": (SCHEMA, _valid_json), "regex": (REGEX, _valid_regex), "grammar": (GRAMMAR, _valid_grammar)}


def _hold_to_form(smollm2: Served, kind: str, count: int, version: str = "") -> None:
    form, valid = _FORMS[kind]
    chat = [{"role": "user", "content": f"Describe an animal, in the form of a {kind}."}]

    def ask(seed: int) -> bool:
        options: dict[str, Any] = {kind: form, "temperature": 0.5 + seed % 4 * 0.5, "seed": seed, "max_tokens": 200}
        (choice,) = smollm2.client.generate_text("smollm2", chat, version=version, **options).choices
        assert choice.finish_reason == "end", choice
        assert valid(choice.text), choice.text
        return True

    with ThreadPoolExecutor(NUM_SLOTS) as pool:
        assert sum(pool.map(ask, range(count))) == count


@pytest.mark.parametrize("kind", list(_FORMS))
def test_drawn_text_has_the_form(smollm2: Served, kind: str) -> None:
    _hold_to_form(smollm2, kind, 4)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "count"), [("json_schema", 200), ("regex", 64), ("grammar", 64)])
@builds
def test_drawn_text_has_the_form_every_time(smollm2: Served, kind: str, count: int, version: str) -> None:
    _hold_to_form(smollm2, kind, count, version)


def test_one_of_the_given_texts_is_chosen(smollm2: Served) -> None:
    prompt = [{"role": "user", "content": "Is water wet? Answer yes or no."}]
    texts = {
        smollm2.client.generate_text("smollm2", prompt, choices=["yes", "no"], temperature=1.5, seed=seed).text
        for seed in range(4)
    }
    assert texts <= {"yes", "no"}


# ends


def test_a_stop_text_across_tokens_ends_it_wherever_tokens_are_cut(smollm2: Served, tokenizer: Tokenizer) -> None:
    prompt = "The capital of France is"
    deltas = list(smollm2.client.generate("smollm2", prompt, max_tokens=14, ignore_end=True))
    text, ids = "".join(delta.text for delta in deltas), ids_of(deltas)
    ends = [len(tokenizer.decode(ids[:count])) for count in range(1, len(ids))]
    stops = {text[end - 2 : end + 2] for end in ends[2:] if len(text[end - 2 : end + 2]) == 4}
    assert len(stops) > 3
    for stop in sorted(stops)[:3]:
        deltas = list(smollm2.client.generate("smollm2", prompt, max_tokens=14, ignore_end=True, stop=stop))
        assert "".join(delta.text for delta in deltas) == text[: text.index(stop)]
        assert [(delta.finish_reason, delta.stop_match) for delta in deltas if delta.finish_reason] == [("stop", stop)]


def test_the_end_waits_for_the_fewest_tokens(smollm2: Served) -> None:
    chat = [SYSTEM, {"role": "user", "content": "What is the capital of France?"}]
    short = smollm2.client.generate_text("smollm2", chat, max_tokens=40)
    longer = smollm2.client.generate_text("smollm2", chat, max_tokens=40, min_tokens=20)
    assert short.summary.num_generated_tokens < 20 <= longer.summary.num_generated_tokens
    assert longer.text.startswith(short.text)


def test_a_forbidden_token_never_comes(smollm2: Served, tokenizer: Tokenizer) -> None:
    (paris,) = tokenizer.encode(" Paris", add_special_tokens=False).ids
    answer = smollm2.client.generate_text(
        "smollm2", "The capital of France is", max_tokens=12, ignore_end=True, logit_bias={paris: -100}, logprobs=True
    )
    assert paris not in [token.id for token in answer.choices[0].tokens]
    assert not answer.text.startswith(" Paris")


# figures


def test_log_probabilities_are_of_a_whole_distribution(smollm2: Served) -> None:
    answer = smollm2.client.generate_text(
        "smollm2", "The capital of France is", max_tokens=6, logprobs=True, top_logprobs=20
    )
    for token in answer.choices[0].tokens:
        assert token.logprob is not None
        tops = [top.logprob for top in token.top_logprobs]
        assert token.logprob == pytest.approx(tops[0])  # greedy: the likeliest
        assert tops == sorted(tops, reverse=True)
        assert 0.2 < sum(map(math.exp, tops)) <= 1 + 1e-5
    first = answer.choices[0].tokens[0]
    assert first.text == " Paris"
    # Forced by one text alone, its tokens' probabilities are those it has without the form.
    forced = smollm2.client.generate_text(
        "smollm2", "The capital of France is", max_tokens=1, choices=[" Paris", " Lyon"], logprobs=True
    )
    assert forced.choices[0].tokens[0].logprob == pytest.approx(first.logprob, abs=1e-4)


def test_choices_are_those_of_seeds_counted_up(smollm2: Served) -> None:
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.2, "ignore_end": True}
    answer = smollm2.client.generate_text("smollm2", "Once upon a time", num_choices=3, seed=7, **options)
    alone = [smollm2.client.generate_text("smollm2", "Once upon a time", seed=7 + n, **options).text for n in range(3)]
    assert [choice.text for choice in answer.choices] == alone
    assert len(set(alone)) > 1
    assert answer.summary.num_generated_tokens == 24


# characters


@pytest.mark.parametrize("prompt", MANY_BYTES)
def test_no_delta_splits_a_character(smollm2: Served, tokenizer: Tokenizer, prompt: str) -> None:
    deltas = list(
        smollm2.client.generate(
            "smollm2", prompt, max_tokens=24, ignore_end=True, echo=True, temperature=1.1, seed=3, num_choices=2
        )
    )
    for choice in (0, 1):
        pieces = [delta for delta in deltas if delta.choice == choice]
        text = "".join(delta.text for delta in pieces)
        assert text.startswith(prompt)
        ids = [token.id for delta in pieces for token in delta.tokens]
        whole = tokenizer.decode(tokenizer.encode(prompt, add_special_tokens=False).ids + ids)
        assert text == whole
        assert all("\ufffd" not in delta.text for delta in pieces if not delta.finish_reason) or "\ufffd" in whole[:-1]


def test_deltas_come_one_by_one(smollm2: Served) -> None:
    deltas = list(smollm2.client.generate("smollm2", "One, two, three, four,", max_tokens=12, ignore_end=True))
    assert len([delta for delta in deltas if delta.text]) >= 8
    assert deltas[-1].summary is not None
    assert deltas[-1].summary.num_generated_tokens == 12
    assert all(delta.summary is None for delta in deltas[:-1])


def test_in_process_and_over_grpc_the_text_is_the_same(smollm2: Served) -> None:
    prompt = [{"role": "user", "content": "Name a river."}]
    stream = smollm2.server.generate("smollm2", prompt, max_tokens=10, temperature=0.8, seed=11)
    pieces, summary = [], None
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            summary = end.value
            break
    answer = smollm2.client.generate_text("smollm2", prompt, max_tokens=10, temperature=0.8, seed=11)
    assert "".join(piece.text for piece in pieces) == answer.text
    assert pieces[-1].finish_reason in (FinishReason.LENGTH, FinishReason.END)
    assert summary.num_generated_tokens == answer.summary.num_generated_tokens
