"""A tokenizer.json read in parts, so that other threads run meanwhile.

The library reads a definition in one call that holds the interpreter: 0.2 s for a vocabulary of 49,000, in which no
other thread answers anything. Here its parts are decoded one by one, and the model is built from them:

    definition ─▶ shell without vocabulary ─▶ Tokenizer ◀─ model(vocabulary, merges) ─▶ added tokens

The longest single hold is a third of the library's own; after each, others run for as long as it took. The merges go
in through a Python iterator, between whose steps other threads run. What is not known to be read alike goes to the
library whole.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec
from tokenizers import AddedToken, Tokenizer, models

__all__ = ["read_tokenizer"]

_WORTH_BYTES = 262_144  # below it the library's own reading is over in some milliseconds

_LONGEST_REST_S = 0.25

T = TypeVar("T")
_Parts = dict[str, msgspec.Raw]

_OPTIONS = {
    "BPE": {
        "dropout",
        "unk_token",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "fuse_unk",
        "byte_fallback",
        "ignore_merges",
    },
    "WordPiece": {"unk_token", "continuing_subword_prefix", "max_input_chars_per_word"},
}


def read_tokenizer(definition: str) -> Tokenizer:
    """The tokenizer that `definition` describes, as `Tokenizer.from_str` gives it. Raises what the library raises."""
    if len(definition) >= _WORTH_BYTES:
        tokenizer = _in_parts(definition)
        if tokenizer is not None:
            return tokenizer
    return Tokenizer.from_str(definition)


def _in_parts(definition: str) -> Tokenizer | None:
    """None: to be read whole."""
    try:
        whole = _in_turn(lambda: msgspec.json.decode(definition, type=_Parts))
        parts = _in_turn(lambda: msgspec.json.decode(whole["model"], type=_Parts))
        kind = msgspec.json.decode(parts.pop("type"), type=str)
        added = msgspec.json.decode(whole.get("added_tokens", msgspec.Raw(b"[]")), type=list[dict[str, Any]])
        build = {"BPE": _bpe, "WordPiece": _word_piece}[kind]
        model = build(parts, {name: _value(parts.pop(name)) for name in _OPTIONS[kind] & parts.keys()})
        if model is None:
            return None
        shell = {**whole, "model": _EMPTY[kind], "added_tokens": msgspec.Raw(b"[]")}
        tokenizer: Tokenizer = Tokenizer.from_str(msgspec.json.encode(shell).decode())
        tokenizer.model = model
        if added:
            tokenizer.add_tokens([_added_token(token) for token in added])
            ids = {token["content"]: token["id"] for token in added}
            if any(tokenizer.token_to_id(content) != number for content, number in ids.items()):
                return None
    except Exception:
        return None  # the library says what is wrong, or reads what only it understands
    return tokenizer


_EMPTY = {
    "BPE": msgspec.Raw(b'{"type":"BPE","vocab":{},"merges":[]}'),
    "WordPiece": msgspec.Raw(
        b'{"type":"WordPiece","unk_token":"[UNK]","continuing_subword_prefix":"##","max_input_chars_per_word":100,'
        b'"vocab":{}}'
    ),
}


def _bpe(parts: _Parts, options: dict[str, Any]) -> models.Model | None:
    vocabulary, merges = _vocabulary(parts), parts.pop("merges")
    if parts:
        return None
    pairs = _Merges(_in_turn(lambda: msgspec.json.decode(merges, type=list[str | tuple[str, str]])))
    return _in_turn(lambda: models.BPE(vocabulary, pairs, **_given(options)))


def _word_piece(parts: _Parts, options: dict[str, Any]) -> models.Model | None:
    vocabulary = _vocabulary(parts)
    return None if parts else _in_turn(lambda: models.WordPiece(vocabulary, **_given(options)))


def _vocabulary(parts: _Parts) -> dict[str, int]:
    vocabulary = parts.pop("vocab")
    return _in_turn(lambda: msgspec.json.decode(vocabulary, type=dict[str, int]))


def _in_turn(step: Callable[[], T]) -> T:
    """The step's result; then others run for as long as it computed, so that their requests do not pile up over
    several steps."""
    began = time.thread_time()
    result = step()
    time.sleep(min(_LONGEST_REST_S, time.thread_time() - began))
    return result


def _value(raw: msgspec.Raw) -> Any:
    return msgspec.json.decode(raw)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _added_token(token: dict[str, Any]) -> AddedToken:
    flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    return AddedToken(token["content"], **flags)


class _Merges(Sequence[tuple[str, str]]):
    """Pairs, whose iteration runs in Python: the interpreter may change threads at every step."""

    def __init__(self, merges: Sequence[str | tuple[str, str]]) -> None:
        self._merges = merges

    def __len__(self) -> int:
        return len(self._merges)

    def __getitem__(self, index: Any) -> Any:
        return _pair(self._merges[index])

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return map(_pair, self._merges)


def _pair(merge: str | tuple[str, str]) -> tuple[str, str]:
    if not isinstance(merge, str):
        return merge
    left, right = merge.split(" ")  # as the library splits: one space, or it is an error
    return left, right
