"""What a request for text may ask, before a model is held; the limits are those of the wire API."""

from __future__ import annotations

import math

from headrace_server.config import InputLimits
from headrace_server.errors import invalid_input
from headrace_server.jobs.checks import require_model
from headrace_server.jobs.generation_queries import ChatPrompt, GenerateQuery, SamplingWishes
from headrace_server.models.constraint import ConstraintSpec
from headrace_server.models.text import check_text

__all__ = ["check_counts", "check_generate"]

_MAX_TOKEN_IDS = 1_048_576  # no model reads as many: what is looked at, one by one, is bounded before it is
_MAX_CHOICES = 16
_MAX_BEAMS = 16
_MAX_STOPS, _MAX_STOP_BYTES, _MAX_STOP_TOKENS = 16, 256, 64
_MAX_TOP_LOGPROBS = 20
_MAX_BIASED = 1024
_MAX_MESSAGES, _MAX_TOOLS = 1000, 128
_CONSTRAINT_BYTES = {"json_schema": 65_536, "regex": 4096, "grammar": 65_536}
_MAX_CONSTRAINT_CHOICES = 1000
_MAX_SEED = 2**64 - 1

# field: lowest, highest, whether the lowest itself is allowed
_RANGES = {
    "temperature": (0.0, 100.0, True),
    "top_k": (0, 2**32 - 1, True),
    "top_p": (0.0, 1.0, False),
    "min_p": (0.0, 1.0, True),
    "repetition_penalty": (0.0, 10.0, False),
    "frequency_penalty": (-2.0, 2.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "length_penalty": (-10.0, 10.0, True),
    "seed": (0, _MAX_SEED, True),
}


def check_counts(
    *,
    messages: int = 0,
    tools: int = 0,
    token_ids: int = 0,
    stops: int = 0,
    stop_tokens: int = 0,
    biased: int = 0,
    constraint_choices: int = 0,
) -> None:
    """Raises ServingError INVALID_INPUT naming the first list that is too long, before anything in it is looked at."""
    for field, count, limit in (
        ("chat.messages", messages, _MAX_MESSAGES),
        ("chat.tools", tools, _MAX_TOOLS),
        ("token_ids.ids", token_ids, _MAX_TOKEN_IDS),
        ("stop", stops, _MAX_STOPS),
        ("stop_token_ids", stop_tokens, _MAX_STOP_TOKENS),
        ("sampling.logit_bias", biased, _MAX_BIASED),
        ("constraint.choices.texts", constraint_choices, _MAX_CONSTRAINT_CHOICES),
    ):
        if count > limit:
            raise invalid_input(field, f"{count} of them, limit {limit}", limit=limit)


def check_generate(query: GenerateQuery, limits: InputLimits) -> None:
    """Raises ServingError INVALID_INPUT naming the first field that is out of its range."""
    require_model(query.model.name)
    _check_prompt(query, limits)
    for name, limit in (
        ("num_choices", _MAX_CHOICES),
        ("num_beams", _MAX_BEAMS),
        ("top_logprobs", _MAX_TOP_LOGPROBS),
        ("max_tokens", 2**31 - 1),
        ("min_tokens", 2**31 - 1),
    ):
        _in_range(name, getattr(query, name), 0, limit)
    _in_range("priority", query.priority, -100, 100)
    if query.num_beams > 1 and query.num_choices > 1:
        raise invalid_input("num_choices", f"{query.num_choices}, 1 is allowed where beams are searched")
    if len(query.stop) > _MAX_STOPS:
        raise invalid_input("stop", f"{len(query.stop)} texts, limit {_MAX_STOPS}")
    for index, stop in enumerate(query.stop):
        size = len(stop.encode("utf-8", "surrogatepass"))
        if not 1 <= size <= _MAX_STOP_BYTES:
            raise invalid_input(f"stop[{index}]", f"{size} bytes, from 1 to {_MAX_STOP_BYTES} are allowed")
    if len(query.stop_token_ids) > _MAX_STOP_TOKENS:
        raise invalid_input("stop_token_ids", f"{len(query.stop_token_ids)} tokens, limit {_MAX_STOP_TOKENS}")
    _check_sampling(query.sampling)
    if query.constraint is not None:
        _check_constraint(query.constraint)


def _check_prompt(query: GenerateQuery, limits: InputLimits) -> None:
    prompt = query.prompt
    if isinstance(prompt, str):
        check_text(prompt, "prompt", limits.max_text_bytes)
    elif isinstance(prompt, ChatPrompt):
        if not 1 <= len(prompt.messages) <= _MAX_MESSAGES:
            raise invalid_input("chat.messages", f"{len(prompt.messages)} messages, from 1 to {_MAX_MESSAGES}")
        if len(prompt.tools) > _MAX_TOOLS:
            raise invalid_input("chat.tools", f"{len(prompt.tools)} tools, limit {_MAX_TOOLS}")
        for index, message in enumerate(prompt.messages):
            if not message.get("role"):
                raise invalid_input(f"chat.messages[{index}].role", "empty, who speaks is required")
            content = message.get("content") or ""
            if isinstance(content, str):
                check_text(content, f"chat.messages[{index}].content", limits.max_text_bytes)
    else:
        check_counts(token_ids=len(prompt))


def _check_sampling(wishes: SamplingWishes) -> None:
    for name, (low, high, closed) in _RANGES.items():
        value = getattr(wishes, name)
        if value is None:
            continue
        if not math.isfinite(value) or not (low <= value if closed else low < value) or value > high:
            wanted = f"from {low:g}" if closed else f"over {low:g}"
            raise invalid_input(f"sampling.{name}", f"{value:g}, {wanted} to {high:g} is allowed")
    if len(wishes.logit_bias) > _MAX_BIASED:
        raise invalid_input("sampling.logit_bias", f"{len(wishes.logit_bias)} tokens, limit {_MAX_BIASED}")
    for token, bias in wishes.logit_bias.items():
        if not math.isfinite(bias):
            raise invalid_input(f"sampling.logit_bias[{token}]", f"{bias}, a finite number is required")


def _check_constraint(constraint: ConstraintSpec) -> None:
    limit = _CONSTRAINT_BYTES.get(constraint.kind)
    if limit is not None:
        check_text(constraint.text, f"constraint.{constraint.kind}", limit)
        if not constraint.text:
            raise invalid_input(f"constraint.{constraint.kind}", "empty")
    if constraint.kind == "choices":
        if not 1 <= len(constraint.choices) <= _MAX_CONSTRAINT_CHOICES:
            count = len(constraint.choices)
            raise invalid_input("constraint.choices.texts", f"{count} texts, from 1 to {_MAX_CONSTRAINT_CHOICES}")
        for index, text in enumerate(constraint.choices):
            if not text:
                raise invalid_input(f"constraint.choices.texts[{index}]", "empty")


def _in_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise invalid_input(field, f"{value}, from {low} to {high} is allowed", limit=high)
