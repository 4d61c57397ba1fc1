"""How large activations become in each channel, found by reading a few short texts with the unrounded weights.

A forward pass in NumPy, one layer's weights in memory at a time. Only its maxima are used, to choose scales by: nothing
depends on its last digits.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.gguf.llama import LlamaConfig, rope_caches

__all__ = ["DecoderWeights", "LayerActivations", "calibration_texts", "measure_activations"]

Floats = npt.NDArray[np.float32]

_TEXTS = "data/calibration-texts.json"


class DecoderWeights(Protocol):
    """A llama's weights by the file's names, without `.weight`; matrices as f32[outputs, inputs]."""

    def vector(self, name: str) -> Floats: ...

    def matrix(self, names: Sequence[str]) -> Floats: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerActivations:
    """Of one layer, the largest absolute value in each channel of what its linear layers read, f32[channels]."""

    attention: Floats  # queries, keys and values read it
    attended: Floats  # the attention's output layer reads it
    feed_forward: Floats  # gate and up read it
    down: Floats


def calibration_texts() -> tuple[str, ...]:
    """The texts to read: a templated chat, prose with numbers, code, a table and several scripts."""
    raw = resources.files("headrace_server.prepare").joinpath(_TEXTS).read_text(encoding="utf-8")
    return tuple(json.loads(raw)["texts"])


def measure_activations(
    config: LlamaConfig, weights: DecoderWeights, texts: Sequence[Sequence[int]]
) -> list[LayerActivations]:
    """Maxima over all places of all texts, layer by layer; texts are token ids, at least one, none empty."""
    rows = [np.asarray(ids[: config.max_positions]) for ids in texts]
    ends = np.cumsum([len(ids) for ids in rows])[:-1]
    hidden = weights.matrix(["token_embd"])[np.concatenate(rows)]
    cosines, sines = rope_caches(config)
    measured = []
    for layer in range(config.num_layers):
        name = f"blk.{layer}"

        def linear(value: Floats, *roles: str, name: str = name) -> Floats:
            return value @ weights.matrix([f"{name}.{role}" for role in roles]).T

        attention = _norm(hidden, weights.vector(f"{name}.attn_norm"), config)
        qkv = np.split(linear(attention, "attn_q", "attn_k", "attn_v"), ends)
        attended = np.concatenate([_attend(text, config, cosines, sines) for text in qkv])
        hidden = hidden + linear(attended, "attn_output")
        feed_forward = _norm(hidden, weights.vector(f"{name}.ffn_norm"), config)
        gate, up = np.split(linear(feed_forward, "ffn_gate", "ffn_up"), 2, axis=-1)
        down = gate / (1 + np.exp(-np.clip(gate, -80, None))) * up
        hidden = hidden + linear(down, "ffn_down")
        measured.append(
            LayerActivations(
                attention=_largest(attention),
                attended=_largest(attended),
                feed_forward=_largest(feed_forward),
                down=_largest(down),
            )
        )
    return measured


def _largest(values: Floats) -> Floats:
    return np.asarray(np.abs(values).max(0), np.float32)


def _norm(hidden: Floats, weight: Floats, config: LlamaConfig) -> Floats:
    mean_square = (hidden**2).mean(-1, keepdims=True)
    return np.asarray(hidden / np.sqrt(mean_square + np.float32(config.rms_norm_eps)) * weight, np.float32)


def _attend(qkv: Floats, config: LlamaConfig, cosines: Floats, sines: Floats) -> Floats:
    """Causal grouped-query attention over one text; f32[tokens, heads · head_dim]."""
    length, dim = len(qkv), config.head_dim
    heads = qkv.reshape(length, -1, dim).swapaxes(0, 1)
    queries, keys, values = np.split(heads, [config.num_heads, config.num_heads + config.num_kv_heads])
    cosine, sine = cosines[:length], sines[:length]

    def rotate(value: Floats) -> Floats:
        first, second = value[..., : dim // 2], value[..., dim // 2 :]
        return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)

    group = config.num_heads // config.num_kv_heads
    scores = rotate(queries) @ np.repeat(rotate(keys), group, axis=0).swapaxes(1, 2) * np.float32(dim**-0.5)
    scores = np.where(np.tri(length, dtype=bool), scores, -np.inf)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    attended = shares / shares.sum(-1, keepdims=True) @ np.repeat(values, group, axis=0)
    return np.asarray(attended.swapaxes(0, 1).reshape(length, -1), np.float32)
