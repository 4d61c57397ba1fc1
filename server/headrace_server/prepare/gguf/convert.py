"""convert_gguf: a GGUF file into a decoder folder that can be served."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_server.prepare.gguf.calibrate import DecoderWeights, calibration_texts, measure_activations
from headrace_server.prepare.gguf.decoder import DecoderBuilder
from headrace_server.prepare.gguf.linear import BLOCK, Precision
from headrace_server.prepare.gguf.llama import LlamaConfig, LlamaWeights, unsupported
from headrace_server.prepare.gguf.reader import GgufFile
from headrace_server.prepare.gguf.smoothing import SmoothedWeights
from headrace_server.prepare.gguf.tokenizer import GgufTokenizer

__all__ = ["ConvertedDecoder", "convert_gguf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvertedDecoder:
    """What was made."""

    folder: Path
    precision: Precision
    config: LlamaConfig
    title: str
    licence: str


def convert_gguf(file: GgufFile, folder: Path, *, precision: Precision) -> ConvertedDecoder:
    """Fill an empty, existing folder from `file`: graph, configuration, tokenizer, chat template.

    Everything the file says is checked before anything is written; its numbers are read one weight at a time while the
    graph is, so memory stays at a few times the largest weight.

    raises  PrepareError, one line, where the file is damaged or needs something that is not supported
    """
    config = LlamaConfig.read(file)
    weights = LlamaWeights(file, config)
    tokenizer = GgufTokenizer.read(file, vocab_size=config.vocab_size, max_length=config.max_positions)
    _check_blocks(file.name, config, precision)
    title, licence = (str(file.metadata.get(f"general.{key}", "")) for key in ("name", "license"))
    read: DecoderWeights = weights
    if precision is Precision.RQ8:
        texts = [ids for text in calibration_texts() if (ids := tokenizer.tokenizer.encode(text).ids)]
        read = SmoothedWeights(weights, config, measure_activations(config, weights, texts))
    graph = DecoderBuilder(config, read, precision).build()
    graph.save(folder, {"source": file.name, "precision": precision.value})
    _write_json(folder / "config.json", _config(config, tokenizer, precision))
    _write_json(folder / "generation_config.json", _generation_config(tokenizer))
    (folder / "tokenizer.json").write_text(tokenizer.json(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(tokenizer.config_json(), encoding="utf-8")
    return ConvertedDecoder(folder=folder, precision=precision, config=config, title=title, licence=licence)


def _check_blocks(name: str, config: LlamaConfig, precision: Precision) -> None:
    widths = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
    if precision is not Precision.FP32 and any(width % BLOCK for width in widths):
        raise unsupported(name, f"widths {widths} are no multiples of {BLOCK}; only fp32 can be made of it")


def _config(config: LlamaConfig, tokenizer: GgufTokenizer, precision: Precision) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "rope_theta": config.rope_theta,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": config.tied,
        "headrace": {"cache": "shared_buffer", "precision": precision.value},
    } | _generation_config(tokenizer)


def _generation_config(tokenizer: GgufTokenizer) -> dict[str, Any]:
    ends = tokenizer.end_ids
    named = {"bos_token_id": tokenizer.bos_id, "pad_token_id": tokenizer.pad_id}
    return {name: token for name, token in named.items() if token is not None} | {
        "eos_token_id": ends[0] if len(ends) == 1 else list(ends)
    }


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
