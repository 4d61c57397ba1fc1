"""compare_latency: how long two versions take, asked in turn, so that what else the machine does meets both alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.decode import DecodeState
from headrace_server.engines.factory import create_decode_state
from headrace_server.models.model import Model, Task
from headrace_server.models.quantization_report import LatencyFigure
from headrace_server.prepare.quality.answers import opened
from headrace_server.prepare.quality.inputs import Feeds, Inputs

__all__ = ["LatencyComparison", "compare_latency"]

_BATCHES = (1, 8)
_ROUND_S = 0.02  # one side of one round lasts at least so long: a clock's own noise is out of it
_MIN_ROUNDS = 5
_PROMPT = 64  # tokens
_NEW = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyComparison:
    """One figure a batch size, the largest last; of decoders a prompt's, then a token's."""

    figures: tuple[LatencyFigure, ...]

    @property
    def speedup(self) -> float:
        """Of the last figure: how many times as fast the candidate is."""
        return self.figures[-1].speedup


def compare_latency(
    reference: Model,
    candidate: Model,
    inputs: Inputs,
    *,
    device: str = "cpu",
    budget_s: float = 6.0,
    num_threads: int = 1,
) -> LatencyComparison:
    """Medians of interleaved rounds on held-out rows; the ratio of each round, its median and its range.

    budget_s     seconds to measure for, in all; sessions are made beside it
    num_threads  a run's own: a server runs one run a core, so 1 tells what it will do
    raises       ServingError as `create_engine` does
    """
    with ExitStack() as stack:
        if inputs.task is Task.GENERATE:
            length = _PROMPT + _NEW + 1
            states = [_decoder(model, length, num_threads) for model in (reference, candidate)]
            for state in states:
                stack.callback(state.close)
            return _decoders(states, inputs, reference, budget_s)
        before = stack.enter_context(opened(reference, num_threads=num_threads))
        after = stack.enter_context(opened(candidate, device=device, num_threads=num_threads))
        plans = _plans(reference, inputs)
        figures = []
        for what, feeds in plans:
            one, other = (_cycle(engine.run, feeds) for engine in (before, after))
            figures.append(_compared(what, one, other, budget_s / len(plans), units=len(feeds)))
    return LatencyComparison(figures=tuple(figures))


def _plans(model: Model, inputs: Inputs) -> list[tuple[str, list[Feeds]]]:
    """What is run, and some feeds for it, of lengths as they come."""
    if not model.pipelines and not model.has_batch_axis:
        return [("a run", list(inputs.held_out[:4]))]
    fixed = any(spec.shape[:1] == (1,) for spec in model.inputs)
    plans = []
    for size in _BATCHES[:1] if fixed else _BATCHES:
        chosen = inputs.held_out[:: max(1, len(inputs.held_out) // 4)][:4]
        what = "1 row" if size == 1 else f"a batch of {size} rows"
        plans.append((what, [_of_size(feeds, size) for feeds in chosen]))
    return plans


def _of_size(feeds: Feeds, size: int) -> Feeds:
    """The first rows, repeated where there are fewer."""
    return {name: np.ascontiguousarray(np.resize(array, (size, *array.shape[1:]))) for name, array in feeds.items()}


def _cycle(run: Callable[[Feeds], Any], feeds: Sequence[Feeds]) -> Callable[[], None]:
    """Each call runs all of them."""

    def ask() -> None:
        for each in feeds:
            run(each)

    return ask


def _compared(
    what: str, before: Callable[[], None], after: Callable[[], None], budget_s: float, *, units: int = 1
) -> LatencyFigure:
    """`units`: how many of `what` one call does."""
    repeats = [_repeats(side) for side in (before, after)]
    times: list[tuple[float, float]] = []
    limit = time.perf_counter() + budget_s
    while len(times) < _MIN_ROUNDS or time.perf_counter() < limit:
        one, other = (_timed(side, count) for side, count in zip((before, after), repeats, strict=True))
        times.append((one, other))
        if len(times) >= _MIN_ROUNDS and time.perf_counter() + one * repeats[0] + other * repeats[1] > limit:
            break
    ratios = [one / other for one, other in times]
    scale = 1e3 / units
    return LatencyFigure(
        what=what,
        before_ms=round(statistics.median(one for one, _ in times) * scale, 4),
        after_ms=round(statistics.median(other for _, other in times) * scale, 4),
        speedup=round(statistics.median(ratios), 3),
        low=round(min(ratios), 3),
        high=round(max(ratios), 3),
        num_rounds=len(times),
    )


def _repeats(side: Callable[[], None]) -> int:
    """How often a side is asked in one round; the first call warms up."""
    side()
    return max(1, math.ceil(_ROUND_S / max(_timed(side, 1), 1e-7)))


def _timed(side: Callable[[], None], count: int) -> float:
    """Seconds a call."""
    began = time.perf_counter()
    for _ in range(count):
        side()
    return (time.perf_counter() - began) / count


def _decoder(model: Model, length: int, num_threads: int) -> DecodeState:
    assert model.generator is not None, "the task is GENERATE"
    spec = model.generator.spec
    policy = replace(spec.policy, max_slots=1, max_length=min(length, spec.max_length))
    own = replace(model, generator=replace(model.generator, spec=replace(spec, policy=policy)))
    return create_decode_state(own, EngineOptions(intra_op_threads=num_threads), ThreadBudget())


def _decoders(states: Sequence[DecodeState], inputs: Inputs, model: Model, budget_s: float) -> LatencyComparison:
    tokenizer = model.tokenizer
    assert tokenizer is not None, "a text generator has a tokenizer"
    ids = np.concatenate([tokenizer.encode([text])[0].ids for text in inputs.texts])
    tokens: npt.NDArray[np.int64] = np.resize(np.asarray(ids, np.int64), _PROMPT)

    def reading(state: DecodeState) -> Callable[[], None]:
        def ask() -> None:
            state.clear(0)
            state.prefill(0, tokens)

        return ask

    def writing(state: DecodeState) -> Callable[[], None]:
        def ask() -> None:
            state.clear(0)
            state.prefill(0, tokens[:1])
            for token in tokens[1 : _NEW + 1]:
                state.decode(np.array([token]))

        return ask

    before, after = states
    prompt = _compared(f"a prompt of {_PROMPT} tokens", reading(before), reading(after), budget_s / 2)
    token = _compared("a token", writing(before), writing(after), budget_s / 2, units=_NEW)
    return LatencyComparison(figures=(prompt, token))
