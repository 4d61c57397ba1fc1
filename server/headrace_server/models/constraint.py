"""Forms that a generated text must have: JSON schemas, regular expressions, grammars and lists, as masks over tokens.

A ConstraintCompiler belongs to a model, whose tokens it can spell; of a form it makes a TokenMatcher, the state of one
sequence, which says at each place which tokens may come next.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import llguidance
import llguidance.numpy
import numpy as np
import numpy.typing as npt

from headrace_server.errors import Reason, ServingError, invalid_input

__all__ = ["ConstraintCompiler", "ConstraintSpec", "TokenMatcher"]

# Between JSON's signs: with any white space allowed, small models write nothing else until their tokens are used up.
_JSON_DEFAULTS: Any = {"whitespace_pattern": r"\n? {0,16}"}


@dataclass(frozen=True, slots=True)
class ConstraintSpec:
    """A form. `text` is the schema, expression or grammar; `choices` the texts to choose among."""

    kind: Literal["json_schema", "json_object", "regex", "grammar", "choices"]
    text: str = ""
    choices: tuple[str, ...] = ()


class TokenMatcher:
    """Where one sequence stands in its form. One thread; see serving's TokenConstraint."""

    __slots__ = ("_mask", "_matcher", "_vocabulary_size")

    def __init__(self, matcher: Any, vocabulary_size: int) -> None:
        self._matcher = matcher
        self._vocabulary_size = vocabulary_size
        self._mask = llguidance.numpy.allocate_token_bitmask(1, vocabulary_size)

    def allowed(self) -> npt.NDArray[np.uint32]:
        llguidance.numpy.fill_next_token_bitmask(self._matcher, self._mask, 0)
        mask: npt.NDArray[np.uint32] = self._mask[0].view(np.uint32)
        return mask

    def accept(self, token: int) -> None:
        if not self._matcher.consume_token(token):
            raise ServingError(
                Reason.INTERNAL, "the constraint refused a token that it had allowed", detail=self._matcher.get_error()
            )

    def copy(self) -> TokenMatcher:
        """Another sequence's, at the same place of the same form, which is not compiled again."""
        return TokenMatcher(self._matcher.deep_copy(), self._vocabulary_size)

    @property
    def complete(self) -> bool:
        return bool(self._matcher.is_stopped())


class ConstraintCompiler:
    """Makes matchers for one model. Thread-safe; the vocabulary is read when the first constraint comes.

    definition       the content of tokenizer.json
    vocabulary_size  columns of the model's logits
    end_ids          tokens that end a text: allowed where the form is complete
    """

    def __init__(self, definition: str, *, vocabulary_size: int, end_ids: Sequence[int]) -> None:
        self._definition = definition
        self._vocabulary_size = vocabulary_size
        self._end_ids = sorted(end_ids)
        self._tokenizer: Any = None
        self._lock = threading.Lock()

    def compile(self, spec: ConstraintSpec, *, field: str = "constraint") -> TokenMatcher:
        """The state of a fresh sequence. Raises ServingError INVALID_INPUT with the reason for an invalid one."""
        path = f"{field}.{spec.kind}"
        try:
            grammar = _grammar(spec)
        except ValueError as error:
            raise invalid_input(path, str(error)) from None
        except RecursionError:
            raise invalid_input(path, "nested too deeply") from None
        matcher = llguidance.LLMatcher(self._vocabulary(), grammar, log_level=0)
        if matcher.is_error():
            raise invalid_input(path, _reason(matcher.get_error()))
        return TokenMatcher(matcher, self._vocabulary_size)

    def _vocabulary(self) -> Any:
        with self._lock:
            if self._tokenizer is None:
                self._tokenizer = llguidance.LLTokenizer(
                    self._definition, n_vocab=self._vocabulary_size, eos_token=self._end_ids or None
                )
            return self._tokenizer


def _grammar(spec: ConstraintSpec) -> str:
    matcher = llguidance.LLMatcher
    match spec.kind:
        case "json_schema":
            schema = json.loads(spec.text)
            if not isinstance(schema, dict):
                raise ValueError("a JSON schema is an object")
            return str(matcher.grammar_from_json_schema(schema, _JSON_DEFAULTS))
        case "json_object":
            return str(matcher.grammar_from_json_schema({"type": "object"}, _JSON_DEFAULTS))
        case "regex":
            return str(matcher.grammar_from_regex(spec.text))
        case "grammar":
            return str(matcher.grammar_from_lark(spec.text))
        case "choices":
            return str(matcher.grammar_from_lark("start: " + " | ".join(json.dumps(text) for text in spec.choices)))


def _reason(text: str) -> str:
    """The compiler's own words, without its location and in one line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return " ".join(lines)[:500] or "it cannot be compiled"
