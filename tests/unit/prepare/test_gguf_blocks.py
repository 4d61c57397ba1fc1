"""Every block type's numbers, against the formula of its layout written out element by element."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest

from headrace_server.prepare.gguf.blocks import BLOCK_TYPES, dequantize


def half(block: bytes, at: int) -> float:
    return float(struct.unpack_from("<e", block, at)[0])


def nibble(block: bytes, start: int, index: int) -> int:
    byte = block[start + index % 16]
    return byte >> 4 if index >= 16 else byte & 15


def bit(block: bytes, start: int, index: int) -> int:
    return block[start + index // 8] >> index % 8 & 1


def scale_and_minimum(block: bytes, group: int) -> tuple[int, int]:
    packed = block[4:16]
    if group < 4:
        return packed[group] & 63, packed[group + 4] & 63
    return packed[group + 4] & 15 | packed[group - 4] >> 6 << 4, packed[group + 4] >> 4 | packed[group] >> 6 << 4


def q4_k(block: bytes, index: int, fifth: int = 0, start: int = 16) -> float:
    group, within = divmod(index, 32)
    byte = block[start + group // 2 * 32 + within]
    scale, minimum = scale_and_minimum(block, group)
    value = (byte >> 4 if group % 2 else byte & 15) + 16 * fifth
    return half(block, 0) * scale * value - half(block, 2) * minimum


def q5_k(block: bytes, index: int) -> float:
    return q4_k(block, index, fifth=block[16 + index % 32] >> index // 32 & 1, start=48)


def q6_k(block: bytes, index: int) -> float:
    side, rest = divmod(index, 128)
    quarter, within = divmod(rest, 32)
    low = block[side * 64 + quarter % 2 * 32 + within]
    high = block[128 + side * 32 + within] >> 2 * quarter & 3
    scale = struct.unpack_from("<b", block, 192 + index // 16)[0]
    return half(block, 208) * scale * (((low >> 4 if quarter > 1 else low & 15) | high << 4) - 32)


FORMULAS: dict[str, Callable[[bytes, int], float]] = {
    "F32": lambda block, _: float(struct.unpack("<f", block)[0]),
    "F16": lambda block, _: half(block, 0),
    "BF16": lambda block, _: float(struct.unpack("<f", b"\0\0" + block)[0]),
    "Q4_0": lambda block, index: half(block, 0) * (nibble(block, 2, index) - 8),
    "Q4_1": lambda block, index: half(block, 0) * nibble(block, 4, index) + half(block, 2),
    "Q5_0": lambda block, index: half(block, 0) * ((nibble(block, 6, index) | bit(block, 2, index) << 4) - 16),
    "Q5_1": lambda block, index: (
        half(block, 0) * (nibble(block, 8, index) | bit(block, 4, index) << 4) + half(block, 2)
    ),
    "Q8_0": lambda block, index: half(block, 0) * struct.unpack_from("<b", block, 2 + index)[0],
    "Q4_K": q4_k,
    "Q5_K": q5_k,
    "Q6_K": q6_k,
}


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: BLOCK_TYPES[kind].name)
def test_blocks_mean_what_their_formula_says(kind: int) -> None:
    block = BLOCK_TYPES[kind]
    raw = np.random.default_rng(kind).integers(0, 256, (6, block.size_bytes), np.uint8)
    if block.size > 1:  # no f16 among the scales may be infinite
        for at in {"Q6_K": (209,)}.get(block.name, (1, 3)):
            raw[:, at] &= 0x3F
    values = dequantize(memoryview(raw.tobytes()), block).reshape(6, block.size)
    expected = [[FORMULAS[block.name](row.tobytes(), index) for index in range(block.size)] for row in raw]
    np.testing.assert_allclose(values, np.array(expected, np.float32), rtol=1e-5, atol=1e-4)
    assert values.dtype == np.float32
