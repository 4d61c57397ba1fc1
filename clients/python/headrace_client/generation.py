"""Generated text as plain values, and the request for it: shared by the sync and the async client."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from headrace.v1 import generation_pb2 as pb
from headrace_client.requests import selector
from headrace_client.results import ModelVersion

__all__ = [
    "FinishReason",
    "GenerateOptions",
    "Generated",
    "GeneratedToken",
    "GenerationDelta",
    "GenerationSummary",
    "Prompt",
    "TextChoice",
    "TokenLogprob",
    "delta_of",
    "generate_request",
    "generated",
]

FinishReason = Literal["", "end", "stop", "length"]
Message = Mapping[str, Any]
Prompt = str | Sequence[int] | Sequence[Message]

_FINISH: dict[int, FinishReason] = {
    pb.FINISH_REASON_UNSPECIFIED: "",
    pb.FINISH_REASON_END: "end",
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
}


class GenerateOptions(TypedDict, total=False):
    """Of `generate` and `generate_text`; the server's and the model's defaults hold for what is left out."""

    version: str  # a version of the model; else the serving one
    label: str  # a label of a version, instead of the version
    max_tokens: int  # new tokens at most
    min_tokens: int  # new tokens at least
    temperature: float  # 0: always the likeliest
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    frequency_penalty: float
    presence_penalty: float
    logit_bias: Mapping[int, float]  # added to tokens' logits; −100 forbids
    seed: int
    stop: str | Sequence[str]  # texts that end it
    stop_token_ids: Sequence[int]
    ignore_end: bool  # go on past the model's own end
    num_choices: int
    num_beams: int  # encoder–decoder models alone
    length_penalty: float
    echo: bool  # the prompt before the new text
    logprobs: bool
    top_logprobs: int
    json_schema: str | Mapping[str, Any]  # a form that the text must have; one of these five
    json_object: bool
    regex: str
    grammar: str  # in Lark form
    choices: Sequence[str]  # one of these texts
    tools: Sequence[Mapping[str, Any]]  # of a chat
    template_values: Mapping[str, Any]  # more names for the chat's template
    add_generation_prompt: bool
    priority: int
    keep_special_tokens: bool


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


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSummary:
    """What it took; times in microseconds."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    queue_us: int
    first_token_us: int
    per_token_us: int
    seed: int
    model: ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDelta:
    """A piece of one choice's text; `finish_reason` in its last, `summary` in the last of all."""

    choice: int
    text: str
    tokens: tuple[GeneratedToken, ...] = ()
    finish_reason: FinishReason = ""
    stop_match: str = ""
    summary: GenerationSummary | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChoice:
    """One continuation; `tokens` where log-probabilities were asked for."""

    text: str
    finish_reason: FinishReason
    stop_match: str = ""
    tokens: tuple[GeneratedToken, ...] = ()
    score: float | None = None  # where beams were searched


@dataclass(frozen=True, slots=True)
class Generated:
    """The continuations, and what they took."""

    choices: tuple[TextChoice, ...]
    summary: GenerationSummary

    @property
    def text(self) -> str:
        """The first continuation's."""
        return self.choices[0].text


_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "seed",
    "length_penalty",
)  # fmt: skip
_PLAIN = (
    "max_tokens", "min_tokens", "stop_token_ids", "ignore_end", "num_choices", "num_beams", "echo", "logprobs",
    "top_logprobs", "priority", "keep_special_tokens",
)  # fmt: skip
_CONSTRAINTS = ("json_schema", "json_object", "regex", "grammar", "choices")
_CHAT = ("tools", "template_values", "add_generation_prompt")


