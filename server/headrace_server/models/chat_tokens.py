"""ChatTokens: a conversation to the tokens that the model goes on from; what a caller wrote stays text.

A template writes control tokens such as <|im_start|> into its text, and the tokenizer knows them by their spelling. So
it would those that stand in a message, and whoever writes a message could end it and begin one in another's name.

    messages ─▶ template ─▶ text ──────────────────────────────▶ tokens           nothing of the kind in the messages
        └▶ with signs for the spellings ─▶ template ─▶ text ─▶ parts ─▶ tokens    else

The signs are characters that occur nowhere else. Whatever control token then stands in the text is the template's own;
the parts between are encoded without looking for any, the spellings put back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from headrace_server.models.chat import ChatTemplate
from headrace_server.models.tokenizer import TextTokenizer

__all__ = ["ChatTokens"]

_FIRST_SIGN, _LAST_SIGN = 0xE000, 0xF8FF  # of private use
_HARMLESS = "x"


class ChatTokens:
    """A model's template and tokenizer. Thread-safe."""

    def __init__(self, template: ChatTemplate, tokenizer: TextTokenizer) -> None:
        self._template = template
        self._tokenizer = tokenizer
        added = tokenizer.tokenizer.get_added_tokens_decoder()
        self._added = {token.content: number for number, token in added.items()}
        self._control = _one_of([token.content for token in added.values() if token.special])
        self._border = _one_of(list(self._added))
        # Where a token takes blanks with it, or wants to stand alone, its spelling does not say where it is one.
        self._spelt_out = not any(token.lstrip or token.rstrip or token.single_word for token in added.values())

    def read(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
        values: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> tuple[str, list[int]]:
        """The conversation's text, and its tokens. Arguments and errors as `ChatTemplate.render`.

        Where the template changes what callers wrote, or the tokenizer does more than to look for spellings, control
        tokens in messages cannot be told from the template's, and count.
        """

        def render(given: tuple[Any, Any, Any]) -> str:
            messages, tools, values = given
            return self._template.render(
                messages, tools=tools, values=values, add_generation_prompt=add_generation_prompt
            )

        given = (list(messages), list(tools), dict(values or {}))
        text = render(given)
        spelt = self._spelt_in(given)
        signs = _signs(spelt, given, text)
        if signs:
            marked = render(_changed(given, re.compile(_either(spelt)), signs))
            spellings = {sign: spelling for spelling, sign in signs.items()}
            if _put(marked, spellings) == text:
                ids = self._encode_parts(marked, spellings)
                if ids is not None:
                    return text, ids
        return text, self._tokenizer.ids(text, add_special_tokens=False)

    def _spelt_in(self, given: Any) -> list[str]:
        """The control tokens that callers spelt out; none where they cannot be kept apart."""
        if self._control is None or not self._spelt_out:
            return []
        return sorted({found for text in _strings(given) for found in self._control.findall(text)})

    def _encode_parts(self, marked: str, spellings: Mapping[str, str]) -> list[int] | None:
        """Tokens of a text in which signs stand for `spellings`; None where this tokenizer does not work by parts."""
        harmless = dict.fromkeys(spellings, _HARMLESS)
        whole = self._tokenizer.ids(_put(marked, harmless), add_special_tokens=False)
        if self._by_parts(marked, harmless) != whole:
            return None
        return self._by_parts(marked, spellings)

    def _by_parts(self, marked: str, spellings: Mapping[str, str]) -> list[int]:
        assert self._border is not None, "there is a control token"
        ids: list[int] = []
        at = 0
        for border in self._border.finditer(marked):
            ids += self._part(marked[at : border.start()], spellings)
            ids.append(self._added[border[0]])
            at = border.end()
        return ids + self._part(marked[at:], spellings)

    def _part(self, part: str, spellings: Mapping[str, str]) -> list[int]:
        if not part:
            return []
        text = _put(part, spellings)
        return self._tokenizer.ids(part, add_special_tokens=False) if text == part else self._tokenizer.plain_ids(text)


def _either(spellings: Sequence[str]) -> str:
    return "|".join(re.escape(each) for each in sorted(spellings, key=len, reverse=True))


def _one_of(spellings: Sequence[str]) -> re.Pattern[str] | None:
    return re.compile(_either(spellings)) if spellings else None


def _signs(spelt: Sequence[str], given: Any, text: str) -> dict[str, str]:
    """A character for each spelling, of those that occur nowhere; nothing where there are not enough."""
    if not spelt:
        return {}
    taken = set(text).union(*_strings(given))
    free = [sign for sign in map(chr, range(_FIRST_SIGN, _LAST_SIGN + 1)) if sign not in taken]
    return dict(zip(spelt, free, strict=False)) if len(free) >= len(spelt) else {}


def _put(text: str, by_sign: Mapping[str, str]) -> str:
    """The text with each sign replaced."""
    return text.translate({ord(sign): replaced for sign, replaced in by_sign.items()})


def _strings(value: Any) -> Iterator[str]:
    """Every text inside what a caller gave."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _strings(key)
            yield from _strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _strings(inner)


def _changed(value: Any, pattern: re.Pattern[str], signs: Mapping[str, str]) -> Any:
    """A copy in which signs stand for what the pattern finds."""
    if isinstance(value, str):
        return pattern.sub(lambda found: signs[found[0]], value)
    if isinstance(value, Mapping):
        return {_changed(key, pattern, signs): _changed(inner, pattern, signs) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_changed(inner, pattern, signs) for inner in value]
    return value
