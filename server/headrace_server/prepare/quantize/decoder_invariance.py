"""Whether what a decoder says of a sequence is its own: a step alone and beside other sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.factory import create_decode_state
from headrace_server.engines.onnx.engine import is_batch_invariant
from headrace_server.models.model import Model
from headrace_server.models.onnx_header import read_onnx_header
from headrace_server.models.quantization_report import Invariance
from headrace_server.prepare.quantize.invariance import TOLERANCE

__all__ = ["check_decoder_invariance"]

_SLOTS = 4
_TOKENS = 48  # of each prompt
_STEPS = 4


def check_decoder_invariance(model: Model, texts: Sequence[str]) -> Invariance:
    """The largest change of a step's logits by the sequences beside it, over the largest logit."""
    generator, tokenizer = model.generator, model.tokenizer
    assert generator is not None, "a model that generates text"
    assert tokenizer is not None, "a text generator has a tokenizer"
    policy = replace(
        generator.spec.policy, max_slots=_SLOTS, max_length=min(generator.spec.max_length, _TOKENS + _STEPS + 1)
    )
    own = replace(model, generator=replace(generator, spec=replace(generator.spec, policy=policy)))
    prompts = [np.asarray(tokenizer.encode([text])[0].ids[:_TOKENS], np.int64) for text in texts]
    prompts = [ids for ids in prompts if len(ids)]
    state = create_decode_state(own, EngineOptions(), ThreadBudget())
    largest = 0.0
    try:
        if state.decode_info.batched and prompts:
            for first in range(min(3, len(prompts))):
                group = [prompts[(first + at) % len(prompts)] for at in range(_SLOTS)]
                token, alone = int(state.prefill(0, group[0]).argmax()), []
                tokens = [token]
                for _ in range(_STEPS):
                    alone.append(state.decode(np.array([tokens[-1]]))[0].copy())
                    tokens.append(int(alone[-1].argmax()))
                state.clear(0)
                for slot, ids in enumerate(group):
                    state.prefill(slot, ids)
                for at in range(_STEPS):
                    together = state.decode(np.array([tokens[at], *([tokens[at] + 1] * (_SLOTS - 1))]))[0]
                    size = float(np.abs(alone[at]).max()) or 1.0
                    largest = max(largest, float(np.abs(together - alone[at]).max()) / size)
                for slot in range(_SLOTS):
                    state.clear(slot)
    finally:
        state.close()
    says_so = is_batch_invariant(read_onnx_header(model.graph))
    return Invariance(max_difference=largest, tolerance=TOLERANCE, ok=says_so and largest <= TOLERANCE)
