"""Sequence: one generation: its prompt, how tokens are chosen, who is told, and how far it is.

A job makes a SequenceRequest; the Decoder makes a Sequence of it and tells the listener, on the decoder's thread, of
each token and, once, of the end. Listeners are quick, raise nothing, and decide on the text: the Decoder knows tokens.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace_server.engines.decode import Tokens
from headrace_server.errors import ServingError

__all__ = [
    "ChosenToken",
    "End",
    "Finish",
    "SamplingOptions",
    "SequenceListener",
    "SequenceRequest",
    "SequenceTimes",
    "TokenConstraint",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How a token is chosen of a row of logits, in the wire API's ranges. `seed` alone decides what is drawn."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0


class TokenConstraint(Protocol):
    """A form that the tokens must have, at one place of one sequence. One thread."""

    def allowed(self) -> npt.NDArray[np.uint32]:
        """Bits u32[ceil(v / 32)]: bit t of the mask is set where token t may come next. Holds until `accept`."""
        ...

    def accept(self, token: int) -> None:
        """The token was chosen."""

    @property
    def complete(self) -> bool:
        """Nothing more may come: the sequence ends with Finish.END."""
        ...


@dataclass(frozen=True, slots=True)
class ChosenToken:
    """One new token; log-probabilities are of the model's own distribution, set when they were asked for."""

    id: int
    logprob: float | None = None
    top_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


class Finish(enum.Enum):
    """Why a sequence ended of itself."""

    END = "end"  # the model's end token (not told as a token), or a complete constraint
    STOP = "stop"  # a stop token, or the listener said so
    LENGTH = "length"  # max_tokens, or the slot is full


@dataclass(slots=True)
class SequenceTimes:
    """Where a sequence's time went, `time.perf_counter_ns()` differences; 0 until known."""

    submitted_ns: int = 0  # when it came, `time.perf_counter_ns()`
    queue_ns: int = 0  # until its first prefill step
    prefill_ns: int = 0  # from there to the first token
    decode_ns: int = 0  # from the first token to the last
    num_cached_tokens: int = 0  # of the prompt, found in the prefix cache
    num_tokens: int = 0  # new ones


@dataclass(frozen=True, slots=True)
class End:
    """The end of a sequence: `finish`, or the error that ended it."""

    times: SequenceTimes
    finish: Finish | None = None
    stop_token: int | None = None  # the stop token that ended it
    error: ServingError | None = None
    score: float | None = None  # of the best beam, where beams were searched


class SequenceListener(Protocol):
    """Told on the decoder's thread; quick, raises nothing."""

    def on_token(self, token: ChosenToken) -> bool:
        """A token was chosen. False: end here (a stop text came up)."""
        ...

    def on_end(self, end: End) -> None:
        """The last word; its slot is free already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceRequest:
    """What the Decoder is asked for.

    prompt        i64[t], at least one token; for encoder–decoder models the source text's
    end_ids       the model's own ends; not chosen before `min_tokens`, and never told as tokens
    stop_ids      the caller's; not told as tokens
    constraint    fresh, of this sequence alone
    """

    prompt: Tokens
    max_tokens: int
    min_tokens: int = 0
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    end_ids: frozenset[int] = frozenset()
    stop_ids: frozenset[int] = frozenset()
    logprobs: bool = False
    top_logprobs: int = 0
    constraint: TokenConstraint | None = None
    priority: int = 0
    num_beams: int = 1  # over 1: beam search, encoder–decoder models alone; told at the end, best beam first
    length_penalty: float = 1.0
