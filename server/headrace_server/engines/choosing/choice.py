"""How `auto` chose an engine: every candidate with its figures, as they are logged, shown and kept."""

from __future__ import annotations

import enum
from dataclasses import dataclass

__all__ = ["CandidateReport", "EngineChoice", "Verdict"]


class Verdict(enum.StrEnum):
    """What became of a candidate."""

    CHOSEN = "chosen"
    SLOWER = "slower"
    DISAGREES = "disagrees"  # its answers are not those of the CPU in the graph's own precision
    UNAVAILABLE = "unavailable"  # it does not load here, or not this graph
    NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateReport:
    """One candidate. Figures are 0 where it was not measured."""

    device: str  # as it is asked for: "cpu", "openvino", "cuda:0"
    precision: str  # as it runs: "fp32", "bf16", …
    verdict: Verdict
    reason: str = ""  # of a verdict that needs one
    speedup: float = 0.0  # over the CPU provider: geometric mean over the shapes
    latency_ms: tuple[float, ...] = ()  # of a run, by shape
    min_cosine: float = 0.0  # of one row's answer with the CPU provider's
    max_error: float = 0.0  # largest difference of a value, relative to the largest value there

    def __str__(self) -> str:
        """ "openvino bf16: chosen, 2.81 times as fast, cosine 0.99995"."""
        said = [self.verdict.value]
        if self.speedup:
            said.append(f"{self.speedup:.2f} times as fast")
        if self.min_cosine:
            said.append(f"cosine {self.min_cosine:.5f}")
        if self.reason:
            said.append(self.reason)
        return f"{self.device} {self.precision}: {', '.join(said)}"

    @property
    def failed(self) -> bool:
        """It could have served, and may not."""
        return self.verdict in (Verdict.DISAGREES, Verdict.UNAVAILABLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineChoice:
    """What `auto` found. `cached`: earlier, of the same model on the same machine and versions."""

    reason: str  # one sentence
    shapes: tuple[str, ...] = ()  # that were run, "8 × 32" being 8 rows of 32 tokens
    candidates: tuple[CandidateReport, ...] = ()
    cached: bool = False

    @property
    def failures(self) -> tuple[CandidateReport, ...]:
        """Candidates that could have served, and may not."""
        return tuple(each for each in self.candidates if each.failed)
