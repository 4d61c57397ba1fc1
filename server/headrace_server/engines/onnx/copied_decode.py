"""CopiedDecode: decoder graphs that take their past in and give past and new out: exports of optimum, encoder–decoders.

    slot ── states by graph input ──▶ run of one token, or of a prompt's part ──▶ states by graph output ── slot

Values stay where the runtime made them and are never changed, so that copying a slot shares them. Each slot is a run of
its own: rows of different lengths cannot be stacked without copying every past in every step.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.engines.base import EngineInfo
from headrace_server.engines.decode import DecodeInfo, Logits, SavedPrefix, Tokens
from headrace_server.engines.onnx.session import CPU, FATAL_ONLY, decoder_info, load_runtime, open_session, run_fault
from headrace_server.errors import Reason, ServingError
from headrace_server.models.generation import GenerationSpec

__all__ = ["CopiedDecode"]

_NUMPY = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_, "tensor(float)": np.float32,
          "tensor(float16)": np.float16}  # fmt: skip

_FILLED = ("attention_mask", "position_ids", "use_cache_branch", "num_logits_to_keep")


class _Slot:
    """One sequence: its states, what its encoder said, and how many tokens they stand for."""

    __slots__ = ("length", "memory", "states")

    def __init__(self) -> None:
        self.states: dict[str, Any] = {}  # OrtValue by decoder input
        self.memory: dict[str, Any] = {}
        self.length = 0


class CopiedDecode:
    """Slots over one session, or over an encoder's and a decoder's. One thread uses it.

    raises  ServingError MODEL_INVALID for graphs that do not load or lack what the folder names
    """

    def __init__(self, spec: GenerationSpec, *, num_slots: int, num_threads: int, precision: str = "") -> None:
        started = time.perf_counter()
        self._runtime = runtime = load_runtime()
        self._names = spec.names
        self._start_id = spec.decoder_start_id
        options = {"device": "cpu", "provider": CPU, "num_threads": num_threads, "spin": True}
        self._decoder: Any = open_session(spec.decoder, **options)  # type: ignore[arg-type]
        self._encoder: Any = None
        if spec.encoder is not None:
            self._encoder = open_session(spec.encoder, **options)  # type: ignore[arg-type]
        self._options = runtime.RunOptions()
        self._options.log_severity_level = FATAL_ONLY
        self._inputs = {node.name: node for node in self._decoder.get_inputs()}
        self._encoder_inputs = {node.name: node for node in self._encoder.get_inputs()} if self._encoder else {}
        # The branch with a past was traced with one new token, which may have left out the mask among several.
        self._has_branches = "use_cache_branch" in self._inputs
        num_growing = len(self._names.states) - len(self._names.fixed_after_first)
        self._check(spec)
        self._slots = [_Slot() for _ in range(num_slots)]
        heads, width = spec.num_kv_heads, spec.head_dim
        item = 2 if any(node.type == "tensor(float16)" for node in self._inputs.values()) else 4
        self._decode_info = DecodeInfo(
            num_slots=num_slots,
            max_length=spec.max_length,
            vocabulary_size=spec.vocabulary_size,
            bytes_per_token=max(1, num_growing * heads * width * item),
            shared_buffer=False,
            chunked=self._encoder is None and not self._has_branches,
            batched=False,
            encoder_decoder=self._encoder is not None,
        )
        self._info = decoder_info(precision, num_threads=num_threads, started=started)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def decode_info(self) -> DecodeInfo:
        return self._decode_info

    def length(self, slot: int) -> int:
        return self._slots[slot].length

    def prefill(self, slot: int, tokens: Tokens, *, all_rows: bool = False) -> Logits:
        held = self._slots[slot]
        if self._encoder is not None:
            self._encode(held, tokens)
            tokens = np.array([self._start_id], np.int64)
        logits = self._advance(held, tokens, all_rows=all_rows)
        return logits if all_rows else logits[-1]

    def decode(self, tokens: Tokens) -> Logits:
        before = [self._beginning(slot, slot.length) for slot in self._slots[: len(tokens)]]
        try:
            rows = [self._advance(self._slots[slot], tokens[slot : slot + 1])[-1] for slot in range(len(tokens))]
        except ServingError:
            self._slots[: len(tokens)] = before
            raise
        return np.stack(rows)

    def clear(self, slot: int) -> None:
        self._slots[slot] = _Slot()

    def move(self, source: int, target: int) -> None:
        self._slots[target] = self._slots[source]
        self._slots[source] = _Slot()

    def copy(self, source: int, target: int, length: int) -> None:
        self._slots[target] = self._beginning(self._slots[source], length)

    def save(self, slot: int, length: int, *, start: int = 0) -> SavedPrefix:
        held = self._slots[slot]
        return self._part(held, start, length) if start else self._beginning(held, length)

    def restore(self, saved: SavedPrefix, slot: int, length: int, *, start: int = 0) -> None:
        if not start:
            self._slots[slot] = self._beginning(saved, length)
            return
        held = self._slots[slot]
        for name, value in self._part(saved, 0, length - start).states.items():
            if name not in self._names.fixed_after_first:
                held.states[name] = self._joined(held.states[name], value)
        held.length = length

    def close(self) -> None:
        self._decoder = self._encoder = None
        self._slots.clear()

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        self.prefill(0, np.zeros(4, np.int64))
        self.decode(np.zeros(1, np.int64))
        self.clear(0)

    def _encode(self, held: _Slot, tokens: Tokens) -> None:
        names = self._names
        feeds = {names.source: self._value(self._encoder_inputs, names.source, tokens[None])}
        if names.source_mask in self._encoder_inputs:
            feeds[names.source_mask] = self._value(
                self._encoder_inputs, names.source_mask, np.full((1, len(tokens)), names.mask_of_tokens)
            )
        wanted = sorted({*names.memory.values(), *names.first.values()})
        outputs = dict(zip(wanted, self._run(self._encoder, wanted, feeds), strict=True)) if wanted else {}
        held.memory = {name: outputs[output] for name, output in names.memory.items()}
        if names.memory_mask in self._inputs:
            held.memory[names.memory_mask] = self._value(
                self._inputs, names.memory_mask, np.full((1, len(tokens)), names.mask_of_tokens)
            )
        held.states = {name: outputs[output] for name, output in names.first.items()}
        held.length = 0

    def _advance(self, held: _Slot, tokens: Tokens, *, all_rows: bool = False) -> Logits:
        """f32[t, v] after `tokens`, or of the last alone; the slot's states are those that the run gave."""
        names, count = self._names, len(tokens)
        first = held.length == 0
        feeds = dict(held.memory)
        feeds[names.tokens] = self._value(self._inputs, names.tokens, tokens[None])
        for name in names.states:
            feeds[name] = held.states[name] if name in held.states else self._empty(name)
        total = held.length + count
        given: Mapping[str, Any] = {
            "attention_mask": np.ones((1, total)),
            "position_ids": np.arange(held.length, total)[None],
            "use_cache_branch": np.array([not first]),
            "num_logits_to_keep": np.array(0 if all_rows else 1),  # 0: all
        }
        for name, value in given.items():
            if name in self._inputs and name not in feeds:
                feeds[name] = self._value(self._inputs, name, value)
        wanted = [names.logits, *names.states.values()]
        logits, *states = self._run(self._decoder, wanted, feeds)
        for name, value in zip(names.states, states, strict=True):
            if first or name not in names.fixed_after_first:
                held.states[name] = value
        held.length = total
        rows = logits.numpy().astype(np.float32, copy=False)
        flat: Logits = rows.reshape(-1, rows.shape[-1])
        return flat

    def _beginning(self, held: _Slot, length: int) -> _Slot:
        """The slot as it was after `length` tokens; values are shared where that is all of them."""
        part = _Slot()
        part.memory = held.memory
        part.length = length
        part.states = dict(held.states)
        if length != held.length:
            for name, value in held.states.items():
                if name in self._names.fixed_after_first:
                    continue
                array = np.ascontiguousarray(value.numpy()[:, :, :length])
                part.states[name] = self._runtime.OrtValue.ortvalue_from_numpy(array)
        return part

    def _part(self, held: _Slot, start: int, end: int) -> _Slot:
        """The states that grow, from `start` to before `end`."""
        part = _Slot()
        part.length = end - start
        for name, value in held.states.items():
            if name not in self._names.fixed_after_first:
                array = np.ascontiguousarray(value.numpy()[:, :, start:end])
                part.states[name] = self._runtime.OrtValue.ortvalue_from_numpy(array)
        return part

    def _joined(self, first: Any, second: Any) -> Any:
        array = np.concatenate([first.numpy(), second.numpy()], axis=2)
        return self._runtime.OrtValue.ortvalue_from_numpy(array)

    def _empty(self, name: str) -> Any:
        """Nothing yet: a past of no tokens; of one where the graph chooses its branch, which does not read it then."""
        node = self._inputs[name]
        length = 1 if self._has_branches else 0
        shape = [
            size if isinstance(size, int) else (1 if axis == 0 else length) for axis, size in enumerate(node.shape)
        ]
        return self._runtime.OrtValue.ortvalue_from_numpy(np.zeros(shape, _NUMPY[node.type]))

    def _value(self, inputs: Mapping[str, Any], name: str, array: Any) -> Any:
        typed: npt.NDArray[Any] = np.array(array, _NUMPY.get(inputs[name].type, np.int64), order="C")
        return self._runtime.OrtValue.ortvalue_from_numpy(typed)

    def _run(self, session: Any, outputs: Sequence[str], feeds: Mapping[str, Any]) -> list[Any]:
        try:
            values: list[Any] = session.run_with_ort_values(outputs, feeds, self._options)
        except Exception as error:
            raise run_fault(error) from error
        return values

    def _check(self, spec: GenerationSpec) -> None:
        names = self._names
        outputs = {node.name for node in self._decoder.get_outputs()}
        lacking = [name for name in (names.tokens, *names.states, *names.memory) if name not in self._inputs]
        lacking += [name for name in (names.logits, *names.states.values()) if name not in outputs]
        if self._encoder is not None:
            lacking += [name for name in (names.source,) if name not in self._encoder_inputs]
            made = {node.name for node in self._encoder.get_outputs()}
            lacking += [name for name in (*names.memory.values(), *names.first.values()) if name not in made]
            if self._start_id is None:
                raise ServingError(Reason.MODEL_INVALID, "config.json: decoder_start_token_id: missing")
        if lacking:
            raise _unfit(spec, f"it lacks {lacking[0]!r}")
        filled = {names.tokens, *names.states, *names.memory, *_FILLED, names.memory_mask}
        unknown = [name for name in self._inputs if name not in filled]
        if unknown:
            raise _unfit(spec, f"input {unknown[0]!r} is none that a decoder fills")
        types = {node.name: node.type for node in self._encoder.get_outputs()} if self._encoder is not None else {}
        for name, output in {**names.memory, **names.first}.items():
            if self._inputs[name].type != types[output]:
                wanted = f"{self._inputs[name].type} for {name!r}, the encoder gives {types[output]}"
                raise _unfit(spec, f"it wants {wanted}; serve graphs of one precision")


def _unfit(spec: GenerationSpec, problem: str) -> ServingError:
    return ServingError(Reason.MODEL_INVALID, f"{spec.decoder.name} cannot be served as a decoder: {problem}")
