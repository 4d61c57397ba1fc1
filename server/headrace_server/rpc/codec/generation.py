"""Messages of Generate and GenerateText."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.struct_pb2 import Struct

from headrace.v1 import generation_pb2 as pb
from headrace_server.errors import invalid_input
from headrace_server.jobs.generation_checks import check_counts
from headrace_server.jobs.generation_queries import (
    ChatPrompt,
    FinishReason,
    GeneratedToken,
    GenerateQuery,
    GenerateResult,
    GenerationDelta,
    GenerationSummary,
    SamplingWishes,
)
from headrace_server.models.constraint import ConstraintSpec
from headrace_server.rpc.codec.checks import require_text
from headrace_server.rpc.codec.selector import MAX_NAME_BYTES, decode_selector, encode_version

__all__ = ["decode_generate", "encode_delta", "encode_result", "encode_summary"]

_FINISH = {
    FinishReason.END: pb.FINISH_REASON_END,
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
}
_WISHES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "seed",
    "length_penalty",
)


def decode_generate(request: pb.GenerateRequest) -> GenerateQuery:
    """What is to be generated. Raises ServingError INVALID_INPUT for what the message cannot mean; ranges are the job's
    to check."""
    check_counts(
        messages=len(request.chat.messages),
        tools=len(request.chat.tools),
        token_ids=len(request.token_ids.ids),
        stops=len(request.stop),
        stop_tokens=len(request.stop_token_ids),
        biased=len(request.sampling.logit_bias),
        constraint_choices=len(request.constraint.choices.texts),
    )
    return GenerateQuery(
        model=decode_selector(request.model),
        prompt=_decode_input(request),
        max_tokens=request.max_tokens,
        min_tokens=request.min_tokens,
        sampling=_decode_sampling(request.sampling),
        stop=tuple(request.stop),
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_end=request.ignore_end,
        num_choices=request.num_choices,
        num_beams=request.num_beams,
        echo=request.echo,
        logprobs=request.logprobs,
        top_logprobs=request.top_logprobs,
        constraint=_decode_constraint(request.constraint) if request.HasField("constraint") else None,
        priority=request.priority,
        keep_special_tokens=request.keep_special_tokens,
    )


def encode_delta(delta: GenerationDelta) -> pb.GenerateResponse:
    """One step of a stream."""
    return pb.GenerateResponse(
        choice=delta.choice,
        text=delta.text,
        tokens=_encode_tokens(delta.tokens),
        finish_reason=pb.FINISH_REASON_UNSPECIFIED if delta.finish_reason is None else _FINISH[delta.finish_reason],
        stop_match=delta.stop_match,
    )


def encode_summary(summary: GenerationSummary) -> pb.GenerationSummary:
    """Usage and timings, in microseconds."""
    return pb.GenerationSummary(
        num_prompt_tokens=summary.num_prompt_tokens,
        num_cached_tokens=summary.num_cached_tokens,
        num_generated_tokens=summary.num_generated_tokens,
        queue_us=summary.queue_ns // 1000,
        first_token_us=summary.first_token_ns // 1000,
        per_token_us=summary.per_token_ns // 1000,
        seed=summary.seed,
        model=encode_version(summary.model),
    )


def encode_result(result: GenerateResult) -> pb.GenerateTextResponse:
    """The whole texts."""
    return pb.GenerateTextResponse(
        choices=[
            pb.GeneratedText(
                text=choice.text,
                tokens=_encode_tokens(choice.tokens),
                finish_reason=_FINISH[choice.finish_reason],
                stop_match=choice.stop_match,
                score=choice.score,
            )
            for choice in result.choices
        ],
        summary=encode_summary(result.summary),
    )


def _encode_tokens(tokens: Iterable[GeneratedToken]) -> list[pb.GeneratedToken]:
    return [
        pb.GeneratedToken(
            id=token.id,
            text=token.text,
            logprob=token.logprob,
            top_logprobs=[pb.TokenLogprob(id=top.id, text=top.text, logprob=top.logprob) for top in token.top_logprobs],
        )
        for token in tokens
    ]


def _decode_input(request: pb.GenerateRequest) -> str | ChatPrompt | tuple[int, ...]:
    match request.WhichOneof("input"):
        case "prompt":
            return request.prompt
        case "chat":
            return _decode_chat(request.chat)
        case "token_ids":
            return tuple(request.token_ids.ids)
        case _:
            raise invalid_input("input", "required: prompt, chat or token_ids")


def _decode_chat(chat: pb.Chat) -> ChatPrompt:
    messages = []
    for index, message in enumerate(chat.messages):
        path = f"chat.messages[{index}]"
        plain: dict[str, Any] = {
            "role": require_text(message.role, f"{path}.role", MAX_NAME_BYTES),
            "content": message.content,
        }
        if message.name:
            plain["name"] = require_text(message.name, f"{path}.name", MAX_NAME_BYTES)
        if message.tool_calls:
            plain["tool_calls"] = [
                _plain(call, f"{path}.tool_calls[{number}]") for number, call in enumerate(message.tool_calls)
            ]
        if message.tool_call_id:
            plain["tool_call_id"] = require_text(message.tool_call_id, f"{path}.tool_call_id", MAX_NAME_BYTES)
        messages.append(plain)
    return ChatPrompt(
        messages=messages,
        tools=[_plain(tool, f"chat.tools[{number}]") for number, tool in enumerate(chat.tools)],
        template_values=_plain(chat.template_values, "chat.template_values"),
        add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
    )


def _decode_sampling(sampling: pb.Sampling) -> SamplingWishes:
    wishes = {name: getattr(sampling, name) for name in _WISHES if sampling.HasField(name)}
    return SamplingWishes(**wishes, logit_bias=dict(sampling.logit_bias))


def _decode_constraint(constraint: pb.Constraint) -> ConstraintSpec:
    kind = constraint.WhichOneof("kind")
    match kind:
        case "json_schema" | "regex" | "grammar":
            return ConstraintSpec(kind, getattr(constraint, kind))
        case "json_object" if constraint.json_object:
            return ConstraintSpec("json_object")
        case "choices":
            return ConstraintSpec("choices", choices=tuple(constraint.choices.texts))
        case _:
            raise invalid_input("constraint", "required: json_schema, json_object, regex, grammar or choices")


def _plain(struct: Struct, field: str) -> dict[str, Any]:
    """The struct as dictionaries and lists; numbers that are whole as int, since a template would print 3 as 3.0."""
    try:
        plain: dict[str, Any] = _whole(MessageToDict(struct))
    except ValueError:
        raise invalid_input(field, "a number that is not finite, which JSON cannot hold") from None
    return plain


def _whole(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value
