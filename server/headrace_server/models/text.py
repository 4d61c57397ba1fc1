"""Texts and pairs of texts for graphs that read token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headrace_server.errors import Reason, ServingError, invalid_input
from headrace_server.models.inputs import Input, TextInput
from headrace_server.models.model import PrepareOptions, Row
from headrace_server.models.rows import nearest, refuse_kind
from headrace_server.models.signature import TensorSpec
from headrace_server.models.tokenizer import TextTokenizer

__all__ = ["TEXT_INPUTS", "Pairs", "TextReader", "check_text"]

Pairs = Literal["refused", "allowed", "required"]

_TEXT, _PAIR = frozenset({"text"}), frozenset({"text_pair"})

TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextReader:
    """Texts to token rows, padded in batches to a multiple of `length_bucket`.

    fixed_length       the graph reads exactly so many tokens; 0: any number
    pairs              whether an input may, must or must not be a pair of texts
    prompt_in_pooling  False: the model pools without its prompt's tokens, which is not built, so prompts are refused
    """

    tokenizer: TextTokenizer
    specs: tuple[TensorSpec, ...]
    max_text_bytes: int
    length_bucket: int = 1
    fixed_length: int = 0
    pairs: Pairs = "refused"
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str = ""
    prompt_in_pooling: bool = True
    lowercase: bool = False

    @property
    def kinds(self) -> frozenset[str]:
        """Texts, pairs of texts, or either."""
        return {"refused": _TEXT, "allowed": _TEXT | _PAIR, "required": _PAIR}[self.pairs]

    def prepare(
        self, inputs: Sequence[Input], options: PrepareOptions, *, field: str = "inputs", first: int = 0
    ) -> list[Row]:
        """Token rows. An empty text is allowed where the tokenizer has special tokens to stand for it.

        raises  INVALID_INPUT: not a text, no Unicode, over the byte limit, a pair that is missing or unwanted, an
                unknown prompt, or over `max_length` tokens when `options.truncate` is False
        """
        if options.truncation_side not in ("", "right", "left"):
            raise invalid_input("truncation.side", f"{options.truncation_side!r}, right or left")
        prompt = self._prompt(options)
        texts: list[str | tuple[str, str]] = []
        for index, given in enumerate(inputs, first):
            where = f"{field}[{index}]"
            if not isinstance(given, TextInput):
                raise refuse_kind(where, given, self.kinds)
            texts.append(self._text(given, prompt, where))
        encoded = self.tokenizer.encode(texts, side=options.truncation_side)
        rows = []
        for index, item in enumerate(encoded, first):
            where = f"{field}[{index}].{'text' if isinstance(texts[index - first], str) else 'text_pair'}"
            if item.truncated and not options.truncate:
                limit = self.tokenizer.max_length
                raise invalid_input(where, f"{item.num_tokens} tokens, limit {limit}", limit=limit)
            if not len(item.ids):
                raise invalid_input(where, "0 tokens, at least 1: this model has no token for an empty text")
            rows.append(self._row(item.ids, item.type_ids, item.truncated, item.num_tokens))
        return rows

    def collate(self, rows: Sequence[Row]) -> dict[str, npt.NDArray[Any]]:
        longest = max(row.length for row in rows)
        if self.fixed_length:
            padded = self.fixed_length
        elif self._pads:
            padded = -(-longest // self.length_bucket) * self.length_bucket
            if self.tokenizer.max_length:
                padded = max(longest, min(padded, self.tokenizer.max_length))
        else:
            padded = longest
        feeds = {}
        for spec in self.specs:
            fill = self.tokenizer.pad_id if spec.name == "input_ids" else 0
            batch = np.full((len(rows), padded), fill, dtype=spec.dtype)
            for at, row in enumerate(rows):
                batch[at, : row.length] = row.arrays[spec.name]
            feeds[spec.name] = batch
        return feeds

    @property
    def _pads(self) -> bool:
        return any(spec.name == "attention_mask" for spec in self.specs)

    def _row(self, ids: npt.NDArray[np.int64], types: npt.NDArray[np.int64], truncated: bool, num_tokens: int) -> Row:
        length = len(ids)
        arrays: dict[str, npt.NDArray[Any]] = {}
        for spec in self.specs:
            match spec.name:
                case "input_ids":
                    arrays[spec.name] = ids
                case "attention_mask":
                    arrays[spec.name] = np.ones(length, dtype=np.int64)
                case "token_type_ids":
                    arrays[spec.name] = types
                case "position_ids":
                    arrays[spec.name] = np.arange(length, dtype=np.int64)
        # A graph without a mask cannot tell padding from text: only equal lengths share a batch.
        key = () if self._pads or self.fixed_length else ("length", length)
        return Row(arrays, length=length, shape_key=key, truncated=truncated, num_units=num_tokens)

    def _text(self, given: TextInput, prompt: str, where: str) -> str | tuple[str, str]:
        pair = given.pair
        if pair is None:
            if self.pairs == "required":
                raise invalid_input(f"{where}.text_pair", "missing, this model scores a pair of texts")
            check_text(given.text, f"{where}.text", self.max_text_bytes)
            text = prompt + given.text
            return text.lower() if self.lowercase else text
        if self.pairs == "refused":
            raise invalid_input(f"{where}.text_pair", "a pair, this model reads one text")
        check_text(given.text, f"{where}.text_pair.text", self.max_text_bytes)
        check_text(pair, f"{where}.text_pair.pair", self.max_text_bytes)
        text = prompt + given.text
        return (text.lower(), pair.lower()) if self.lowercase else (text, pair)

    def _prompt(self, options: PrepareOptions) -> str:
        name = options.prompt_name
        if name and options.prompt:
            raise invalid_input("prompt", "given together with prompt_name, give one of them")
        if options.prompt:
            check_text(options.prompt, "prompt", self.max_text_bytes)
            prompt = options.prompt
        elif name:
            if name not in self.prompts:
                hint = f"the nearest is {nearest(name, self.prompts)!r}" if self.prompts else "this model has none"
                raise invalid_input("prompt_name", f"{name!r} is no prompt of this model, {hint}")
            prompt = self.prompts[name]
        else:
            prompt = self.prompts.get(self.default_prompt_name, "")
        if prompt and not self.prompt_in_pooling:
            raise ServingError(
                Reason.UNSUPPORTED,
                "this model leaves its prompt out of pooling, which is not supported: ask without a prompt",
            )
        return prompt


def check_text(text: object, where: str, max_bytes: int) -> None:
    """Refuses what is no text, no Unicode, or over `max_bytes` in UTF-8."""
    if not isinstance(text, str):
        raise invalid_input(where, f"{type(text).__name__}, a text is expected")
    try:
        size = len(text) if text.isascii() else len(text.encode())
    except UnicodeEncodeError as error:
        raise invalid_input(where, f"not valid Unicode, a lone surrogate at character {error.start}") from None
    if size > max_bytes:
        raise invalid_input(where, f"{size} bytes, limit {max_bytes}", limit=max_bytes)
