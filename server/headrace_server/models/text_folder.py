"""Hugging Face style text folders: tokenizer.json, config.json, sentence-transformers' modules.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace_server.models.folder import model_invalid
from headrace_server.models.manifest import MANIFEST_NAME, PoolingMode
from headrace_server.models.source import Source, integer, text_value
from headrace_server.models.text import TEXT_INPUTS, TextReader
from headrace_server.models.tokenizer import TextTokenizer

__all__ = ["SentenceModules", "read_sentence_modules", "read_text", "why_not_text"]

_NO_LIMIT = 1_000_000  # tokenizer_config.json writes "no limit" as 1e30
_DEFAULT_MAX_LENGTH = 512
# Positions of these start after the padding id, so that max_position_embeddings counts two that no token uses.
_OFFSET_POSITIONS = frozenset(
    {"roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "xmod", "data2vec-text"}
)
# In the order in which sentence-transformers joins the vectors of several modes.
_POOLING_KEYS: Mapping[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last_token",
}
_POOLING_WORDS: Mapping[str, PoolingMode] = {"cls": "cls", "max": "max", "mean": "mean", "lasttoken": "last_token"}


@dataclass(frozen=True, slots=True)
class SentenceModules:
    """What modules.json and its companions say."""

    pooling: tuple[PoolingMode, ...]
    normalize: bool
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt_name: str = ""
    max_length: int | None = None
    lowercase: bool = False
    prompt_in_pooling: bool = True


def why_not_text(source: Source) -> str:
    """Why the graph cannot be fed from texts; "" when it can."""
    names = {spec.name for spec in source.inputs}
    if "input_ids" not in names:
        return "the graph has no input_ids"
    if "tokenizer.json" not in source.files:
        return "the folder has no tokenizer.json (save the model's fast tokenizer there)"
    for spec in source.inputs:
        if spec.name not in TEXT_INPUTS:
            return f"input {spec} is not one that a tokenizer fills"
        if spec.dtype not in ("int64", "int32") or len(spec.shape) != 2:
            return f"input {spec} is not [batch, tokens] of int64 or int32"
    return source.has_batch_axis()


def read_sentence_modules(source: Source) -> SentenceModules | None:
    """modules.json read; None without one. Raises MODEL_INVALID for a module that the graph would need and lacks."""
    if "modules.json" not in source.files:
        return None
    modules = source.files.read_json_value("modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise model_invalid("modules.json: a list of modules is expected")
    pooling: tuple[PoolingMode, ...] = ("mean",)
    normalize, whole, in_pooling = False, any(spec.name == "sentence_embedding" for spec in source.outputs), True
    for module in modules:
        kind = (text_value(module, "type", "modules.json") or "").rpartition(".")[2]
        path = text_value(module, "path", "modules.json") or ""
        match kind:
            case "Transformer":
                pass
            case "Pooling":
                name = f"{path}/config.json" if path else "config.json"
                settings = source.files.read_json(name)
                pooling = _pooling(settings, name) if not whole else pooling
                in_pooling = settings.get("include_prompt", True) is not False
            case "Normalize":
                normalize = True
            case _ if whole:
                pass
            case _:
                raise model_invalid(
                    f"modules.json: module {kind!r} is not in the graph; export with a sentence_embedding output"
                )
    shared = source.files.read_optional_json("config_sentence_transformers.json")
    bert = source.files.read_optional_json("sentence_bert_config.json")
    return SentenceModules(
        pooling=pooling,
        normalize=normalize,
        prompts=_prompts(shared),
        default_prompt_name=text_value(shared, "default_prompt_name", "config_sentence_transformers.json") or "",
        max_length=integer(bert, "max_seq_length", "sentence_bert_config.json"),
        lowercase=bert.get("do_lower_case") is True,
        prompt_in_pooling=in_pooling,
    )


def read_text(source: Source, modules: SentenceModules | None) -> TextReader:
    """The reader of the folder's texts. Raises MODEL_INVALID for a tokenizer that cannot be read."""
    settings = source.files.read_optional_json("tokenizer_config.json")
    manifest = source.manifest
    fixed = next((spec.shape[1] for spec in source.inputs if spec.shape[1] > 0), 0)
    try:
        definition = source.files.read_bytes("tokenizer.json").decode()
    except UnicodeDecodeError:
        raise model_invalid("tokenizer.json: not UTF-8; save it again") from None
    max_length = _max_length(source, settings, modules, fixed)
    side = (
        manifest.tokenizer.truncation_side
        or text_value(settings, "truncation_side", "tokenizer_config.json")
        or "right"
    )
    if side not in ("right", "left"):
        raise model_invalid(f"tokenizer_config.json: truncation_side: {side!r}, right or left")
    tokenizer = TextTokenizer(definition, max_length=max_length, truncation_side=side)
    if tokenizer.num_special_tokens >= max_length:
        raise model_invalid(
            f"tokenizer.max_length: {max_length}, more than the {tokenizer.num_special_tokens} special tokens"
        )
    pad_id = _pad_id(source, settings, tokenizer)
    if pad_id is not None:
        tokenizer.pad_id = pad_id
    prompts = dict(modules.prompts) if modules else {}
    prompts.update(manifest.prompts or {})
    default = (
        manifest.default_prompt
        if manifest.default_prompt is not None
        else modules.default_prompt_name
        if modules
        else ""
    )
    if default and default not in prompts:
        raise model_invalid(f"default prompt {default!r} is not among the prompts {', '.join(prompts) or '(none)'}")
    if default:
        source.notes.append(f"texts get the prompt {default!r} unless the caller names another")
    if not any(spec.name == "attention_mask" for spec in source.inputs) and not fixed:
        source.notes.append("the graph has no attention_mask: only texts of equal length share a batch")
    return TextReader(
        tokenizer=tokenizer,
        specs=source.inputs,
        max_text_bytes=source.limits.max_text_bytes,
        length_bucket=source.batching.length_bucket,
        fixed_length=fixed,
        prompts=prompts,
        default_prompt_name=default,
        prompt_in_pooling=modules.prompt_in_pooling if modules else True,
        lowercase=modules.lowercase if modules else False,
    )


