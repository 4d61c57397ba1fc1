"""PrefixCache: keys and values of token sequences computed before, found by how a new prompt begins.

Every whole block of a kept sequence is a key: the hash of the key before it and the block's tokens, so that looking up
the longest match takes one step a block, and a kept sequence serves every prompt that begins as it does (a shared
system prompt, an earlier turn of a conversation). Tokens are compared before anything is used. Least recently used
leaves first; what a longer sequence contains is not kept twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import numpy as np

from headrace_server.engines.decode import SavedPrefix, Tokens

__all__ = ["BLOCK", "PrefixCache"]

BLOCK = 32  # tokens


class _Kept:
    """A saved sequence, and the keys of its beginnings."""

    __slots__ = ("keys", "saved", "tokens")

    def __init__(self, tokens: Tokens, keys: list[int], saved: SavedPrefix) -> None:
        self.tokens = tokens
        self.keys = keys
        self.saved = saved


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

    def find(self, prompt: Tokens) -> tuple[SavedPrefix, int] | None:
        """What holds the prompt's longest beginning, and its length: whole blocks, all but two tokens at most."""
        kept, length = self._longest(prompt, len(prompt) - 2)
        if kept is None:
            return None
        self._by_use.move_to_end(id(kept))
        return kept.saved, length

    def keep(self, tokens: Tokens, save: Callable[[int], SavedPrefix]) -> None:
        """Keeps what `save(length)` copies: the whole blocks of `tokens`, as far as there is room at all."""
        length = min(len(tokens), self._max_tokens) // BLOCK * BLOCK
        if not length:
            return
        tokens = tokens[:length]
        found, found_length = self._longest(tokens, length)
        if found is not None and found_length == length:
            self._by_use.move_to_end(id(found))
            return
        keys = list(_keys(tokens))
        for key, end in zip(keys, range(BLOCK, length, BLOCK), strict=False):
            for kept in [kept for kept in self._by_key.get(key, ()) if len(kept.tokens) == end]:
                if np.array_equal(kept.tokens, tokens[:end]):
                    self._drop(kept)
        while self._num_tokens + length > self._max_tokens:
            self._drop(next(iter(self._by_use.values())))
        kept = _Kept(tokens.copy(), keys, save(length))
        for key in keys:
            self._by_key.setdefault(key, []).append(kept)
        self._by_use[id(kept)] = kept
        self._num_tokens += length

    def clear(self) -> None:
        """Forgets everything."""
        self._by_key.clear()
        self._by_use.clear()
        self._num_tokens = 0

    def _longest(self, tokens: Tokens, limit: int) -> tuple[_Kept | None, int]:
        """Who holds most whole blocks of `tokens` within `limit`, and how many tokens that is."""
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

    def _drop(self, kept: _Kept) -> None:
        del self._by_use[id(kept)]
        self._num_tokens -= len(kept.tokens)
        for key in kept.keys:
            holders = self._by_key[key]
            holders.remove(kept)
            if not holders:
                del self._by_key[key]


def _keys(tokens: Tokens) -> Iterator[int]:
    """One key a whole block: of its tokens and all before it."""
    key = 0
    for start in range(0, len(tokens) - BLOCK + 1, BLOCK):
        key = hash((key, tokens[start : start + BLOCK].tobytes()))
        yield key
