"""LlamaConfig and LlamaWeights: what a GGUF file of a llama must say and hold, checked before it is used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.gguf.reader import GgufFile, GgufTensor, gguf_error

__all__ = ["LlamaConfig", "LlamaWeights", "rope_caches", "unsupported"]

Floats = npt.NDArray[np.float32]

_MAX_LAYERS = 1024
_MAX_WIDTH = 1 << 20
_MAX_CONTEXT = 1 << 18
_MAX_VOCABULARY = 1 << 22


def unsupported(name: str, what: str) -> PrepareError:
    """The file is whole, and needs something that is not converted."""
    return PrepareError(f"{name}: {what}", cure="llama-architecture files without extensions can be converted")


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """A llama's shape and constants.

    max_positions  tokens a sequence may have (the file's context length)
    rope_factors   f32[head_dim // 2]: rotary frequencies are divided by these; 1 where the file scales nothing
    tied           the head's weights are the embedding's
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    rope_theta: float
    rope_factors: Floats
    rms_norm_eps: float
    tied: bool

    @classmethod
    def read(cls, file: GgufFile) -> Self:
        """The configuration in the file's metadata.

        raises  PrepareError for another architecture, a missing or senseless value, and for what is not supported:
                experts, rotary scaling other than linear or by factors, rotary embedding of a part of a head
        """
        facts = _Facts(file)
        architecture = file.metadata.get("general.architecture")
        if architecture != "llama":
            raise unsupported(file.name, f"architecture {architecture!r:.60}, only 'llama' is converted")
        if facts.number("expert_count", default=0):
            raise unsupported(file.name, "a mixture of experts (llama.expert_count)")
        hidden_size = facts.count("embedding_length", _MAX_WIDTH)
        num_heads = facts.count("attention.head_count", hidden_size)
        num_kv_heads = facts.count("attention.head_count_kv", num_heads, default=num_heads)
        head_dim = facts.count("attention.key_length", hidden_size, default=hidden_size // num_heads)
        if num_heads % num_kv_heads or head_dim % 2 or num_heads * head_dim > _MAX_WIDTH:
            raise gguf_error(
                file.name,
                f"{num_heads} heads of {head_dim} over {num_kv_heads} key heads do not divide evenly",
            )
        for key in ("attention.value_length", "rope.dimension_count"):
            if facts.number(key, default=head_dim) != head_dim:
                raise unsupported(
                    file.name, f"llama.{key} is {facts.number(key)}, only the heads' {head_dim} is supported"
                )
        embedding = file.tensors.get("token_embd.weight")
        vocab_size = embedding.shape[0] if embedding is not None else 0
        if not 0 < vocab_size <= _MAX_VOCABULARY:
            raise gguf_error(file.name, f"a vocabulary of {vocab_size} tokens, 1 to {_MAX_VOCABULARY} are supported")
        return cls(
            num_layers=facts.count("block_count", _MAX_LAYERS),
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            hidden_size=hidden_size,
            intermediate_size=facts.count("feed_forward_length", _MAX_WIDTH),
            vocab_size=vocab_size,
            max_positions=facts.count("context_length", _MAX_CONTEXT),
            rope_theta=facts.positive("rope.freq_base", default=10000.0),
            rope_factors=_rope_factors(file, facts, head_dim),
            rms_norm_eps=facts.positive("attention.layer_norm_rms_epsilon"),
            tied="output.weight" not in file.tensors,
        )


class _Facts:
    """The file's `llama.…` metadata by short key."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file

    def number(self, key: str, *, default: float | None = None) -> Any:
        value = self._file.metadata.get(f"llama.{key}", default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            said = "is missing" if value is None else f"is {value!r:.40}, a number is expected"
            raise gguf_error(self._file.name, f"metadata llama.{key} {said}")
        return value

    def count(self, key: str, limit: int, *, default: int | None = None) -> int:
        value = self.number(key, default=default)
        if not isinstance(value, int) or not 1 <= value <= limit:
            raise gguf_error(self._file.name, f"metadata llama.{key} is {value}, 1 to {limit} are supported")
        return value

    def positive(self, key: str, *, default: float | None = None) -> float:
        value = float(self.number(key, default=default))
        if value <= 0:
            raise gguf_error(self._file.name, f"metadata llama.{key} is {value}, more than 0 is expected")
        return value

    def text(self, key: str, *, default: str) -> str:
        value = self._file.metadata.get(f"llama.{key}", default)
        if not isinstance(value, str):
            raise gguf_error(self._file.name, f"metadata llama.{key} is {value!r:.40}, a string is expected")
        return value


def _rope_factors(file: GgufFile, facts: _Facts, head_dim: int) -> Floats:
    scaling = facts.text("rope.scaling.type", default="none")
    factor = facts.positive("rope.scaling.factor", default=1.0)
    if scaling == "none":  # a file of the Llama 3.1 family gives a factor for each frequency as a tensor
        tensor = file.tensors.get("rope_freqs.weight")
        if tensor is None:
            return np.ones(head_dim // 2, np.float32)
        factors = _checked(file.name, tensor, (head_dim // 2,))
        if factors.min() <= 0:
            raise gguf_error(file.name, "tensor rope_freqs.weight holds a factor that is not positive")
        return factors
    if scaling != "linear" or "rope_freqs.weight" in file.tensors:
        raise unsupported(file.name, f"rotary scaling {scaling!r:.40}, only 'linear' and rope_freqs are supported")
    return np.full(head_dim // 2, factor, np.float32)


def rope_caches(config: LlamaConfig) -> tuple[Floats, Floats]:
    """Cosines and sines of every position, each f32[max_positions, head_dim // 2]."""
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    # As the reference does: frequencies in f32, then angles in f32 (their error grows with the position alike).
    frequencies = (1.0 / config.rope_theta**exponents / config.rope_factors).astype(np.float32)
    angles = np.outer(np.arange(config.max_positions, dtype=np.float32), frequencies)
    return np.cos(angles), np.sin(angles)


class LlamaWeights:
    """The file's weights as a graph wants them, each dequantized when it is asked for.

    raises at construction  PrepareError where a weight is missing, has another shape, or is not one of a llama's
    """

    def __init__(self, file: GgufFile, config: LlamaConfig) -> None:
        self._file = file
        self._config = config
        expected = _shapes(config)
        for name in file.tensors:
            if name not in expected and name != "rope_freqs.weight":
                raise unsupported(file.name, f"tensor {name} is not one of a plain llama")
        for name, shape in expected.items():
            tensor = file.tensors.get(name)
            if tensor is None:
                raise gguf_error(file.name, f"tensor {name} is missing")
            if tensor.shape != shape:
                raise gguf_error(file.name, f"tensor {name} has shape {tensor.shape}, expected {shape}")

    def vector(self, name: str) -> Floats:
        """A norm's weights, f32[n]."""
        return self._read(f"{name}.weight")

    def matrix(self, names: Sequence[str]) -> Floats:
        """f32[rows, columns]: the matrices called so, one below the other; outputs are rows.

        GGUF keeps a head's query and key rows with the two halves of each rotated pair side by side; here they stand
        half a head apart, as rotary operators expect by default.
        """
        if len(names) == 1:
            return self._matrix(names[0])
        return np.concatenate([self._matrix(name) for name in names])

    def _matrix(self, name: str) -> Floats:
        matrix = self._read(f"{name}.weight")
        role = name.rpartition(".")[2]
        if role not in ("attn_q", "attn_k"):
            return matrix
        heads = self._config.num_heads if role == "attn_q" else self._config.num_kv_heads
        rows, columns = matrix.shape
        return matrix.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)

    def _read(self, name: str) -> Floats:
        tensor = self._file.tensors[name]
        return _checked(self._file.name, tensor, tensor.shape)


def _checked(name: str, tensor: GgufTensor, shape: tuple[int, ...]) -> Floats:
    if tensor.shape != shape:
        raise gguf_error(name, f"tensor {tensor.name} has shape {tensor.shape}, expected {shape}")
    with np.errstate(all="ignore"):
        values = tensor.values()
    if not np.isfinite(values).all():
        raise gguf_error(name, f"tensor {tensor.name} holds a number that is not finite")
    return values


def _shapes(config: LlamaConfig) -> Mapping[str, tuple[int, ...]]:
    hidden, wide = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm": (hidden,),
        "attn_q": (queries, hidden),
        "attn_k": (keys, hidden),
        "attn_v": (keys, hidden),
        "attn_output": (hidden, queries),
        "ffn_norm": (hidden,),
        "ffn_gate": (wide, hidden),
        "ffn_up": (wide, hidden),
        "ffn_down": (hidden, wide),
    }
    shapes: dict[str, tuple[int, ...]] = {
        "token_embd.weight": (config.vocab_size, hidden),
        "output_norm.weight": (hidden,),
    }
    if not config.tied:
        shapes["output.weight"] = (config.vocab_size, hidden)
    for index in range(config.num_layers):
        shapes |= {f"blk.{index}.{role}.weight": shape for role, shape in layer.items()}
    return shapes
