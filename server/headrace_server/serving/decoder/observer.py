"""What a Decoder tells of its work, for metrics: cheap, from any thread, and nothing depends on it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from headrace_server.errors import Reason

__all__ = ["DecoderObserver", "StepReport"]


@dataclass(slots=True)
class StepReport:
    """One step, as it left the decoder."""

    num_active: int = 0  # sequences in slots
    num_waiting: int = 0
    num_kv_tokens: int = 0  # tokens whose keys and values are held in slots
    kv_capacity: int = 0  # tokens that slots can hold
    num_prefill_tokens: int = 0  # prompt tokens computed in this step
    num_decode_tokens: int = 0  # slots advanced in this step
    num_prefix_hits: int = 0  # prompts of which a part was found computed
    num_prefix_tokens: int = 0  # prompt tokens that needed no computing
    prefix_bytes: int = 0  # memory of kept prefixes
    seconds: float = 0.0
    first_token_s: list[float] = field(default_factory=list)  # from submission, of each sequence that began
    token_gap_s: list[float] = field(default_factory=list)  # between tokens of one sequence


class DecoderObserver(Protocol):
    """Told of each step, end and refusal of a model's decoder."""

    def on_step(self, model: str, version: str, report: StepReport) -> None:
        """A step is over; the report is the observer's own from now on."""

    def on_ended(self, model: str, version: str, outcome: str) -> None:
        """A sequence ended: "end", "stop", "length", or the Reason of its error."""

    def on_refused(self, model: str, version: str, reason: Reason) -> None:
        """A request was refused at the door."""
