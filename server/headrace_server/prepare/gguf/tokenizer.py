"""tokenizer.json and tokenizer_config.json from a GGUF file's vocabulary, merges and chat template.

A GGUF file names its pre-tokenizer (how a text is cut before merges apply) by one word, `tokenizer.ggml.pre`; what each
word stands for is written here, as that family's own tokenizer.json has it. A word that is not here is refused: a
tokenizer that is nearly right gives answers that are nearly right.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from headrace_server.prepare.gguf.llama import unsupported
from headrace_server.prepare.gguf.reader import GgufFile, gguf_error

__all__ = ["GgufTokenizer"]

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5
_MAX_TEMPLATE_CHARACTERS = 1 << 20

# How GPT-4's family cuts: contractions, words with at most one mark before, up to three digits, marks, white space.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_PreTokenizers = Sequence[pre_tokenizers.PreTokenizer]


def _gpt2() -> _PreTokenizers:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


def _single_digits() -> _PreTokenizers:
    return [pre_tokenizers.Digits(individual_digits=True), *_gpt2()]


def _llama3() -> _PreTokenizers:
    return [
        pre_tokenizers.Split(Regex(_LLAMA3_WORDS), behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]


_CUTS: dict[str, Callable[[], _PreTokenizers]] = {
    "default": _gpt2,
    "gpt-2": _gpt2,
    "smollm": _single_digits,
    "starcoder": _single_digits,
    "refact": _single_digits,
    "command-r": _single_digits,
    "llama-bpe": _llama3,
    "llama3": _llama3,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufTokenizer:
    """The file's tokenizer. Ids are None where the file names none; `eos_id` must be there: generation ends with it."""

    tokenizer: Tokenizer
    tokens: Sequence[str]
    bos_id: int | None
    eos_id: int
    pad_id: int | None
    unknown_id: int | None
    end_ids: tuple[int, ...]
    adds_bos: bool
    chat_template: str
    max_length: int

    @classmethod
    def read(cls, file: GgufFile, *, vocab_size: int, max_length: int) -> GgufTokenizer:
        """The tokenizer in the file's metadata.

        raises  PrepareError where it is not byte-level BPE of a known kind, or its lists do not fit each other
        """
        facts = file.metadata
        kind, cut = facts.get("tokenizer.ggml.model"), facts.get("tokenizer.ggml.pre", "default")
        if kind != "gpt2":
            raise unsupported(file.name, f"tokenizer {kind!r:.40}, only byte-level BPE ('gpt2') is converted")
        if cut not in _CUTS:
            raise unsupported(file.name, f"pre-tokenizer {cut!r:.40}, known are {', '.join(sorted(_CUTS))}")
        tokens = _strings(file, "tokenizer.ggml.tokens")
        if len(tokens) != vocab_size or len(set(tokens)) != len(tokens):
            raise gguf_error(
                file.name,
                f"{len(tokens)} tokens, {len(set(tokens))} of them different, for a vocabulary of {vocab_size}",
            )
        eos_id = _token_id(file, "eos", vocab_size)
        if eos_id is None:
            raise gguf_error(file.name, "metadata tokenizer.ggml.eos_token_id is missing")
        bos_id = _token_id(file, "bos", vocab_size)
        template = facts.get("tokenizer.chat_template", "")
        if not isinstance(template, str) or len(template) > _MAX_TEMPLATE_CHARACTERS:
            raise gguf_error(
                file.name, f"metadata tokenizer.chat_template is no text of at most {_MAX_TEMPLATE_CHARACTERS}"
            )
        adds_bos = (
            facts.get("tokenizer.ggml.add_bos_token", cut in ("llama-bpe", "llama3")) is True and bos_id is not None
        )
        others = (_token_id(file, name, vocab_size) for name in ("eot", "eom"))
        return cls(
            tokenizer=_bpe(file, tokens, _CUTS[cut](), prefix=bos_id if adds_bos else None),
            tokens=tokens,
            bos_id=bos_id,
            eos_id=eos_id,
            pad_id=_token_id(file, "padding", vocab_size),
            unknown_id=_token_id(file, "unknown", vocab_size),
            end_ids=tuple(dict.fromkeys([eos_id, *(other for other in others if other is not None)])),
            adds_bos=adds_bos,
            chat_template=template,
            max_length=max_length,
        )

    def json(self) -> str:
        """tokenizer.json."""
        text: str = self.tokenizer.to_str()
        return text

    def config_json(self) -> str:
        """tokenizer_config.json, the chat template included."""
        named = {"bos": self.bos_id, "eos": self.eos_id, "pad": self.pad_id, "unk": self.unknown_id}
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= {f"{name}_token": self.tokens[token] for name, token in named.items() if token is not None}
        config |= {
            "add_bos_token": self.adds_bos,
            "add_prefix_space": False,
            "clean_up_tokenization_spaces": False,
            "model_max_length": self.max_length,
        }
        if self.chat_template:
            config["chat_template"] = self.chat_template
        return json.dumps(config, ensure_ascii=False, indent=1)


def _strings(file: GgufFile, key: str) -> list[str]:
    values = file.metadata.get(key)
    if not isinstance(values, list):
        raise gguf_error(file.name, f"metadata {key} is {'missing' if values is None else 'no list of strings'}")
    return values


def _token_id(file: GgufFile, name: str, vocab_size: int) -> int | None:
    key = f"tokenizer.ggml.{name}_token_id"
    value = file.metadata.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < vocab_size):
        raise gguf_error(file.name, f"metadata {key} is {value!r:.40}, 0 to {vocab_size - 1} are tokens")
    return value


def _bpe(file: GgufFile, tokens: Sequence[str], cuts: _PreTokenizers, *, prefix: int | None) -> Tokenizer:
    pieces = [merge.split(" ") for merge in _strings(file, "tokenizer.ggml.merges")]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    for merge in pieces:
        if len(merge) != 2 or any(piece not in vocabulary for piece in (*merge, "".join(merge))):
            raise gguf_error(file.name, f"merge {' '.join(merge)!r:.60} is no pair of tokens that make a token")
    kinds = file.metadata.get("tokenizer.ggml.token_type")
    kinds = [_NORMAL] * len(tokens) if kinds is None else list(kinds)
    if len(kinds) != len(tokens):
        raise gguf_error(file.name, f"{len(kinds)} token types for {len(tokens)} tokens")
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in pieces]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(cuts))
    tokenizer.decoder = decoders.ByteLevel()
    if prefix is None:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    else:
        begin = tokens[prefix]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A", pair=f"{begin} $A {begin}:1 $B:1", special_tokens=[(begin, prefix)]
        )
    for kind, special in ((_CONTROL, True), (_UNKNOWN, True), (_USER_DEFINED, False)):
        added = [
            AddedToken(token, special=special, normalized=False)
            for token, own in zip(tokens, kinds, strict=True)
            if own == kind
        ]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    return tokenizer
