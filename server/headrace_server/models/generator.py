"""Generator: all that a text generator's folder means: how texts become tokens and tokens become text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace_server.models.chat import ChatTemplate
from headrace_server.models.chat_tokens import ChatTokens
from headrace_server.models.constraint import ConstraintCompiler
from headrace_server.models.detokenizer import Detokenizer
from headrace_server.models.generation import GenerationSpec
from headrace_server.models.generator_folder import read_generator
from headrace_server.models.source import Source
from headrace_server.models.tokenizer import TextTokenizer

__all__ = ["Generator", "open_generator"]


@dataclass(frozen=True, slots=True)
class Generator:
    """The meaning around a decoder's graph, for one model. Thread-safe.

    chat  None: the model has no chat template
    """

    spec: GenerationSpec
    tokenizer: TextTokenizer
    chat: ChatTokens | None
    constraints: ConstraintCompiler
    _texts: dict[int, str] = field(default_factory=dict, repr=False)  # of tokens, as they come up

    def detokenizer(self, prompt: Sequence[int], *, keep_special_tokens: bool) -> Detokenizer:
        """A fresh one, for the tokens that follow `prompt`."""
        return Detokenizer(self.tokenizer.tokenizer, prompt, keep_special_tokens=keep_special_tokens)

    def token_text(self, token: int) -> str:
        """The text of one token by itself; U+FFFD where its bytes are a part of a character."""
        text = self._texts.get(token)
        if text is None:
            text = self._texts[token] = self.tokenizer.tokenizer.decode([token], skip_special_tokens=False)
        return text


def open_generator(source: Source) -> Generator:
    """The folder's generator. Raises ServingError MODEL_INVALID for a folder that cannot be served so."""
    spec = read_generator(source)
    definition = source.files.read_bytes("tokenizer.json").decode(errors="replace")
    tokenizer = TextTokenizer(definition)
    chat = None
    if spec.chat_template:
        template = ChatTemplate(
            spec.chat_template, special_tokens=spec.special_tokens, max_bytes=spec.policy.max_chat_bytes
        )
        chat = ChatTokens(template, tokenizer)
    return Generator(
        spec,
        tokenizer,
        chat,
        ConstraintCompiler(definition, vocabulary_size=spec.vocabulary_size, end_ids=sorted(spec.end_ids)),
    )
