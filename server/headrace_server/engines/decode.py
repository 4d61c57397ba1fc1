"""The contract of engines that generate token by token: KV memory in slots, and the graph that advances them.

A DecodeState owns the memory of past keys and values, wherever its device keeps it, and knows no request: its caller
says which slot holds what. One thread uses it. Slots are places for one sequence each; `decode` advances slots
0 … n−1 by one token in one run, so that its caller keeps the running ones in front with `move`.

    prefill(slot, tokens) ─▶ logits ─▶ a token ─▶ decode([token, …]) ─▶ logits ─▶ …
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from headrace_server.engines.base import EngineInfo

__all__ = ["DecodeInfo", "DecodeState", "Logits", "SavedPrefix", "Tokens"]

Logits = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int64]
SavedPrefix = Any  # an engine's own handle of saved keys and values


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeInfo:
    """What a DecodeState offers.

    shared_buffer      past and present share memory; False: the slower path that copies the past in every run
    chunked            `prefill` may be given a prompt in parts; False: whole (encoder–decoder models)
    batched            `decode` advances several slots in one run; False: one run a slot
    encoder_decoder    the prompt is a source text for an encoder; the new text starts from the decoder's start token
    """

    num_slots: int
    max_length: int  # tokens of one slot, prompt and new ones together
    vocabulary_size: int
    bytes_per_token: int  # of KV memory
    shared_buffer: bool
    chunked: bool
    batched: bool
    encoder_decoder: bool = False


@runtime_checkable
class DecodeState(Protocol):
    """Slots of a loaded decoder. Used by one thread at a time; `close` by any, once that thread is done."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def decode_info(self) -> DecodeInfo: ...

    def length(self, slot: int) -> int:
        """Tokens whose keys and values the slot holds."""
        ...

    def prefill(self, slot: int, tokens: Tokens, *, all_rows: bool = False) -> Logits:
        """Appends tokens i64[t] to a slot; logits f32[v] of the last one, or f32[t, v] of all.

        The array is the engine's own and holds until the next call. Raises ServingError INTERNAL when the runtime
        fails; the slot is then to be cleared. A caller never passes `max_length`.
        """
        ...

    def decode(self, tokens: Tokens) -> Logits:
        """Appends tokens[i] of i64[n] to slot i, for slots 0 … n−1 in one step; logits f32[n, v], as `prefill`.

        Where it raises, no slot has advanced: its caller tries again with fewer.
        """
        ...

    def clear(self, slot: int) -> None:
        """Empties a slot."""
        ...

    def move(self, source: int, target: int) -> None:
        """The target holds what the source held; the source is empty."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """The target holds the first `length` tokens of the source, which keeps its own (beams, choices)."""
        ...

    def save(self, slot: int, length: int, *, start: int = 0) -> SavedPrefix:
        """A copy of the slot's tokens from `start` to before `length`, kept by the caller as long as it wants."""
        ...

    def restore(self, saved: SavedPrefix, slot: int, length: int, *, start: int = 0) -> None:
        """The slot, which holds `start` tokens, holds `length`: the rest is what was saved from `start` on."""
        ...

    def close(self) -> None:
        """Frees session and memory."""
        ...

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        """Makes what the first runs of each batch size would have to make; the slots are empty afterwards."""
        ...
