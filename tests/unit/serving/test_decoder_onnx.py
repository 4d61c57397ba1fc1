"""A decoder over a real graph: everyone's text is the reference's, whoever joins, leaves, shares or is moved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from decoder_callers import Caller, ask
from decoder_folders import CONTEXT, SmallLlama, write_decoder

from headrace_server.config import DecoderPolicy
from headrace_server.engines.onnx.decode import SharedBufferDecode
from headrace_server.models.load import load_model
from headrace_server.serving.decoder.decoder import Decoder
from headrace_server.serving.decoder.sequence import SamplingOptions

LLAMA = SmallLlama()
NEARLY = 2e-3  # of logits: the graph computes in f32, the reference in f64


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder") / "1")


@pytest.fixture
def state(folder: Path) -> Iterator[SharedBufferDecode]:
    generator = load_model(folder, name="m", version="1").generator
    assert generator is not None
    state = SharedBufferDecode(generator.spec, num_slots=16, num_threads=1, spin=False)
    yield state
    assert [state.length(slot) for slot in range(16)] == [0] * 16
    state.close()


def prompt(length: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(3, 250, length)


def check_greedy(tokens: np.ndarray[tuple[int], np.dtype[np.int64]], told: list[int]) -> None:
    """Each told token is the likeliest after those before it, or so nearly that rounding decides."""
    logits = LLAMA.logits([*tokens.tolist(), *told])[len(tokens) - 1 : -1]
    short = logits.max(axis=1) - logits[np.arange(len(told)), told]
    assert (short <= NEARLY).all(), (short.max(), int(short.argmax()))


def test_twenty_greedy_texts_that_join_and_leave_are_those_of_the_reference(state: SharedBufferDecode) -> None:
    decoder = Decoder(state, DecoderPolicy(prefill_chunk=24), name="small")
    system = prompt(70, 1000)
    asked = []
    for seed in range(20):
        own = prompt(5 + 7 * (seed % 9), seed)
        tokens = np.concatenate([system, own]) if seed % 3 == 0 else own
        caller = Caller()
        decoder.submit(ask(tokens, 4 + seed * 2), caller.context, caller)
        asked.append((tokens, caller))
        if seed == 7:
            asked[6][1].wait()
    for tokens, caller in asked:
        assert caller.wait().end.error is None
        check_greedy(tokens, caller.tokens)
    assert sum(caller.end.times.num_cached_tokens > 0 for _, caller in asked) >= 5
    assert decoder.close()


def test_a_text_is_the_same_alone_and_among_fifteen_others(state: SharedBufferDecode) -> None:
    decoder = Decoder(state, DecoderPolicy(prefill_chunk=16), name="small")
    for temperature in (0.0, 0.9):
        sampling = SamplingOptions(temperature=temperature, top_p=0.95, seed=11)
        request = ask(prompt(40, 5), 60, sampling=sampling)
        single = Caller()
        decoder.submit(request, single.context, single)
        single.wait()
        callers = [Caller() for _ in range(16)]
        for index, caller in enumerate(callers):
            others = ask(prompt(10 + 3 * index, index), 20 + 5 * index, sampling=sampling)
            decoder.submit(request if index == 8 else others, caller.context, caller)
        assert callers[8].wait().tokens == single.tokens
        for caller in callers:
            assert caller.wait().end.error is None
    assert decoder.close()


def test_a_context_is_filled_to_its_last_place(state: SharedBufferDecode) -> None:
    decoder = Decoder(state, DecoderPolicy(), name="small")
    tokens = prompt(CONTEXT - 30, 3)
    callers = [Caller() for _ in range(3)]
    for caller in callers:
        decoder.submit(ask(tokens, 30), caller.context, caller)
    for caller in callers:
        assert len(caller.wait().tokens) == 30
        assert caller.tokens == callers[0].tokens
    check_greedy(tokens, callers[0].tokens)
    assert decoder.close()
