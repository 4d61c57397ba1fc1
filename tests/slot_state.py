"""A small deterministic DecodeState: the next token's logits are a function of all that a slot holds.

Any mix-up of slots, any lost or doubled token, any wrong move, copy or restore changes what comes out. Slots keep their
memory when they are cleared, as real ones do: only the length says what counts. The state also checks what its contract
asks of a caller and notes what was broken.
"""

from __future__ import annotations

import threading
import zlib
from collections.abc import Sequence

import numpy as np

from headrace_server.engines.base import EngineInfo
from headrace_server.engines.decode import DecodeInfo, Logits, SavedPrefix, Tokens

POISON = 13  # a run over a slot that holds it fails
NOT_A_NUMBER = 14  # logits after it are NaN
START = 1  # of an encoder–decoder's new text
VOCABULARY = 101


class SlotState:
    """Slots that hold tokens instead of keys and values; `source` in front of them for encoder–decoder models."""

    def __init__(
        self,
        *,
        num_slots: int = 4,
        max_length: int = 256,
        bytes_per_token: int = 4096,
        chunked: bool = True,
        encoder_decoder: bool = False,
    ) -> None:
        self._info = DecodeInfo(
            num_slots=num_slots,
            max_length=max_length,
            vocabulary_size=VOCABULARY,
            bytes_per_token=bytes_per_token,
            shared_buffer=True,
            chunked=chunked and not encoder_decoder,
            batched=True,
            encoder_decoder=encoder_decoder,
        )
        self._tokens = np.zeros((num_slots, max_length), np.int64)
        self._sources: list[bytes] = [b""] * num_slots
        self.lengths = [0] * num_slots
        self.saved = 0  # prefixes ever saved
        self.prefilled: list[tuple[int, int]] = []  # (slot, tokens) of each run
        self.decoded: list[int] = []  # slots of each run
        self.log: list[str] = []  # "prefill", "decode" in order
        self.broken: list[str] = []  # what the caller did against the contract
        self.fault: Exception | None = None  # raised by every run
        self.closed = False
        self._thread: threading.Thread | None = None
        self._buffer = np.zeros((num_slots, VOCABULARY), np.float32)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo(
            engine="slots", runtime_version="0", device="cpu", provider="", precision="fp32",
            num_threads=1, num_workers=1, load_time_ms=0,
        )  # fmt: skip

    @property
    def decode_info(self) -> DecodeInfo:
        return self._info

    @property
    def num_used(self) -> int:
        return sum(length > 0 for length in self.lengths)

    def length(self, slot: int) -> int:
        return self.lengths[slot]

    def prefill(self, slot: int, tokens: Tokens, *, all_rows: bool = False) -> Logits:
        self._enter("prefill")
        self.prefilled.append((slot, len(tokens)))
        if not len(tokens):
            self.broken.append("an empty prefill")
        if self._info.encoder_decoder:
            if self.lengths[slot]:
                self.broken.append("a source into a slot that is not empty")
            self._check_poison(tokens)
            self._sources[slot] = tokens.tobytes()
            tokens = np.array([START])
        length = self.lengths[slot] + len(tokens)
        if length > self._info.max_length:
            self.broken.append(f"a prompt of {length}")
        self._check_poison(self._tokens[slot, : self.lengths[slot]], tokens)
        self._tokens[slot, self.lengths[slot] : length] = tokens
        self.lengths[slot] = length
        return self._logits(slot, 0)

    def decode(self, tokens: Tokens) -> Logits:
        self._enter("decode")
        self.decoded.append(len(tokens))
        num = len(tokens)
        if not 1 <= num <= self._info.num_slots:
            self.broken.append(f"a step of {num}")
        for slot in range(num):
            if not self.lengths[slot]:
                self.broken.append(f"a step over the empty slot {slot} of {num}")
            if self.lengths[slot] >= self._info.max_length:
                self.broken.append(f"a step over the full slot {slot}")
            if not 0 <= tokens[slot] < VOCABULARY:
                self.broken.append(f"token {tokens[slot]}")
        for slot in range(num):
            self._check_poison(self._tokens[slot, : self.lengths[slot]], tokens[slot : slot + 1])
        for slot in range(num):
            self._tokens[slot, self.lengths[slot]] = tokens[slot]
            self.lengths[slot] += 1
            self._logits(slot, slot)
        return self._buffer[:num]

    def clear(self, slot: int) -> None:
        self._enter("")
        self.lengths[slot] = 0

    def move(self, source: int, target: int) -> None:
        if self.lengths[target]:
            self.broken.append(f"a move over the slot {target}, which is in use")
        self.copy(source, target, self.lengths[source])
        self.lengths[source] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        self._enter("copy")
        if not 0 < length <= self.lengths[source]:
            self.broken.append(f"a copy of {length} of {self.lengths[source]} tokens")
        if source == target:
            self.broken.append("a copy onto itself")
        self._tokens[target, :length] = self._tokens[source, :length]
        self._sources[target] = self._sources[source]
        self.lengths[target] = length

    def save(self, slot: int, length: int, *, start: int = 0) -> SavedPrefix:
        self._enter("save")
        if not 0 <= start < length <= self.lengths[slot]:
            self.broken.append(f"{start} to {length} of {self.lengths[slot]} tokens saved")
        self.saved += 1
        return self._tokens[slot, start:length].copy()

    def restore(self, saved: SavedPrefix, slot: int, length: int, *, start: int = 0) -> None:
        self._enter("restore")
        if self.lengths[slot] != start:
            self.broken.append(f"a restore at {start} into a slot of {self.lengths[slot]}")
        if not 0 < length - start <= len(saved):
            self.broken.append(f"{length - start} of {len(saved)} saved tokens restored")
        self._tokens[slot, start:length] = saved[: length - start]
        self.lengths[slot] = length

    def close(self) -> None:
        self.closed = True

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        return None

    def _enter(self, name: str) -> None:
        """Notes a call; spoils the array that was handed out, which holds until the next call only."""
        thread = threading.current_thread()
        self._thread = self._thread or thread
        if thread is not self._thread:
            self.broken.append(f"two threads: {thread.name} and {self._thread.name}")
        if self.closed:
            self.broken.append("a call after close")
        if name:
            self.log.append(name)
        self._buffer[:] = np.nan
        if self.fault is not None and name in ("prefill", "decode"):
            raise self.fault

    def _check_poison(self, *parts: Tokens) -> None:
        for part in parts:
            if POISON in part:
                raise RuntimeError("poison")

    def _logits(self, slot: int, row: int) -> Logits:
        held = self._tokens[slot, : self.lengths[slot]]
        self._buffer[row] = np.nan if NOT_A_NUMBER in held else logits_after(held, self._sources[slot])
        return self._buffer[row]


def logits_after(tokens: Tokens, source: bytes = b"") -> Logits:
    """Logits f32[v] of the token after `tokens`; POISON and NOT_A_NUMBER are never the likeliest."""
    random = np.random.default_rng(zlib.crc32(np.ascontiguousarray(tokens, np.int64).tobytes(), zlib.crc32(source)))
    logits = (2 * random.standard_normal(VOCABULARY)).astype(np.float32)
    logits[[POISON, NOT_A_NUMBER]] = -30
    return logits
