"""A trial: engines run the same batches in turns, and the shortest run of each counts.

Turns, because whatever else the machine does then falls on all alike; the shortest, because nothing but the engine
itself makes a run shorter.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from headrace_server.engines.base import Array, Engine
from headrace_server.engines.choosing.comparison import Agreement, compare
from headrace_server.engines.choosing.sample_batches import SampleBatch
from headrace_server.errors import ServingError

__all__ = ["Trial", "TrialResult"]

_ROUNDS = 4
_SHARE_S = 0.4  # of one candidate's rounds, all batches together
_FLEETING_S = 1e-3
_REFERENCE_S = 1.0  # of the reference's own runs, after which no further batch is added


@dataclass(slots=True, kw_only=True)
class TrialResult:
    """Seconds of the shortest run, by batch, of the reference and of the engine tried."""

    reference_s: list[float] = field(default_factory=list)
    engine_s: list[float] = field(default_factory=list)
    agreement: Agreement = field(default_factory=Agreement)

    @property
    def speedup(self) -> float:
        """Geometric mean over the batches."""
        ratios = [a / b for a, b in zip(self.reference_s, self.engine_s, strict=True)]
        return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else 0.0


class Trial:
    """The reference's answers to the batches that it can compute; engines are tried against it.

    The first run of an engine also makes what later ones reuse, and is never counted.
    """

    def __init__(self, reference: Engine, batches: Sequence[SampleBatch]) -> None:
        self._reference = reference
        self.batches: list[SampleBatch] = []
        self.seconds: list[float] = []  # of the reference's shortest run, by batch
        self._answers: list[Mapping[str, Array]] = []
        began = time.perf_counter()
        for batch in batches:
            if self.batches and time.perf_counter() - began > _REFERENCE_S:
                break
            try:
                answer = _answer(reference, batch)
                seconds = min(_seconds(reference, batch) for _ in range(2))
                if seconds < _FLEETING_S:  # where one interruption would be most of it
                    seconds = min(seconds, *(_seconds(reference, batch) for _ in range(8)))
            except ServingError:
                continue  # a graph may refuse what its signature allows
            self.batches.append(batch)
            self.seconds.append(seconds)
            self._answers.append(answer)

    @property
    def shapes(self) -> tuple[str, ...]:
        return tuple(batch.shape for batch in self.batches)

    def of(self, engine: Engine) -> TrialResult:
        """How an engine does. Raises ServingError where it cannot compute a batch; not timed where it disagrees."""
        result = TrialResult()
        for batch, expected in zip(self.batches, self._answers, strict=True):
            result.agreement = result.agreement.with_(compare(_answer(engine, batch), expected))
        if not result.agreement.holds:
            return result
        share = _SHARE_S / max(1, len(self.batches))
        for batch in self.batches:
            ours, theirs = math.inf, math.inf
            until = time.perf_counter() + share
            for _ in range(_ROUNDS):
                theirs = min(theirs, _seconds(self._reference, batch))
                ours = min(ours, _seconds(engine, batch))
                if time.perf_counter() > until:
                    break
            result.reference_s.append(theirs)
            result.engine_s.append(ours)
        return result


def _answer(engine: Engine, batch: SampleBatch) -> Mapping[str, Array]:
    outputs = engine.run(batch.feeds, batch.outputs)
    return outputs if batch.reduce is None else batch.reduce(outputs, batch.feeds)


def _seconds(engine: Engine, batch: SampleBatch) -> float:
    began = time.perf_counter()
    engine.run(batch.feeds, batch.outputs)
    return time.perf_counter() - began
