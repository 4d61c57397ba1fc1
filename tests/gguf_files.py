"""GGUF files written by hand: a small llama of random weights, and the pieces to spoil it with."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["SHAPE", "gguf_bytes", "small_llama", "small_metadata", "small_tensors"]

Array = npt.NDArray[Any]

SHAPE = {"layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 16, "hidden": 64, "wide": 96, "vocabulary": 259}
_KINDS = {bool: 7, str: 8, float: 6, int: 4}
_CODES = {4: "<I", 6: "<f", 7: "<B"}


def gguf_bytes(
    metadata: Mapping[str, Any], tensors: Mapping[str, tuple[int, Sequence[int], bytes]], *, version: int = 3
) -> bytes:
    """A file. Tensors: name → (type, shape with the contiguous axis last, content)."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(_text(key) + _value(value) for key, value in metadata.items())
    body = b""
    for name, (kind, shape, content) in tensors.items():
        body += bytes(-len(body) % 32)
        head += _text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
        head += struct.pack("<IQ", kind, len(body))
        body += content
    return head + bytes(-len(head) % 32) + body


def small_llama(seed: int = 0, **changes: Any) -> bytes:
    """A whole file; `changes` are metadata by key with dots as `__`; None removes one."""
    metadata = small_metadata()
    for key, value in changes.items():
        metadata[key.replace("__", ".")] = value
    metadata = {key: value for key, value in metadata.items() if value is not None}
    return gguf_bytes(
        metadata, {name: (0, value.shape, value.tobytes()) for name, value in small_tensors(seed).items()}
    )


def small_metadata() -> dict[str, Any]:
    """Of a llama whose tokens are the 256 bytes and three control tokens."""
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    others = [chr(256 + index) for index in range(256 - len(letters))]
    tokens = [*letters, *others, "<s>", "</s>", "<|user|>"]
    return {
        "general.architecture": "llama",
        "general.name": "small",
        "llama.block_count": SHAPE["layers"],
        "llama.context_length": 128,
        "llama.embedding_length": SHAPE["hidden"],
        "llama.feed_forward_length": SHAPE["wide"],
        "llama.attention.head_count": SHAPE["heads"],
        "llama.attention.head_count_kv": SHAPE["kv_heads"],
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3] * 3,
        "tokenizer.ggml.merges": [],
        "tokenizer.ggml.bos_token_id": 256,
        "tokenizer.ggml.eos_token_id": 257,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }


def small_tensors(seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """f32 weights by the file's names, queries and keys in the file's own order of rows."""
    rng = np.random.default_rng(seed)
    hidden, wide, queries = SHAPE["hidden"], SHAPE["wide"], SHAPE["heads"] * SHAPE["head_dim"]
    keys = SHAPE["kv_heads"] * SHAPE["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"token_embd": (SHAPE["vocabulary"], hidden), "output_norm": (hidden,)}
    for layer in range(SHAPE["layers"]):
        shapes |= {
            f"blk.{layer}.{role}": shape
            for role, shape in {
                "attn_norm": (hidden,), "attn_q": (queries, hidden), "attn_k": (keys, hidden),
                "attn_v": (keys, hidden), "attn_output": (hidden, queries), "ffn_norm": (hidden,),
                "ffn_gate": (wide, hidden), "ffn_up": (wide, hidden), "ffn_down": (hidden, wide),
            }.items()
        }  # fmt: skip
    return {
        f"{name}.weight": (
            1 + 0.1 * rng.normal(size=shape) if len(shape) == 1 else rng.normal(size=shape) * 2 / np.sqrt(shape[-1])
        ).astype(np.float32)
        for name, shape in shapes.items()
    }


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Any) -> bytes:
    if isinstance(value, list):
        kind = 8 if not value or isinstance(value[0], str) else 4
        body = b"".join(_text(each) if kind == 8 else struct.pack("<I", each) for each in value)
        return struct.pack("<IIQ", 9, kind, len(value)) + body
    kind = _KINDS[type(value)]
    return struct.pack("<I", kind) + (_text(value) if kind == 8 else struct.pack(_CODES[kind], value))
