"""Weights in fewer bits, symmetric: value ≈ integer · scale."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.quantize.working_graph import Array

__all__ = ["quantize_blocks", "quantize_channels", "quantize_columns"]

_LIMIT = 127


def quantize_columns(matrix: Array) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """i8[k, n] in -127 … 127 and f32[n], a scale a column, of f32[k, n]."""
    return quantize_channels(matrix, axis=1)


def quantize_channels(
    weight: Array, *, axis: int, least_scales: Array | None = None
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """The weights as integers, and a scale for each place of `axis`; a channel of zeros has scale 1.

    least_scales  none is smaller than these: what else is counted in the same units must fit too
    """
    others = tuple(each for each in range(weight.ndim) if each != axis)
    scales = _scales(np.abs(weight).max(others), _LIMIT)
    if least_scales is not None:
        scales = np.maximum(scales, least_scales.astype(np.float32))
    shape = [1] * weight.ndim
    shape[axis] = -1
    return np.rint(weight / scales.reshape(shape)).astype(np.int8), scales


def quantize_blocks(
    matrix: Array, *, bits: int, block: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
    """f32[k, n] as MatMulNBits stores it: u8[n, blocks, block · bits / 8], f32[n · blocks], zero points u8 packed.

    Rows (outputs) are cut into blocks of inputs, the last filled up with zeros. 8 bits are symmetric around 128; 4 bits
    have a zero point a block, since 16 steps are too few to waste any on a side that has no values.
    """
    inputs, outputs = matrix.shape
    num_blocks = -(-inputs // block)
    rows = np.zeros((outputs, num_blocks * block), np.float32)
    rows[:, :inputs] = matrix.T
    blocks = rows.reshape(outputs, num_blocks, block)
    if bits == 8:
        scales = _scales(np.abs(blocks).max(-1), _LIMIT)
        values = (np.rint(blocks / scales[..., None]) + 128).astype(np.uint8)
        return values, scales.reshape(-1), np.full(outputs * num_blocks, 128, np.uint8)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scales = _scales(high - low, 15)
    zeros = np.clip(np.rint(-low / scales), 0, 15).astype(np.uint8)
    values = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, 15).astype(np.uint8)
    packed = values[..., 0::2] | values[..., 1::2] << 4
    if num_blocks % 2:
        zeros = np.concatenate([zeros, np.zeros((outputs, 1), np.uint8)], axis=1)
    return packed, scales.reshape(-1), (zeros[:, 0::2] | zeros[:, 1::2] << 4).reshape(-1)


def _scales(largest: Array, steps: int) -> npt.NDArray[np.float32]:
    """A scale that takes `largest` to `steps`; 1 where that would be no normal number."""
    scales = (largest / np.float32(steps)).astype(np.float32)
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales).astype(np.float32)
