"""What Generate is asked and what it answers, as plain values; names and limits are those of the wire API."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headrace_server.jobs.queries import ModelRef
from headrace_server.models.constraint import ConstraintSpec

__all__ = [
    "ChatPrompt",
    "FinishReason",
    "GenerateQuery",
    "GenerateResult",
    "GeneratedText",
    "GeneratedToken",
    "GenerationDelta",
    "GenerationSummary",
    "SamplingWishes",
    "TokenLogprob",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation for the model's own template: messages are mappings with "role" and "content"."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] = ()
    template_values: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingWishes:
    """How tokens are to be chosen; None: as the model's own settings say. `seed` None: drawn, said in the summary."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    length_penalty: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateQuery:
    """What to go on from, and how. Zeros stand for the defaults of the wire API."""

    model: ModelRef
    prompt: str | ChatPrompt | Sequence[int]
    max_tokens: int = 0
    min_tokens: int = 0
    sampling: SamplingWishes = field(default_factory=SamplingWishes)
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_end: bool = False
    num_choices: int = 0
    num_beams: int = 0
    echo: bool = False
    logprobs: bool = False
    top_logprobs: int = 0
    constraint: ConstraintSpec | None = None
    priority: int = 0
    keep_special_tokens: bool = False


class FinishReason(enum.Enum):
    """Why a choice ended."""

    END = "end"
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with its natural log-probability."""

    id: int
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class GeneratedToken:
    """One new token; log-probabilities where they were asked for."""

    id: int
    text: str
    logprob: float | None = None
    top_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationDelta:
    """A piece of one choice's text, whole characters only; `finish_reason` in its last."""

    choice: int
    text: str
    tokens: tuple[GeneratedToken, ...] = ()
    finish_reason: FinishReason | None = None
    stop_match: str = ""
    score: float | None = None  # where beams were searched: that of the best

    def joined(self, later: GenerationDelta) -> GenerationDelta:
        """This and the next of the same choice as one."""
        return GenerationDelta(
            self.choice,
            self.text + later.text,
            self.tokens + later.tokens,
            later.finish_reason,
            later.stop_match,
            later.score,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSummary:
    """What a generation took; times in nanoseconds."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    queue_ns: int
    first_token_ns: int
    per_token_ns: int
    seed: int
    model: ModelRef


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratedText:
    """One whole continuation; `tokens` where log-probabilities were asked for."""

    text: str
    tokens: tuple[GeneratedToken, ...]
    finish_reason: FinishReason
    stop_match: str = ""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class GenerateResult:
    """The continuations in order, and what they took."""

    choices: tuple[GeneratedText, ...]
    summary: GenerationSummary
