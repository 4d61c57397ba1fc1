"""PrefixCache: keys and values of token sequences computed before, found by how a new prompt begins.

    a system prompt ──┬── one question, its answer
                      ├── another question …
                      └── … and its answer ── the next turn

A sequence is kept as far as it is new: a piece that follows a piece kept before, at any block of it. A piece is found
by the hash of each of its whole blocks with all before it, so that looking up the longest match takes one step a
block; tokens are compared before anything is used. The least recently used leaves first, none before what follows it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from headrace_server.engines.decode import SavedPrefix, Tokens

__all__ = ["BLOCK", "PrefixCache", "SavedPiece"]

BLOCK = 32  # tokens


@dataclass(frozen=True, slots=True)
class SavedPiece:
    """Tokens from `start` to before `end` of a sequence; `saved` may hold more behind them."""

    saved: SavedPrefix
    start: int
    end: int


class _Kept:
    """A piece from token `start` on, what it follows, and the keys of its blocks."""

    __slots__ = ("follows", "keys", "saved", "start", "tokens")

    def __init__(self, tokens: Tokens, start: int, follows: _Kept | None, keys: list[int], saved: SavedPrefix) -> None:
        self.tokens = tokens  # those before `start` too
        self.start = start
        self.follows = follows
        self.keys = keys
        self.saved = saved

    def __len__(self) -> int:
        return len(self.tokens) - self.start


class PrefixCache:
    """Saved prefixes within `capacity_bytes`. Not thread-safe: the decoder's thread uses it."""

    def __init__(self, *, capacity_bytes: int, bytes_per_token: int) -> None:
        self._bytes_per_token = max(1, bytes_per_token)
        self._max_tokens = capacity_bytes // self._bytes_per_token
        self._num_tokens = 0
        self._by_key: dict[int, list[_Kept]] = {}
        self._by_use: OrderedDict[int, _Kept] = OrderedDict()  # by id(), least recently used first

    def __len__(self) -> int:
        return len(self._by_use)

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept."""
        return self._num_tokens * self._bytes_per_token

    def find(self, prompt: Tokens) -> list[SavedPiece]:
        """The pieces of the prompt's longest beginning, in order: whole blocks, all but two tokens at most."""
        last, end = self._longest(prompt, len(prompt) - 2)
        self._note_use(last)
        pieces: list[SavedPiece] = []
        for kept in _chain(last):
            pieces.append(SavedPiece(kept.saved, kept.start, end))
            end = kept.start
        return pieces[::-1]

    def keep(self, tokens: Tokens, save: Callable[[int, int], SavedPrefix]) -> None:
        """Keeps what `save(start, end)` copies: the whole blocks of `tokens` that are new, as far as there is room."""
        length = min(len(tokens), self._max_tokens) // BLOCK * BLOCK
        if not length:
            return
        tokens = tokens[:length]
        follows, start = self._longest(tokens, length)
        self._note_use(follows)
        if start == length:
            return
        while self._num_tokens + length - start > self._max_tokens:
            oldest = next(iter(self._by_use.values()))
            if any(kept is oldest for kept in _chain(follows)):  # nobody else is left, and these are too long
                self.clear()
                follows, start = None, 0
            else:
                self._drop(oldest)
        keys = list(_keys(tokens))[start // BLOCK :]
        kept = _Kept(tokens.copy(), start, follows, keys, save(start, length))
        for key in keys:
            self._by_key.setdefault(key, []).append(kept)
        self._by_use[id(kept)] = kept
        self._num_tokens += len(kept)
        self._note_use(follows)

    def clear(self) -> None:
        """Forgets everything."""
        self._by_key.clear()
        self._by_use.clear()
        self._num_tokens = 0

    def _longest(self, tokens: Tokens, limit: int) -> tuple[_Kept | None, int]:
        """Who holds the last of most whole blocks of `tokens` within `limit`, and how many tokens they are."""
        found: list[_Kept] = []
        length = 0
        for key in _keys(tokens[: max(0, limit)]):
            holders = self._by_key.get(key)
            if not holders:
                break
            found = holders
            length += BLOCK
        for kept in reversed(found):
            if np.array_equal(kept.tokens[:length], tokens[:length]):
                return kept, length
        return None, 0

    def _note_use(self, last: _Kept | None) -> None:
        """Used now, what it follows after it: so the least recently used is followed by nothing."""
        for kept in _chain(last):
            self._by_use.move_to_end(id(kept))

    def _drop(self, kept: _Kept) -> None:
        del self._by_use[id(kept)]
        self._num_tokens -= len(kept)
        for key in kept.keys:
            holders = self._by_key[key]
            holders.remove(kept)
            if not holders:
                del self._by_key[key]


def _chain(last: _Kept | None) -> Iterator[_Kept]:
    """It, what it follows, and so on to the beginning."""
    while last is not None:
        yield last
        last = last.follows


def _keys(tokens: Tokens) -> Iterator[int]:
    """One key a whole block: of its tokens and all before it."""
    key = 0
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        key = hash((key, tokens[start : start + BLOCK].tobytes()))
        yield key
