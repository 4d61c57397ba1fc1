"""One peer of the generation benchmark in a process of its own, at its best settings, with two threads.

    python benchmarks/generation_peers.py llama FILE.gguf | openvino FILE.gguf | genai FOLDER

llama      llama.cpp: one context of 16 sequences. It has no scheduler of its own in Python, so here stands one that
           does as llama-server does: every step is one batch of what runs, a token each, and of prompts, BATCH tokens
           at most
openvino   OpenVINO GenAI's ContinuousBatchingPipeline, which reads the GGUF file itself
genai      onnxruntime-genai: Generator for one load of equal requests, Engine for requests that come and go
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from typing import Any

import numpy as np
from generation_loads import Engine, Prompt, Tokens, answer_lines

NUM_THREADS = 2
NUM_SEQUENCES = 16
MAX_LENGTH = 2048
BATCH = 512


class _Sequence:
    def __init__(self, key: int, prompt: Prompt, num_left: int) -> None:
        self.key = key
        self.prompt = list(prompt)
        self.num_read = 0
        self.num_left = num_left
        self.pending = -1  # its last token, to be computed


class Llama:
    """llama.cpp by its C interface."""

    def __init__(self, file: str, *, flash: int = 1, unified: bool = False) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(file.encode(), settings)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx = MAX_LENGTH * NUM_SEQUENCES
        context.n_batch, context.n_ubatch = MAX_LENGTH, BATCH
        context.n_seq_max = NUM_SEQUENCES
        context.n_threads = context.n_threads_batch = NUM_THREADS
        context.flash_attn_type = flash
        context.kv_unified = unified
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._batch = llama_cpp.llama_batch_init(MAX_LENGTH, 0, 1)
        self._waiting: list[_Sequence] = []
        self._slots: list[_Sequence | None] = [None] * NUM_SEQUENCES
        self._lengths = [0] * NUM_SEQUENCES

    def submit(self, key: int, prompt: Prompt, num_tokens: int) -> None:
        self._waiting.append(_Sequence(key, prompt, num_tokens))

    def wait(self) -> Tokens:
        while True:
            if tokens := self._step():
                return tokens

    def _step(self) -> Tokens:
        for slot, holder in enumerate(self._slots):
            if holder is None and self._waiting:
                self._slots[slot] = self._waiting.pop(0)
                self._lengths[slot] = 0
                self._lib.llama_memory_seq_rm(self._memory, slot, -1, -1)
        batch = self._batch
        batch.n_tokens = 0
        last: dict[int, int] = {}  # the place in the batch of what a slot's next token follows from
        for slot, holder in enumerate(self._slots):
            if holder is not None and holder.pending >= 0:
                last[slot] = self._add(slot, holder.pending, wanted=True)
        for slot, holder in enumerate(self._slots):
            if holder is None or holder.pending >= 0:
                continue
            end = min(len(holder.prompt), holder.num_read + BATCH - batch.n_tokens)
            for place in range(holder.num_read, end):
                index = self._add(slot, holder.prompt[place], wanted=place == len(holder.prompt) - 1)
            holder.num_read = max(end, holder.num_read)
            if end == len(holder.prompt):
                last[slot] = index
        if self._lib.llama_decode(self._context, batch):
            raise RuntimeError("llama_decode failed")
        best = {slot: int(self._logits(index).argmax()) for slot, index in last.items()}
        now = time.perf_counter()
        return [(self._take(slot, token), now) for slot, token in best.items()]

    def _add(self, slot: int, token: int, *, wanted: bool) -> int:
        batch, index = self._batch, self._batch.n_tokens
        batch.token[index] = token
        batch.pos[index] = self._lengths[slot]
        batch.n_seq_id[index] = 1
        batch.seq_id[index][0] = slot
        batch.logits[index] = wanted
        batch.n_tokens += 1
        self._lengths[slot] += 1
        return int(index)

    def _take(self, slot: int, token: int) -> int:
        sequence = self._slots[slot]
        assert sequence is not None
        sequence.pending = token
        sequence.num_left -= 1
        if not sequence.num_left:
            self._slots[slot] = None
        return sequence.key

    def _logits(self, index: int) -> Any:
        pointer = self._lib.llama_get_logits_ith(self._context, index)
        return np.ctypeslib.as_array(ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self._vocabulary,))

    def score(self, *, tokens: list[int], path: str) -> dict[str, int]:
        """Writes f32[n − 1, v]: what is said of each next token of a text."""
        self._lib.llama_memory_seq_rm(self._memory, 0, -1, -1)
        self._lengths[0] = self._batch.n_tokens = 0
        for token in tokens[:-1]:
            self._add(0, token, wanted=True)
        if self._lib.llama_decode(self._context, self._batch):
            raise RuntimeError("llama_decode failed")
        np.save(path, np.stack([self._logits(index) for index in range(len(tokens) - 1)]))
        return {"rows": len(tokens) - 1}


class OpenVino:
    """OpenVINO GenAI: prompts and new tokens in one step, `max_num_batched_tokens` of them."""

    def __init__(self, file: str) -> None:
        import openvino
        import openvino_genai

        self._genai: Any = openvino_genai
        self._tensor: Any = openvino.Tensor
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.max_num_batched_tokens = BATCH
        scheduler.max_num_seqs = NUM_SEQUENCES
        scheduler.cache_size = 1
        scheduler.dynamic_split_fuse = True
        scheduler.enable_prefix_caching = False  # no prompt comes twice
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            file, scheduler, "CPU", {"INFERENCE_NUM_THREADS": NUM_THREADS}
        )
        self._running: dict[int, Any] = {}

    def submit(self, key: int, prompt: Prompt, num_tokens: int) -> None:
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.ignore_eos, config.do_sample = num_tokens, True, False
        ids = self._tensor(np.array([prompt], np.int64))
        self._running[key] = self._pipeline.add_request(key, ids, config)

    def wait(self) -> Tokens:
        while True:
            self._pipeline.step()
            now = time.perf_counter()
            tokens = []
            for key, handle in list(self._running.items()):
                if handle.can_read():
                    for output in handle.read().values():
                        tokens += [(key, now)] * len(output.generated_ids)
                if handle.get_status() != self._genai.GenerationStatus.RUNNING:
                    del self._running[key]
            if tokens:
                return tokens


class Genai:
    """onnxruntime-genai's Engine: requests that begin together; who comes later waits until they have ended."""

    def __init__(self, folder: str, *, max_batch: int = 8, max_length: int = 512) -> None:
        import onnxruntime_genai

        self._genai: Any = onnxruntime_genai
        config = onnxruntime_genai.Config(folder)
        config.clear_providers()
        overlay = {
            "model": {"decoder": {"session_options": {"intra_op_num_threads": NUM_THREADS}}},
            "engine": {"static_batching": {"max_batch_size": max_batch}},
            "search": {"max_length": max_length},
        }
        config.overlay(json.dumps(overlay))
        self._model = onnxruntime_genai.Model(config)
        self._engine = onnxruntime_genai.Engine(self._model)
        self._events = self._engine.create_event_buffer(64)
        self._requests: dict[Any, int] = {}

    def submit(self, key: int, prompt: Prompt, num_tokens: int) -> None:
        options = self._genai.RequestOptions()
        options.set_max_session_tokens(len(prompt) + num_tokens)
        request = self._engine.create_request(options=options)
        turn = self._genai.TurnOptions(request)
        turn.set_max_generated_tokens(num_tokens)
        turn.set_min_generated_tokens(num_tokens)
        turn.set_do_sample(False)
        request.begin_turn(np.array(prompt, np.int32), turn)
        self._requests[request] = key

    def wait(self) -> Tokens:
        token = self._genai.EngineEventFlags.TOKEN.value
        while True:
            events = self._engine.run(self._events)
            now = time.perf_counter()
            came = [(self._requests[event.request], now) for event in events if event.flags.value & token]
            if came:
                return came

    def first(self, *, prompt: Prompt) -> dict[str, float]:
        began = time.perf_counter()
        generator = self._generator([prompt], len(prompt) + 8)
        generator.generate_next_token()
        return {"ms": (time.perf_counter() - began) * 1e3}

    def decode(self, *, prompts: list[Prompt], steps: int) -> dict[str, float]:
        generator = self._generator(prompts, len(prompts[0]) + steps + 8)
        generator.generate_next_token()
        began = time.perf_counter()
        for _ in range(steps):
            generator.generate_next_token()
        return {"tok_s": steps * len(prompts) / (time.perf_counter() - began)}

    def _generator(self, prompts: list[Prompt], max_length: int) -> Any:
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(
            batch_size=len(prompts), max_length=max_length, min_length=max_length, do_sample=False
        )
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(np.array(prompts, np.int32))
        return generator


def main() -> None:
    kind, path = sys.argv[1:3]
    engine: Engine
    if kind == "llama":
        engine = llama = Llama(path)
        answer_lines(engine, {"score": llama.score})
    elif kind == "openvino":
        engine = OpenVino(path)
        answer_lines(engine)
    else:
        engine = genai = Genai(path)
        answer_lines(engine, {"first": genai.first, "decode": genai.decode})


if __name__ == "__main__":
    main()
