"""Constraints: every text that the masks let through has the form; a form that is none is refused with the reason."""

from __future__ import annotations

import json
import random
import re

import byte_tokenizer
import numpy as np
import pytest

from headrace_server.errors import Reason, ServingError
from headrace_server.models.constraint import ConstraintCompiler, ConstraintSpec, TokenMatcher

COMPILER = ConstraintCompiler(
    byte_tokenizer.definition(), vocabulary_size=byte_tokenizer.MASK_VOCABULARY, end_ids=[byte_tokenizer.END]
)
TOKENIZER = byte_tokenizer.byte_tokenizer()
PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
)


def drawn(spec: ConstraintSpec, seed: int, limit: int = 400) -> str:
    """A text of tokens drawn evenly among those allowed; "" where the limit came first."""
    chance, matcher = random.Random(seed), COMPILER.compile(spec)
    ids: list[int] = []
    for _ in range(limit):
        bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
        allowed = np.flatnonzero(bits).tolist()
        assert allowed, "somewhere to go on, or the end"
        ended = byte_tokenizer.END in allowed
        token = byte_tokenizer.END if ended and chance.random() < 0.5 else chance.choice(allowed)
        matcher.accept(token)
        if token == byte_tokenizer.END or matcher.complete:
            ids.extend([] if token == byte_tokenizer.END else [token])
            text: str = TOKENIZER.decode(ids)
            return text
        ids.append(token)
    return ""


def test_random_texts_under_a_schema_are_instances_of_it() -> None:
    texts = [text for seed in range(40) if (text := drawn(ConstraintSpec("json_schema", PERSON), seed))]
    assert len(texts) > 10
    for text in texts:
        person = json.loads(text)
        assert set(person) == {"name", "age"}
        assert isinstance(person["age"], int)
        assert len(person["name"]) <= 8


@pytest.mark.parametrize(
    ("text", "allowed"),
    [('{"name":"a"', True), ('{\n  "name": "a"', True), ('{\n\n"name"', False), ("{" + " " * 20 + '"name"', False)],
)
def test_white_space_between_the_signs_of_json_is_bounded(text: str, allowed: bool) -> None:
    matcher = COMPILER.compile(ConstraintSpec("json_schema", PERSON))
    through = True
    for token in TOKENIZER.encode(text).ids:
        through = through and bool(matcher.allowed()[token // 32] >> token % 32 & 1)
        if through:
            matcher.accept(token)
    assert through == allowed


def test_random_texts_under_a_regular_expression_match_it() -> None:
    expression = r"[a-f]{2,4}-(the|and)\d"
    for seed in range(20):
        assert re.fullmatch(expression, drawn(ConstraintSpec("regex", expression), seed))


def test_one_of_the_choices_comes_out_quotes_and_all() -> None:
    choices = ("yes", 'he said "no"', "naïve\n")
    found = {drawn(ConstraintSpec("choices", choices=choices), seed) for seed in range(30)}
    assert found == set(choices)


def test_a_grammar_holds() -> None:
    grammar = 'start: "a" middle "z"\nmiddle: "in" | "and" middle'
    for seed in range(10):
        assert re.fullmatch("a(and)*inz", drawn(ConstraintSpec("grammar", grammar), seed))


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (ConstraintSpec("json_schema", '{"type": "thing"}'), "thing"),
        (ConstraintSpec("json_schema", "{"), "line 1"),
        (ConstraintSpec("json_schema", "[1]"), "object"),
        (ConstraintSpec("json_schema", '{"$ref": "http://example.com/schema"}'), "example.com"),
        (ConstraintSpec("regex", "[a-"), "unclosed"),
        (ConstraintSpec("grammar", "start: nowhere"), "nowhere"),
    ],
)
def test_a_form_that_cannot_be_compiled_is_refused_with_the_reason(spec: ConstraintSpec, reason: str) -> None:
    with pytest.raises(ServingError) as caught:
        COMPILER.compile(spec)
    assert caught.value.reason is Reason.INVALID_INPUT
    assert caught.value.violations[0].field == f"constraint.{spec.kind}"
    assert reason in caught.value.message


def test_two_sequences_do_not_share_their_place() -> None:
    spec = ConstraintSpec("choices", choices=("ab", "cd"))
    first, second = COMPILER.compile(spec), COMPILER.compile(spec)
    first.accept(TOKENIZER.token_to_id("a"))
    assert not np.array_equal(first.allowed(), second.allowed())


def test_a_copy_goes_its_own_way() -> None:
    matcher = COMPILER.compile(ConstraintSpec("choices", choices=("yes", "no")))
    (yes,), (no,) = (TOKENIZER.encode(text[0]).ids for text in ("yes", "no"))
    copy = matcher.copy()
    matcher.accept(yes)
    copy.accept(no)
    another = matcher.copy()
    for each, rest in ((matcher, "es"), (copy, "o"), (another, "es")):
        for token in TOKENIZER.encode(rest).ids:
            each.accept(token)
        assert each.complete or byte_tokenizer.END in allowed_of(each)


def allowed_of(matcher: TokenMatcher) -> list[int]:
    bits = np.unpackbits(matcher.allowed().view(np.uint8), bitorder="little")
    return [int(token) for token in np.flatnonzero(bits)]


@pytest.mark.parametrize("text", ["[" * 60_000, '{"properties":{"a":' * 3000 + "{}" + "}}" * 3000])
def test_a_schema_of_any_depth_is_refused(text: str) -> None:
    with pytest.raises(ServingError) as refused:
        COMPILER.compile(ConstraintSpec("json_schema", text))
    assert refused.value.reason is Reason.INVALID_INPUT
