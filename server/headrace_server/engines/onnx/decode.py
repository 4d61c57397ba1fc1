"""SharedBufferDecode: a decoder graph whose past and present keys and values are one preallocated memory.

    keys, values of each layer   [slots, kv_heads, max_length, head_dim], reserved at load, paged in as it is written
    decode of n slots            one run bound to the memory of slots 0 … n−1; the binding is kept for each n
    prefill of a slot            one run of batch 1 bound to that slot's memory

Attention reads and writes the memory in place (GroupQueryAttention), so that a step costs no copy. A graph is told how
long each row is in one of two ways: `seqlens_k` with `total_sequence_length`, or an `attention_mask` of ones.
"""

from __future__ import annotations

import math
import mmap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.engines.base import EngineInfo
from headrace_server.engines.decode import DecodeInfo, Logits, SavedPrefix, Tokens
from headrace_server.engines.onnx.session import CPU, FATAL_ONLY, decoder_info, load_runtime, open_session, run_fault
from headrace_server.errors import Reason, ServingError
from headrace_server.models.generation import GenerationSpec

__all__ = ["SharedBufferDecode"]

_Memory = npt.NDArray[Any]


@dataclass(slots=True)
class _Run:
    """One binding: the arrays that a run reads and writes, and the runtime's list of where they are."""

    binding: Any
    ids: Tokens  # i64[b, t]
    lengths: npt.NDArray[np.int32]  # i32[b], after the run, less one
    total: npt.NDArray[np.int32]  # i32[]
    rows: Tokens  # i64[r]
    logits: npt.NDArray[Any]  # [r, v]


