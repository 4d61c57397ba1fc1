"""How GGUF stores numbers: for each tensor type, the block's layout and what its bytes mean as f32.

A block holds `size` consecutive elements of a row in `size_bytes` bytes. Layouts follow ggml's block structures; sums
and products are taken in f32, in the order ggml takes them, so values equal ggml's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_TYPES", "BlockType", "dequantize"]

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockType:
    """One tensor type: `decode` takes u8[n, size_bytes] and gives f32[n, size]."""

    name: str
    size: int
    size_bytes: int
    decode: Callable[[Bytes], Floats]


def dequantize(content: memoryview, block: BlockType) -> Floats:
    """f32[n]: the numbers that `content` holds; its length is a multiple of the block's."""
    blocks = np.frombuffer(content, np.uint8).reshape(-1, block.size_bytes)
    return block.decode(blocks).reshape(-1)


def _halves(blocks: Bytes, at: int) -> Floats:
    """The f16 at byte `at` of each block, as f32[n, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(packed: Bytes) -> Bytes:
    """Low halves of every byte, then high halves: u8[n, 2 · bytes]."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


def _fifth_bits(packed: Bytes) -> Bytes:
    """The bits of a little-endian u32 each, as the fifth bit of 32 elements: 0 or 16."""
    return np.asarray(np.unpackbits(packed, axis=-1, bitorder="little") << 4, np.uint8)


def _plain(dtype: str) -> Callable[[Bytes], Floats]:
    def decode(blocks: Bytes) -> Floats:
        return np.asarray(blocks.view(dtype), np.float32)

    return decode


def _bf16(blocks: Bytes) -> Floats:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Bytes) -> Floats:
    return _halves(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Bytes) -> Floats:
    return _halves(blocks, 0) * _nibbles(blocks[:, 4:]) + _halves(blocks, 2)


def _q5_0(blocks: Bytes) -> Floats:
    quantized = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _halves(blocks, 0) * (quantized.astype(np.float32) - 16)


def _q5_1(blocks: Bytes) -> Floats:
    quantized = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _halves(blocks, 0) * quantized + _halves(blocks, 2)


def _q8_0(blocks: Bytes) -> Floats:
    return _halves(blocks, 0) * blocks[:, 2:].view(np.int8)


def _scales_and_minima(packed: Bytes) -> tuple[Floats, Floats]:
    """Of K-quants' 12 bytes: eight scales and eight minima of 6 bits each, f32[n, 8, 1]."""
    low, high, rest = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    scales = np.concatenate([low & 63, (rest & 15) | ((low >> 6) << 4)], axis=-1)
    minima = np.concatenate([high & 63, (rest >> 4) | ((high >> 6) << 4)], axis=-1)
    return scales.astype(np.float32)[..., None], minima.astype(np.float32)[..., None]


def _with_minima(blocks: Bytes, quantized: Bytes) -> Floats:
    """K-quants with a minimum each 32 elements: d · scale · q − dmin · minimum; `quantized` u8[n, 8, 32]."""
    scales, minima = _scales_and_minima(blocks[:, 4:16])
    step, base = _halves(blocks, 0)[..., None] * scales, _halves(blocks, 2)[..., None] * minima
    return np.asarray(step * quantized - base, np.float32)


def _q4_k(blocks: Bytes) -> Floats:
    return _with_minima(blocks, _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32))


def _q5_k(blocks: Bytes) -> Floats:
    low = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    shifts = np.arange(8, dtype=np.uint8)[None, :, None]
    return _with_minima(blocks, np.asarray(low | (((blocks[:, None, 16:48] >> shifts) & 1) << 4), np.uint8))


def _q6_k(blocks: Bytes) -> Floats:
    low = blocks[:, :128].reshape(-1, 2, 2, 32)  # half, first or second 32 bytes
    low = np.stack([low & 15, low >> 4], axis=2).reshape(-1, 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[None, None, :, None]
    high = (blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3
    quantized = (low | (high << 4)).reshape(-1, 16, 16).astype(np.float32) - 32
    scales = blocks[:, 192:208].view(np.int8).astype(np.float32)
    return np.asarray((_halves(blocks, 208) * scales)[..., None] * quantized, np.float32)


def _types() -> dict[int, BlockType]:
    def block(name: str, size: int, size_bytes: int, decode: Callable[[Bytes], Any]) -> BlockType:
        return BlockType(name=name, size=size, size_bytes=size_bytes, decode=decode)

    return {
        0: block("F32", 1, 4, _plain("<f4")),
        1: block("F16", 1, 2, _plain("<f2")),
        2: block("Q4_0", 32, 18, _q4_0),
        3: block("Q4_1", 32, 20, _q4_1),
        6: block("Q5_0", 32, 22, _q5_0),
        7: block("Q5_1", 32, 24, _q5_1),
        8: block("Q8_0", 32, 34, _q8_0),
        12: block("Q4_K", 256, 144, _q4_k),
        13: block("Q5_K", 256, 176, _q5_k),
        14: block("Q6_K", 256, 210, _q6_k),
        30: block("BF16", 1, 2, _bf16),
    }


BLOCK_TYPES = _types()
"""Tensor types by the number that stands in the file."""
