"""How a text generator's folder says its texts are to be made: ends, defaults, special tokens, chat template."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headrace_server.models.folder import model_invalid
from headrace_server.models.generation import GenerationDefaults
from headrace_server.models.source import Source

__all__ = ["chat_template", "end_ids", "generation_defaults", "generation_settings", "not_applied", "special_tokens"]

# Settings of transformers that change what is generated and have no counterpart here, and their values of no effect.
_NOT_APPLIED: dict[str, tuple[Any, ...]] = {
    "forced_bos_token_id": (None,),
    "forced_decoder_ids": (None,),
    "no_repeat_ngram_size": (None, 0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "min_length": (None, 0),
    "num_beam_groups": (None, 1),
}
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")


def generation_settings(source: Source) -> Mapping[str, Any]:
    """How texts are made: generation_config.json, else the search of genai_config.json."""
    if "generation_config.json" in source.files or "genai_config.json" not in source.files:
        return source.files.read_optional_json("generation_config.json")
    search = source.files.read_json("genai_config.json").get("search")
    return search if isinstance(search, dict) else {}


def end_ids(settings: Mapping[str, Any], file: str) -> frozenset[int]:
    value = settings.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(token, int) and not isinstance(token, bool) and token >= 0 for token in ids):
        raise model_invalid(f"{file}: eos_token_id: {value!r}, a token or a list of tokens is expected")
    return frozenset(ids)


def chat_template(source: Source) -> str:
    """chat_template.jinja, or tokenizer_config.json's; of several the one named "default"."""
    if "chat_template.jinja" in source.files:
        return source.files.read_bytes("chat_template.jinja", 1024 * 1024).decode(errors="replace")
    found = source.files.read_optional_json("tokenizer_config.json").get("chat_template")
    if isinstance(found, list):
        by_name = {item.get("name"): item.get("template") for item in found if isinstance(item, dict)}
        found = by_name.get("default")
    return found if isinstance(found, str) else ""


def special_tokens(source: Source) -> dict[str, str]:
    tokens: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        settings = source.files.read_optional_json(file)
        for name in _SPECIAL:
            token = settings.get(name)
            if isinstance(token, dict):
                token = token.get("content")
            if isinstance(token, str):
                tokens[name] = token
    return tokens


def generation_defaults(settings: Mapping[str, Any]) -> GenerationDefaults:
    """generation_config.json's; values that make no sense are left out rather than refused: they are but defaults."""

    def number(key: str, low: float, high: float, default: float) -> float:
        value = settings.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            return default
        return float(value)

    drawn = settings.get("do_sample") is True
    defaults = GenerationDefaults(
        repetition_penalty=number("repetition_penalty", 0.01, 10, 1.0),
        num_beams=int(number("num_beams", 1, 16, 1)),
        length_penalty=number("length_penalty", -10, 10, 1.0),
        forbidden=_forbidden(settings),
    )
    if not drawn:
        return defaults
    return replace(
        defaults,
        temperature=number("temperature", 0.01, 100, 1.0),
        top_k=int(number("top_k", 0, 1_000_000, 50)),
        top_p=number("top_p", 0.0001, 1, 1.0),
        min_p=number("min_p", 0, 1, 0.0),
    )


def not_applied(settings: Mapping[str, Any]) -> list[str]:
    """Settings that say something and have no counterpart here, as "no_repeat_ngram_size: 3"."""
    said = [key for key, idle in _NOT_APPLIED.items() if key in settings and settings[key] not in idle]
    words = settings.get("bad_words_ids")
    if isinstance(words, list) and any(isinstance(word, list) and len(word) > 1 for word in words):
        said.append("bad_words_ids")
    return [f"{key}: {str(settings[key])[:60]}" for key in said]


def _forbidden(settings: Mapping[str, Any]) -> frozenset[int]:
    """Tokens that are never to be said (Marian's padding): suppress_tokens, and bad words of one token."""
    tokens = settings.get("suppress_tokens")
    words = settings.get("bad_words_ids")
    found = [*tokens] if isinstance(tokens, list) else []
    for word in words if isinstance(words, list) else []:
        if isinstance(word, list) and len(word) == 1:
            found += word
    return frozenset(token for token in found if isinstance(token, int) and token >= 0)
