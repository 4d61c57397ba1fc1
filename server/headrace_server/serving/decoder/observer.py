"""What a Decoder tells of its work, for metrics: cheap, from any thread, and nothing depends on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from headrace_server.errors import Reason

__all__ = ["DecoderObserver", "Observed", "StepReport"]

logger = logging.getLogger(__name__)


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
    """Told of each step, end and refusal of a model's decoder, and of its own end."""

    def on_step(self, model: str, version: str, report: StepReport) -> None:
        """A step is over; the report is the observer's own from now on."""

    def on_closed(self, model: str, version: str) -> None:
        """The decoder has ended: nobody is in a slot and nobody waits."""

    def on_ended(self, model: str, version: str, outcome: str) -> None:
        """A sequence ended: "end", "stop", "length", or the Reason of its error."""

    def on_refused(self, model: str, version: str, reason: Reason) -> None:
        """A request was refused at the door."""


class Observed:
    """Tells an observer, where there is one, of one model's decoder; what the observer raises goes to the log."""

    def __init__(self, observer: DecoderObserver | None, name: str, version: str) -> None:
        self._observer = observer
        self._name = name
        self._version = version

    def step(self, report: StepReport) -> None:
        self._tell(lambda observer: observer.on_step(self._name, self._version, report))

    def closed(self) -> None:
        self._tell(lambda observer: observer.on_closed(self._name, self._version))

    def ended(self, outcome: str) -> None:
        self._tell(lambda observer: observer.on_ended(self._name, self._version, outcome))

    def refused(self, reason: Reason) -> None:
        self._tell(lambda observer: observer.on_refused(self._name, self._version, reason))

    def _tell(self, say: Callable[[DecoderObserver], None]) -> None:
        if self._observer is not None:
            try:
                say(self._observer)
            except Exception:
                logger.exception("%s: the decoder's observer failed", self._name)