class SharedBufferDecode:
    """Slots over one session. One thread uses it.

    num_slots   sequences that may be held at once
    precision   of the weights, as the folder says
    raises      ServingError MODEL_INVALID for a graph that does not load or does not keep this cache
    """

    def __init__(
        self, spec: GenerationSpec, *, num_slots: int, num_threads: int, precision: str = "", spin: bool = True
    ) -> None:
        started = time.perf_counter()
        self._runtime = runtime = load_runtime()
        self._session: Any = open_session(spec.decoder, device="cpu", provider=CPU, num_threads=num_threads, spin=spin)
        self._options = runtime.RunOptions()
        self._options.log_severity_level = FATAL_ONLY
        inputs = {node.name: node for node in self._session.get_inputs()}
        self._past = sorted(name for name in inputs if name.startswith("past"))
        self._present = [spec.names.states.get(name, "") for name in self._past]
        self._check(spec, inputs)
        self._by_lengths = "seqlens_k" in inputs
        self._has_rows = "logit_rows" in inputs
        self._has_positions = "position_ids" in inputs
        self._keeps_last = "num_logits_to_keep" in inputs
        self._dtype = np.dtype(np.float16 if inputs[self._past[0]].type == "tensor(float16)" else np.float32)
        logits = next(node for node in self._session.get_outputs() if node.name == "logits")
        self._logits_dtype = np.dtype(np.float16 if logits.type == "tensor(float16)" else np.float32)
        shape = (num_slots, spec.num_kv_heads, spec.max_length, spec.head_dim)
        self._memory: list[_Memory] = [_reserved(shape, self._dtype) for _ in self._past]
        self._lengths = np.zeros(num_slots, np.int32)
        self._decode_runs: dict[int, _Run] = {}
        self._decode_info = DecodeInfo(
            num_slots=num_slots,
            max_length=spec.max_length,
            vocabulary_size=spec.vocabulary_size,
            bytes_per_token=len(self._past) * spec.num_kv_heads * spec.head_dim * self._dtype.itemsize,
            shared_buffer=True,
            chunked=True,
            batched=True,
        )
        self._info = decoder_info(precision, num_threads=num_threads, started=started)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def decode_info(self) -> DecodeInfo:
        return self._decode_info

    def length(self, slot: int) -> int:
        return int(self._lengths[slot])

    def prefill(self, slot: int, tokens: Tokens, *, all_rows: bool = False) -> Logits:
        num = len(tokens)
        all_made = all_rows or not (self._has_rows or self._keeps_last)
        rows = np.arange(0 if all_made else num - 1, num, dtype=np.int64)
        run = self._bind(slot, 1, num, rows)
        run.ids[0] = tokens
        length = int(self._lengths[slot]) + num
        run.lengths[0] = length - 1
        run.total[...] = length
        self._run(run, 1, num)
        self._lengths[slot] = length
        logits = _as_float32(run.logits)
        return logits if all_rows else logits[-1]

    def decode(self, tokens: Tokens) -> Logits:
        num = len(tokens)
        run = self._decode_runs.get(num)
        if run is None:
            run = self._decode_runs[num] = self._bind(0, num, 1, np.arange(num, dtype=np.int64))
        run.ids[:, 0] = tokens
        run.lengths[:] = self._lengths[:num]
        run.total[...] = int(run.lengths.max()) + 1
        self._run(run, num, 1)
        self._lengths[:num] += 1
        return _as_float32(run.logits)

    def clear(self, slot: int) -> None:
        self._lengths[slot] = 0

    def move(self, source: int, target: int) -> None:
        self.copy(source, target, int(self._lengths[source]))
        self._lengths[source] = 0

    def copy(self, source: int, target: int, length: int) -> None:
        for memory in self._memory:
            memory[target, :, :length] = memory[source, :, :length]
        self._lengths[target] = length

    def save(self, slot: int, length: int, *, start: int = 0) -> SavedPrefix:
        return [memory[slot, :, start:length].copy() for memory in self._memory]

    def restore(self, saved: SavedPrefix, slot: int, length: int, *, start: int = 0) -> None:
        for memory, kept in zip(self._memory, saved, strict=True):
            memory[slot, :, start:length] = kept[:, : length - start]
        self._lengths[slot] = length

    def close(self) -> None:
        self._session = None
        self._decode_runs.clear()
        self._memory.clear()

    def warm_up(self, batch_sizes: Sequence[int]) -> None:
        tokens = np.zeros(8, np.int64)
        for size in batch_sizes:
            for slot in range(size):
                if not self._lengths[slot]:
                    self.prefill(slot, tokens)
            self.decode(tokens[:1].repeat(size))
        self._lengths[:] = 0

    def _bind(self, slot: int, batch: int, sequence: int, rows: Tokens) -> _Run:
        """A run of `sequence` new tokens for each of `batch` slots from `slot` on; `rows` of them get logits."""
        ids = np.zeros((batch, sequence), np.int64)
        lengths, total = np.zeros(batch, np.int32), np.zeros((), np.int32)
        logits = np.empty((len(rows), self._decode_info.vocabulary_size), self._logits_dtype)
        binding = self._session.io_binding()
        _bind_input(binding, "input_ids", ids)
        if self._by_lengths:
            _bind_input(binding, "seqlens_k", lengths)
            _bind_input(binding, "total_sequence_length", total)
        if self._has_rows:
            _bind_input(binding, "logit_rows", rows)
            binding.bind_output("logits", "cpu", 0, self._logits_dtype, logits.shape, logits.ctypes.data)
        else:
            kept = np.array(len(rows) // batch, np.int64)
            if self._keeps_last:
                binding.bind_cpu_input("num_logits_to_keep", kept)
            shape = (batch, int(kept), logits.shape[1])
            binding.bind_output("logits", "cpu", 0, self._logits_dtype, shape, logits.ctypes.data)
        for past, present, memory in zip(self._past, self._present, self._memory, strict=True):
            part = memory[slot : slot + batch]
            _bind_input(binding, past, part)
            binding.bind_output(present, "cpu", 0, self._dtype, part.shape, part.ctypes.data)
        return _Run(binding, ids, lengths, total, rows, logits)

    def _run(self, run: _Run, batch: int, sequence: int) -> None:
        if not self._by_lengths:
            total = int(run.total)
            mask = (np.arange(total) <= run.lengths[:, None]).astype(np.int64)
            _bind_input(run.binding, "attention_mask", mask)
        if self._has_positions:
            positions = run.lengths[:, None].astype(np.int64) - np.arange(sequence - 1, -1, -1)
            _bind_input(run.binding, "position_ids", np.ascontiguousarray(positions))
        try:
            self._session.run_with_iobinding(run.binding, self._options)
        except Exception as error:
            raise run_fault(error) from error

    def _check(self, spec: GenerationSpec, inputs: dict[str, Any]) -> None:
        """Raises MODEL_INVALID where the graph is not of the shape that its folder says."""
        outputs = {node.name for node in self._session.get_outputs()}
        missing = [name for name in ("logits", *spec.names.states.values()) if name not in outputs]
        known = {"input_ids", "seqlens_k", "total_sequence_length", "logit_rows", "attention_mask", "position_ids"}
        known.add("num_logits_to_keep")
        unknown = [name for name in inputs if name not in known and not name.startswith("past")]
        if len(self._past) != 2 * spec.num_layers:
            problem = f"{len(self._past)} past inputs for {spec.num_layers} layers"
        elif missing:
            problem = f"it has no output {missing[0]}"
        elif unknown:
            problem = f"input {unknown[0]!r} is none that a decoder fills"
        elif "seqlens_k" not in inputs and "attention_mask" not in inputs:
            problem = "neither seqlens_k nor attention_mask says how long a row is"
        else:
            return
        raise ServingError(Reason.MODEL_INVALID, f"{spec.decoder.name} cannot be served as a decoder: {problem}")


def _bind_input(binding: Any, name: str, array: npt.NDArray[Any]) -> None:
    """The array is read where it lies; whoever binds it keeps it."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _reserved(shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Memory:
    """Zeros that take memory only where they are written, in pages of 4 KiB.

    Huge pages would be read a little faster, but the first token of a slot would take in all of it.
    """
    size = math.prod(shape) * dtype.itemsize
    block = mmap.mmap(-1, size)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        block.madvise(mmap.MADV_NOHUGEPAGE)
    memory: _Memory = np.frombuffer(block, dtype).reshape(shape)
    return memory


def _as_float32(logits: npt.NDArray[Any]) -> Logits:
    return logits if logits.dtype == np.float32 else logits.astype(np.float32)
