"""A large tokenizer.json read in parts is the library's own reading of it, and lets other threads run meanwhile."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from merged_tokenizer import added_token, merged_tokenizer
from tokenizers import Tokenizer

from headrace_server.models import tokenizer_parts
from headrace_server.models.tokenizer_parts import read_tokenizer

_TEXT = "A <pad> of tea,\tnaïve <ADDED> 7 — and <mask>s; aaab bbab."


@pytest.fixture
def in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every definition counts as large, and the library is not asked to read a whole one."""
    monkeypatch.setattr(tokenizer_parts, "_WORTH_BYTES", 0)


def _word_piece() -> dict[str, Any]:
    words = ["[UNK]", "a", "of", "tea", ",", "and", ";", ".", "##ab", "aa", "##b", "bb", "<pad>"]
    return {
        **merged_tokenizer(1),
        "added_tokens": [added_token("<pad>", 12)],
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 7,
            "vocab": {word: index for index, word in enumerate(words)},
        },
    }


def _unigram() -> dict[str, Any]:
    pieces = [["<unk>", 0.0], ["a", -1.0], ["ab", -1.5], ["b", -2.0]]
    return {**merged_tokenizer(1), "added_tokens": [], "model": {"type": "Unigram", "unk_id": 0, "vocab": pieces}}


_DEFINITIONS = {
    "pairs of merges": merged_tokenizer(),
    "merges as text": merged_tokenizer(as_text=True),
    "an unknown token, fused": merged_tokenizer(unk_token="<pad>", fuse_unk=True),
    "a suffix of words": merged_tokenizer(end_of_word_suffix="b"),
    "word pieces": _word_piece(),
    "unigram": _unigram(),
    "no added tokens": {**merged_tokenizer(), "added_tokens": []},
    "numbers of added tokens that the library gives otherwise": {
        **merged_tokenizer(),
        "added_tokens": [added_token("<new>", 9000)],
    },
    "an option that is not known": merged_tokenizer(cache_capacity_of_tomorrow=7),
}


@pytest.mark.parametrize("name", _DEFINITIONS)
@pytest.mark.usefixtures("in_parts")
def test_a_definition_read_in_parts_is_what_the_library_reads(name: str) -> None:
    definition = json.dumps(_DEFINITIONS[name])
    expected, given = Tokenizer.from_str(definition), read_tokenizer(definition)
    assert given.to_str() == expected.to_str()
    assert given.encode(_TEXT).ids == expected.encode(_TEXT).ids
    assert given.encode(_TEXT).tokens == expected.encode(_TEXT).tokens
    assert given.decode(given.encode(_TEXT).ids) == expected.decode(expected.encode(_TEXT).ids)


@pytest.mark.usefixtures("in_parts")
def test_parts_are_what_is_read_where_the_kind_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    whole = Tokenizer.from_str

    class Counting:
        @staticmethod
        def from_str(definition: str) -> Tokenizer:
            nonlocal longest
            longest = max(longest, len(definition))
            return whole(definition)

    monkeypatch.setattr(tokenizer_parts, "Tokenizer", Counting)
    for definition in (merged_tokenizer(), merged_tokenizer(as_text=True)):
        read_tokenizer(json.dumps(definition))
    assert 0 < longest < 1000  # a shell without its vocabulary


@pytest.mark.parametrize(
    "broken",
    [
        merged_tokenizer(merges=[["a", "b", "c"]]),
        merged_tokenizer(merges=["a b c"]),
        merged_tokenizer(merges=[["zz", "q"]]),
        merged_tokenizer(vocab={"a": "one"}),
        {"model": {"type": "BPE"}},
        {},
        [],
    ],
)
@pytest.mark.usefixtures("in_parts")
def test_a_broken_definition_gets_the_librarys_own_error(broken: Any) -> None:
    definition = json.dumps(broken)
    with pytest.raises(Exception) as expected:
        Tokenizer.from_str(definition)
    with pytest.raises(Exception) as given:
        read_tokenizer(definition)
    assert str(given.value) == str(expected.value)


def test_other_threads_run_while_a_large_tokenizer_is_read() -> None:
    definition = json.dumps(merged_tokenizer(60_000))
    whole = min(_longest_hold(lambda: Tokenizer.from_str(definition)) for _ in range(3))
    parts = min(_longest_hold(lambda: read_tokenizer(definition)) for _ in range(3))
    assert parts < 0.75 * whole, f"in parts {parts * 1e3:.0f} ms, whole {whole * 1e3:.0f} ms"


def _longest_hold(read: Callable[[], object]) -> float:
    """Seconds for which a thread that does nothing else did not run."""
    longest, stopping, running = 0.0, False, threading.Event()

    def watch() -> None:
        nonlocal longest
        running.set()
        while not stopping:
            began = time.perf_counter()
            time.sleep(0.001)
            longest = max(longest, time.perf_counter() - began)

    watcher = threading.Thread(target=watch)
    watcher.start()
    running.wait()
    longest = 0.0
    read()
    stopping = True
    watcher.join()
    return longest
