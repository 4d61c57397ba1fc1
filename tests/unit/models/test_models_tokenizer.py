"""Tokens and where they stand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from small_models import VOCABULARY, refused, word_tokenizer

from headrace_server.errors import Reason
from headrace_server.models.tokenizer import TextTokenizer


def test_offsets_are_utf8_bytes_and_characters() -> None:
    text = "é cats 😀 the"
    found = TextTokenizer(word_tokenizer().to_str()).tokenize(text)
    assert found.tokens == ("[CLS]", "é", "cat", "##s", "[UNK]", "the", "[SEP]")
    assert found.special == (True, False, False, False, False, False, True)
    pieces = [text.encode()[start:end].decode() for start, end in found.byte_offsets]
    assert pieces == ["", "é", "cat", "s", "😀", "the", ""]
    assert [text[start:end] for start, end in found.char_offsets] == pieces
    assert found.ids[1] == VOCABULARY.index("é")


def test_special_tokens_are_left_out_on_request() -> None:
    tokenizer = TextTokenizer(word_tokenizer().to_str())
    assert tokenizer.tokenize("the cat", add_special_tokens=False).tokens == ("the", "cat")
    assert tokenizer.tokenize("", add_special_tokens=False).tokens == ()


def test_tokens_are_cut_only_on_request() -> None:
    tokenizer = TextTokenizer(word_tokenizer().to_str(), max_length=5)
    whole, cut = tokenizer.tokenize("a the cat dog sat"), tokenizer.tokenize("a the cat dog sat", truncate=True)
    assert (len(whole.ids), whole.truncated) == (7, False)
    assert (cut.tokens, cut.truncated) == (("[CLS]", "a", "the", "cat", "[SEP]"), True)


def test_the_files_own_padding_and_truncation_are_turned_off() -> None:
    tokenizer = TextTokenizer(word_tokenizer(padding=True).to_str())
    short, long = tokenizer.encode(["cat", "cat " * 500])
    assert (len(short.ids), len(long.ids), long.truncated) == (3, 502, False)


def test_threads_with_other_wishes_do_not_disturb_each_other() -> None:
    tokenizer = TextTokenizer(word_tokenizer().to_str(), max_length=6)
    text = "a the cat dog sat on mat"

    def ids(side: str) -> list[int]:
        return tokenizer.encode([text], side=side)[0].ids.tolist()

    right, left = ids("right"), ids("left")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ids, ["right", "left"] * 200))
    assert answers == [right, left] * 200


@pytest.mark.parametrize("definition", ["", "{}", "[]", '{"model": {"type": "Nothing"}}', '{"version": "1.0"}'])
def test_a_damaged_definition_is_refused(definition: str) -> None:
    with refused(Reason.MODEL_INVALID, "tokenizer.json"):
        TextTokenizer(definition)
