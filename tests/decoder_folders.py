"""A small llama with random weights: its folder, as it would be served, and its logits worked out in NumPy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import byte_tokenizer
import numpy as np
import numpy.typing as npt

from headrace_server.prepare.gguf.decoder import DecoderBuilder
from headrace_server.prepare.gguf.linear import Precision
from headrace_server.prepare.gguf.llama import LlamaConfig, LlamaWeights

__all__ = ["CONTEXT", "TEMPLATE", "VOCABULARY", "SmallLlama", "write_decoder"]

Floats = npt.NDArray[np.float32]
CONTEXT = 256
VOCABULARY = 272  # some more columns than the tokenizer has tokens, as in many exports
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
_CONFIG = LlamaConfig(
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    hidden_size=64,
    intermediate_size=96,
    vocab_size=VOCABULARY,
    max_positions=CONTEXT,
    rope_theta=10_000.0,
    rope_factors=np.ones(8, np.float32),
    rms_norm_eps=1e-5,
    tied=False,
)


class SmallLlama:
    """Weights by name, the same for the same seed; stands where LlamaWeights reads a file."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._kept: dict[str, Floats] = {}

    def vector(self, name: str) -> Floats:
        return (1 + 0.1 * self._random(name, (_CONFIG.hidden_size,))).astype(np.float32)

    def matrix(self, names: Sequence[str]) -> Floats:
        return np.concatenate([self._one(name) for name in names])

    def logits(self, tokens: Sequence[int]) -> npt.NDArray[np.float64]:
        """f64[t, v] of every place of one sequence."""
        rows = len(tokens)
        hidden = self._wide("token_embd")[np.asarray(tokens)]
        for layer in range(_CONFIG.num_layers):
            at = f"blk.{layer}."
            normed = self._norm(hidden, at + "attn_norm")
            queries = self._rotated(normed @ self._wide(at + "attn_q").T)
            keys = self._rotated(normed @ self._wide(at + "attn_k").T)
            values = (normed @ self._wide(at + "attn_v").T).reshape(rows, _CONFIG.num_kv_heads, _CONFIG.head_dim)
            group = _CONFIG.num_heads // _CONFIG.num_kv_heads
            keys, values = keys.repeat(group, axis=1), values.repeat(group, axis=1)
            scores = np.einsum("qhd,khd->hqk", queries, keys) / np.sqrt(_CONFIG.head_dim)
            scores[:, np.triu(np.ones((rows, rows), bool), 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            attended = np.einsum("hqk,khd->qhd", weights, values).reshape(rows, -1)
            hidden = hidden + attended @ self._wide(at + "attn_output").T
            normed = self._norm(hidden, at + "ffn_norm")
            gate = normed @ self._wide(at + "ffn_gate").T
            gate = gate / (1 + np.exp(-gate)) * (normed @ self._wide(at + "ffn_up").T)
            hidden = hidden + gate @ self._wide(at + "ffn_down").T
        logits: npt.NDArray[np.float64] = self._norm(hidden, "output_norm") @ self._wide("output").T
        return logits

    def greedy(self, prompt: Sequence[int], count: int) -> list[int]:
        """The likeliest token, `count` times: each costs all before it, so this is for short texts."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tokens)[-1].argmax()))
        return tokens[len(prompt) :]

    def is_greedy(self, prompt: Sequence[int], tokens: Sequence[int]) -> bool:
        """Whether each of `tokens` is the likeliest after those before it."""
        likeliest = self.logits([*prompt, *tokens])[len(prompt) - 1 : -1].argmax(axis=-1)
        return likeliest.tolist() == list(tokens)

    def _wide(self, name: str) -> npt.NDArray[np.float64]:
        return self._one(name).astype(np.float64)

    def _one(self, name: str) -> Floats:
        if name not in self._kept:
            self._kept[name] = self._made(name)
        return self._kept[name]

    def _made(self, name: str) -> Floats:
        hidden, wide = _CONFIG.hidden_size, _CONFIG.intermediate_size
        queries, keys = _CONFIG.num_heads * _CONFIG.head_dim, _CONFIG.num_kv_heads * _CONFIG.head_dim
        shapes = {
            "token_embd": (VOCABULARY, hidden), "output": (VOCABULARY, hidden), "attn_q": (queries, hidden),
            "attn_k": (keys, hidden), "attn_v": (keys, hidden), "attn_output": (hidden, queries),
            "ffn_gate": (wide, hidden), "ffn_up": (wide, hidden), "ffn_down": (hidden, wide),
        }  # fmt: skip
        shape = shapes[name.rpartition(".")[2]]
        return (self._random(name, shape) * (3.0 / np.sqrt(shape[1]))).astype(np.float32)

    def _random(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
        words = [self._seed, *name.encode()]
        return np.random.default_rng(words).standard_normal(shape)

    def _norm(self, hidden: npt.NDArray[np.float64], name: str) -> npt.NDArray[np.float64]:
        scale = np.sqrt((hidden**2).mean(axis=-1, keepdims=True) + _CONFIG.rms_norm_eps)
        normed: npt.NDArray[np.float64] = hidden / scale * self.vector(name)
        return normed

    def _rotated(self, flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        half = _CONFIG.head_dim // 2
        heads = flat.reshape(len(flat), -1, _CONFIG.head_dim)
        angles = np.outer(np.arange(len(flat)), _CONFIG.rope_theta ** (-np.arange(half) / half))[:, None]
        first, second = heads[..., :half], heads[..., half:]
        return np.concatenate(
            [first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles)], -1
        )


def write_decoder(folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """The folder of a small fp32 decoder; `settings` are more keys of generation_config.json."""
    folder.mkdir(parents=True)
    weights = cast("LlamaWeights", SmallLlama(seed))
    DecoderBuilder(_CONFIG, weights, Precision.FP32).build().save(folder, {})
    _json(
        folder / "config.json",
        {
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": _CONFIG.num_layers,
            "num_attention_heads": _CONFIG.num_heads,
            "num_key_value_heads": _CONFIG.num_kv_heads,
            "head_dim": _CONFIG.head_dim,
            "vocab_size": VOCABULARY,
            "max_position_embeddings": CONTEXT,
            "eos_token_id": byte_tokenizer.END,
            "headrace": {"cache": "shared_buffer", "precision": "fp32"},
        },
    )
    _json(folder / "generation_config.json", {"eos_token_id": byte_tokenizer.END, **settings})
    _json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>", "chat_template": TEMPLATE})
    (folder / "tokenizer.json").write_text(byte_tokenizer.definition())
    return folder


def _json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
