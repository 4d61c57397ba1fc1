"""Detokenizer: pieces are whole characters, and joined they are the text."""

from __future__ import annotations

import byte_tokenizer
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from headrace_server.models.detokenizer import Detokenizer

TOKENIZER = byte_tokenizer.byte_tokenizer()


def bytes_to_letters() -> dict[int, str]:
    """The letter that stands for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + place) for place, byte in enumerate(others)}


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


@given(
    st.lists(
        st.sampled_from([b"\xe2", b"\x82", b"\xac", b"\xc3", b"\xa9", b"\xf0", b"\x9f", b"a", b"\xff"]), max_size=40
    )
)
def test_joined_pieces_of_any_bytes_are_what_the_tokenizer_makes_of_them(found: list[bytes]) -> None:
    alphabet = bytes_to_letters()
    ids = [TOKENIZER.token_to_id(alphabet[byte[0]]) for byte in found]
    assert "".join(pieces(ids)) == TOKENIZER.decode(ids)


def test_characters_that_end_within_tokens_stay_whole() -> None:
    alphabet = bytes_to_letters()
    parts = [b"\xe2", b"\x82", *[b"\xac\xe2\x82"] * 9, b"\xac"]  # each token but the last ends within a character
    vocabulary = {"".join(alphabet[byte] for byte in part): number for number, part in enumerate(dict.fromkeys(parts))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=next(iter(vocabulary))))
    tokenizer.decoder = decoders.ByteLevel()
    detokenizer = Detokenizer(tokenizer)
    given_out = [detokenizer.step(list(dict.fromkeys(parts)).index(part)) for part in parts]
    assert "".join(given_out) + detokenizer.finish() == "€" * 10


def test_a_long_run_of_bytes_that_are_no_text_comes_as_it_goes() -> None:
    (first_of_three,) = TOKENIZER.encode("€", add_special_tokens=False).ids[:1]
    detokenizer = Detokenizer(TOKENIZER)
    longest = 0
    given_out = []
    for _ in range(2000):
        given_out.append(detokenizer.step(first_of_three))
        longest = max(longest, len(detokenizer._ids) - detokenizer._begin)
    assert len("".join(given_out)) >= 1997
    assert longest < 12, "tokens read again at each step"
    assert "".join(given_out) + detokenizer.finish() == "\ufffd" * 2000


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
