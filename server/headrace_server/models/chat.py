"""ChatTemplate: a conversation to the text that the model was trained to go on from, by the model's own jinja template.

The template is the model's, its values are the caller's: it runs in jinja's sandbox, which reaches no attribute that
could lead out, and is stopped when its output or its time exceeds a limit.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headrace_server.errors import ServingError, invalid_input
from headrace_server.models.folder import model_invalid

__all__ = ["ChatTemplate"]

_LIMIT_S = 2.0
_RESERVED = frozenset({"messages", "tools", "add_generation_prompt", "raise_exception", "strftime_now"})


class _Refused(Exception):
    """The template itself refused the conversation."""


class ChatTemplate:
    """A compiled template. Thread-safe.

    special_tokens  bos_token, eos_token, … as the template names them
    max_bytes       of the rendered text
    raises          ServingError MODEL_INVALID for a template that does not compile
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str], max_bytes: int) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, autoescape=False)
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        environment.add_extension("jinja2.ext.loopcontrols")
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise model_invalid(f"the chat template does not compile: {error.message}") from None
        self._special_tokens = dict(special_tokens)
        self._max_bytes = max_bytes

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        values: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
        field: str = "chat",
    ) -> str:
        """The text of the conversation, special tokens written out.

        messages  each with "role" and "content", and what else the template reads
        values    more names for the template, never those it is given here
        raises    ServingError INVALID_INPUT where the template refuses or cannot read the messages, or is too long
        """
        taken = sorted(_RESERVED.intersection(values or {}))
        if taken:
            raise invalid_input(f"{field}.template_values.{taken[0]}", "this name is set by the request itself")
        pieces: list[str] = []
        left, limit = self._max_bytes, time.monotonic() + _LIMIT_S
        try:
            for piece in self._template.generate(
                **{**self._special_tokens, **(values or {})},
                messages=[dict(message) for message in messages],
                tools=[dict(tool) for tool in tools] or None,
                add_generation_prompt=add_generation_prompt,
            ):
                pieces.append(piece)
                left -= len(piece.encode())
                if left < 0:
                    raise invalid_input(field, f"more than {self._max_bytes} bytes after the template, the limit")
                if time.monotonic() > limit:
                    raise invalid_input(field, f"the template took more than {_LIMIT_S:g} s, the limit")
        except _Refused as error:
            raise invalid_input(field, f"the model's chat template refuses it: {error}") from None
        except ServingError:
            raise
        except Exception as error:
            # What jinja says of the caller's values is of use to the caller: it names neither paths nor our own lines.
            what = str(error) if isinstance(error, jinja2.TemplateError) else type(error).__name__
            raise invalid_input(field, f"the model's chat template cannot read it: {what[:200]}") from None
        return "".join(pieces)


def _refuse(message: str) -> NoReturn:
    raise _Refused(str(message)[:200])


def _now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As Hugging Face's templates expect it: unlike jinja's own filter it escapes nothing for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