def _max_length(source: Source, settings: Mapping[str, Any], modules: SentenceModules | None, fixed: int) -> int:
    positions = None
    for key in ("max_position_embeddings", "n_positions", "max_sequence_length"):
        positions = positions or integer(source.config, key, "config.json")
    if positions is not None and source.config.get("model_type") in _OFFSET_POSITIONS:
        positions -= (integer(source.config, "pad_token_id", "config.json") or 1) + 1
    known = {
        "config.json": positions,
        "tokenizer_config.json": integer(settings, "model_max_length", "tokenizer_config.json"),
        "sentence_bert_config.json": modules.max_length if modules else None,
        "the graph": fixed or None,
    }
    limits = {origin: limit for origin, limit in known.items() if limit is not None and 0 < limit < _NO_LIMIT}
    written = source.manifest.tokenizer.max_length
    if written is not None:
        for origin in ("config.json", "the graph"):
            if written > limits.get(origin, written):
                raise model_invalid(
                    f"{MANIFEST_NAME}: tokenizer.max_length: {written}, limit {limits[origin]} of {origin}"
                )
        source.notes.append(f"texts are cut at {written} tokens, as {MANIFEST_NAME} says")
        return written
    if not limits:
        source.notes.append(f"texts are cut at {_DEFAULT_MAX_LENGTH} tokens, the default: the folder names no limit")
        return _DEFAULT_MAX_LENGTH
    origin = min(limits, key=lambda name: limits[name])
    source.notes.append(f"texts are cut at {limits[origin]} tokens, as {origin} says")
    return limits[origin]


def _pad_id(source: Source, settings: Mapping[str, Any], tokenizer: TextTokenizer) -> int | None:
    found = integer(source.config, "pad_token_id", "config.json")
    if found is not None and found >= 0:
        return found
    special = source.files.read_optional_json("special_tokens_map.json")
    for table in (settings, special):
        token = table.get("pad_token")
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            return tokenizer.token_id(token)
    return None


def _pooling(settings: Mapping[str, Any], name: str) -> tuple[PoolingMode, ...]:
    word = settings.get("pooling_mode")
    if isinstance(word, str):
        if word not in _POOLING_WORDS:
            raise model_invalid(f"{name}: pooling {word!r}, one of {', '.join(_POOLING_WORDS)}")
        return (_POOLING_WORDS[word],)
    for key, value in settings.items():
        if key.startswith("pooling_mode_") and value is True and key not in _POOLING_KEYS:
            raise model_invalid(f"{name}: {key} is not supported, one of {', '.join(_POOLING_KEYS)} is")
    modes = tuple(mode for key, mode in _POOLING_KEYS.items() if settings.get(key) is True)
    return modes or ("mean",)


def _prompts(settings: Mapping[str, Any]) -> dict[str, str]:
    prompts = settings.get("prompts")
    if prompts is None:
        return {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise model_invalid("config_sentence_transformers.json: prompts: a table of name to text is expected")
    return {name: text for name, text in prompts.items() if text}
