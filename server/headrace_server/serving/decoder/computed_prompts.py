"""ComputedPrompts: what of a new prompt somebody has computed already, and where to copy it from.

the last prompt that was read   the same prompt takes keys, values and logits whole: choices of one prompt
a running row                   begins with the same tokens: a shared system prompt, while others still run
the prefix cache                what rows held when they left: a system prompt, an earlier turn of a conversation
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np

from headrace_server.engines.decode import DecodeState, Logits, Tokens
from headrace_server.serving.decoder.live_sequence import LiveSequence
from headrace_server.serving.decoder.prefix_cache import BLOCK, PrefixCache
from headrace_server.serving.decoder.slots import Row, Slots

__all__ = ["ComputedPrompts"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Read:
    """The last prompt that was read: whose row holds it, how long it is there, and the logits after it."""

    row: Row[LiveSequence]
    length: int
    logits: Logits


class ComputedPrompts:
    """Not thread-safe: the decoder's thread uses it.

    A source text of an encoder–decoder model is known as a whole or not at all.
    """

    def __init__(self, state: DecodeState, slots: Slots[LiveSequence], *, cache_bytes: int) -> None:
        info = state.decode_info
        self._state = state
        self._slots = slots
        self._has_beginnings = info.chunked and not info.encoder_decoder
        self._cache = PrefixCache(
            capacity_bytes=cache_bytes if self._has_beginnings else 0, bytes_per_token=info.bytes_per_token
        )
        self._read: _Read | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of what is kept beside the slots."""
        return self._cache.num_bytes

    def note_read(self, row: Row[LiveSequence], logits: Logits) -> None:
        """The row's prompt is read whole, with these logits after it; they stay as they are."""
        self._read = _Read(row, self._state.length(row.slot), logits)

    def fork(self, sequence: LiveSequence) -> tuple[Row[LiveSequence], Logits] | None:
        """A running row that holds the sequence's whole prompt, and the logits after it; None: it is not known."""
        read = self._read
        if read is None or not np.array_equal(sequence.request.prompt, read.row.owner.request.prompt):
            return None
        return self._slots.fork(read.row, sequence, read.length), read.logits

    def fill(self, row: Row[LiveSequence]) -> int:
        """Tokens of its prompt that the empty row holds now; not the last, whose logits are needed, nor the one before.

        A run of a single token is computed by other means than one of several.
        """
        if not self._has_beginnings:
            return 0
        prompt = row.owner.request.prompt
        donor, shared = None, 0
        for running in self._slots.running:
            length = _num_shared(prompt[:-2], running.owner.request.prompt)
            if length > shared:
                donor, shared = running, length
        pieces = self._cache.find(prompt)
        if pieces and pieces[-1].end >= shared:
            for piece in pieces:
                self._state.restore(piece.saved, row.slot, piece.end, start=piece.start)
            return pieces[-1].end
        if donor is None or shared < BLOCK:  # copying fewer costs more than it saves
            return 0
        self._slots.overwrite(donor, row, shared)
        return shared

    def keep(self, sequence: LiveSequence) -> None:
        """Keeps what the sequence's row holds, which is about to leave."""
        if not self._has_beginnings or len(sequence.rows) != 1:
            return
        slot = sequence.rows[0].slot
        try:
            tokens = sequence.held_tokens(self._state.length(slot))
            self._cache.keep(tokens, lambda start, end: self._state.save(slot, end, start=start))
        except Exception:
            logger.exception("a prefix could not be kept")

    def forget(self, row: Row[LiveSequence]) -> None:
        """The row leaves: its slot is no source any more."""
        if self._read is not None and self._read.row is row:
            self._read = None

    def clear(self) -> None:
        """Forgets everything."""
        self._cache.clear()
        self._read = None


def _num_shared(left: Tokens, right: Tokens) -> int:
    """How many tokens both begin with."""
    length = min(len(left), len(right))
    differ = left[:length] != right[:length]
    return int(differ.argmax()) if differ.any() else length