def generate_request(model: str, prompt: Prompt, **options: Any) -> pb.GenerateRequest:
    """The request. Raises TypeError for an option that is unknown, ValueError for two that exclude each other."""
    known = {*_SAMPLING, *_PLAIN, *_CONSTRAINTS, *_CHAT, "version", "label", "logit_bias", "stop"}
    unknown = sorted(options.keys() - known)
    if unknown:
        raise TypeError(f"{unknown[0]!r} is no option of generate")
    request = pb.GenerateRequest(
        model=selector(model, options.get("version", ""), options.get("label", "")),
        sampling=pb.Sampling(
            **{name: options[name] for name in _SAMPLING if options.get(name) is not None},
            logit_bias=options.get("logit_bias"),
        ),
        **{name: options[name] for name in _PLAIN if name in options},
    )
    stop = options.get("stop", ())
    request.stop.extend([stop] if isinstance(stop, str) else stop)
    if isinstance(prompt, str):
        request.prompt = prompt
    elif len(prompt) and isinstance(prompt[0], Mapping):
        request.chat.CopyFrom(_chat(prompt, options))
    else:
        request.token_ids.ids.extend(prompt)  # type: ignore[arg-type]
    if not request.HasField("chat") and any(name in options for name in _CHAT):
        raise ValueError("tools, template_values and add_generation_prompt are of chats, the prompt is none")
    constraint = _constraint(options)
    if constraint is not None:
        request.constraint.CopyFrom(constraint)
    return request


def delta_of(response: pb.GenerateResponse) -> GenerationDelta:
    """One message of the stream."""
    return GenerationDelta(
        choice=response.choice,
        text=response.text,
        tokens=_tokens(response.tokens),
        finish_reason=_FINISH.get(response.finish_reason, ""),
        stop_match=response.stop_match,
        summary=_summary(response.summary) if response.HasField("summary") else None,
    )


def generated(response: pb.GenerateTextResponse) -> Generated:
    """The whole answer."""
    return Generated(
        tuple(
            TextChoice(
                text=choice.text,
                finish_reason=_FINISH.get(choice.finish_reason, ""),
                stop_match=choice.stop_match,
                tokens=_tokens(choice.tokens),
                score=choice.score if choice.HasField("score") else None,
            )
            for choice in response.choices
        ),
        _summary(response.summary),
    )


def _chat(messages: Sequence[Any], options: Mapping[str, Any]) -> pb.Chat:
    chat = pb.Chat()
    for message in messages:
        written = chat.messages.add(
            role=message.get("role", ""),
            content=message.get("content") or "",
            name=message.get("name", ""),
            tool_call_id=message.get("tool_call_id", ""),
        )
        for call in message.get("tool_calls", ()):
            written.tool_calls.add().update(call)
    for tool in options.get("tools", ()):
        chat.tools.add().update(tool)
    if options.get("template_values"):
        chat.template_values.update(options["template_values"])
    if "add_generation_prompt" in options:
        chat.add_generation_prompt = options["add_generation_prompt"]
    return chat


def _constraint(options: Mapping[str, Any]) -> pb.Constraint | None:
    given = [name for name in _CONSTRAINTS if options.get(name)]
    if not given:
        return None
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)}: a text has one form")
    name, value = given[0], options[given[0]]
    if name == "choices":
        return pb.Constraint(choices=pb.ConstraintChoices(texts=value))
    constraint = pb.Constraint()
    setattr(constraint, name, json.dumps(value) if isinstance(value, Mapping) else value)
    return constraint


def _tokens(tokens: Any) -> tuple[GeneratedToken, ...]:
    return tuple(
        GeneratedToken(
            token.id,
            token.text,
            token.logprob if token.HasField("logprob") else None,
            tuple(TokenLogprob(top.id, top.text, top.logprob) for top in token.top_logprobs),
        )
        for token in tokens
    )


def _summary(summary: pb.GenerationSummary) -> GenerationSummary:
    return GenerationSummary(
        num_prompt_tokens=summary.num_prompt_tokens,
        num_cached_tokens=summary.num_cached_tokens,
        num_generated_tokens=summary.num_generated_tokens,
        queue_us=summary.queue_us,
        first_token_us=summary.first_token_us,
        per_token_us=summary.per_token_us,
        seed=summary.seed,
        model=ModelVersion(summary.model.name, summary.model.version),
    )
