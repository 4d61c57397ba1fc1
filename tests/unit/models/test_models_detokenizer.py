"""Detokenizer: pieces are whole characters, and joined they are the text."""

from __future__ import annotations

import byte_tokenizer
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from headrace_server.models.detokenizer import Detokenizer

TOKENIZER = byte_tokenizer.byte_tokenizer()


def pieces(ids: list[int], prompt: list[int] | None = None, **options: bool) -> list[str]:
    detokenizer = Detokenizer(TOKENIZER, prompt or [], **options)  # type: ignore[arg-type]
    return [*(detokenizer.step(token) for token in ids), detokenizer.finish()]


@given(st.text(max_size=60), st.text(max_size=10))
def test_joined_pieces_are_the_text_and_no_piece_splits_a_character(text: str, before: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    given_out = pieces(ids, TOKENIZER.encode(before, add_special_tokens=False).ids)
    assert "".join(given_out) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in given_out)


def test_a_character_comes_with_its_last_byte() -> None:
    assert pieces(TOKENIZER.encode("é€😀", add_special_tokens=False).ids) == [
        "",
        "é",
        "",
        "",
        "€",
        "",
        "",
        "",
        "😀",
        "",
    ]


def test_bytes_that_never_become_a_character_come_at_the_end_as_a_replacement() -> None:
    first_of_three = TOKENIZER.encode("€", add_special_tokens=False).ids[:1]
    assert pieces(first_of_three) == ["", "\ufffd"]


@pytest.mark.parametrize(("keeps", "text"), [(False, "ab"), (True, "a<br>b")])
def test_special_tokens_are_left_out_unless_they_are_wanted(keeps: bool, text: str) -> None:
    a, b = (TOKENIZER.token_to_id(letter) for letter in "ab")
    assert "".join(pieces([a, byte_tokenizer.BREAK, b], keep_special_tokens=keeps)) == text


def test_a_leading_space_is_kept_where_the_tokenizer_drops_it_at_the_start_of_a_text() -> None:
    vocabulary = {"▁Hello": 0, "▁world": 1, "!": 2}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="!"))
    tokenizer.decoder = decoders.Metaspace()
    assert tokenizer.decode([1]) == "world"
    detokenizer = Detokenizer(tokenizer, [0])
    assert detokenizer.step(1) == " world"


def test_a_long_text_keeps_few_tokens() -> None:
    detokenizer = Detokenizer(TOKENIZER)
    letter = TOKENIZER.token_to_id("x")
    assert "".join(detokenizer.step(letter) for _ in range(2000)) == "x" * 2000
    assert len(detokenizer._ids) < 600
