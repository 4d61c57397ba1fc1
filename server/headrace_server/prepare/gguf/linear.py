"""Linear layers of a decoder graph in each precision, and the quantizations behind them.

fp32  MatMul on f32 weights, unchanged: the reference of tests.
w8    8-bit weights with one scale each 32 inputs; activations are quantized in the same blocks while the operator runs.
rq8   8-bit weights with one scale an output, activations quantized row by row: integer products at the speed of the
      machine's matrix units (row_operators.py).
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.gguf.onnx_file import StreamedGraph

__all__ = [
    "BLOCK",
    "ORT_DOMAIN",
    "Precision",
    "add_block_linear",
    "add_block_weights",
    "add_float_linear",
    "quantize_blocks",
]

Floats = npt.NDArray[np.float32]
MakeMatrix = Callable[[], Floats]

ORT_DOMAIN = "com.microsoft"
BLOCK = 32
_LIMIT = 127
_ZERO = 128  # block weights are unsigned, around this


class Precision(enum.Enum):
    """How weights are kept and products taken."""

    FP32 = "fp32"
    W8 = "w8"
    RQ8 = "rq8"


def quantize_blocks(matrix: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """u8[rows, columns / 32, 32] around 128, f32[rows, columns / 32] scales. Q8_0 weights come back unchanged."""
    blocks = matrix.reshape(matrix.shape[0], -1, BLOCK)
    scales = _scales(np.abs(blocks).max(-1))
    return (np.rint(blocks / scales[..., None]) + _ZERO).astype(np.uint8), scales


def _scales(largest: Floats) -> Floats:
    """A scale that takes `largest` to 127; 1 where all is 0, or so small that its scale would be no normal number."""
    scales = (largest / np.float32(_LIMIT)).astype(np.float32)
    return np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)


class _Once:
    """Quantizes a matrix once for the two weights that are made of it one after the other, and forgets it then."""

    def __init__(self, make: MakeMatrix, quantize: Callable[[Floats], tuple[Any, Floats]]) -> None:
        self._make, self._quantize = make, quantize
        self._scales: Floats | None = None

    def values(self) -> Any:
        values, self._scales = self._quantize(self._make())
        return values

    def scales(self) -> Floats:
        scales, self._scales = self._scales, None
        return self._quantize(self._make())[1] if scales is None else scales


def add_float_linear(graph: StreamedGraph, value: str, make: MakeMatrix, shape: tuple[int, int], *, out: str) -> str:
    """value · matrixᵀ in f32; `shape` is the matrix's (outputs, inputs)."""
    outputs, inputs = shape
    weight = graph.weight(f"{out}.weight", np.float32, (inputs, outputs), lambda: make().T)
    return graph.add("MatMul", value, weight, out=out)


def add_block_weights(graph: StreamedGraph, make: MakeMatrix, shape: tuple[int, int], *, name: str) -> tuple[str, str]:
    """The weights of `add_block_linear`: (values, scales)."""
    outputs, inputs = shape
    once = _Once(make, quantize_blocks)
    values = graph.weight(f"{name}.quantized", np.uint8, (outputs, inputs // BLOCK, BLOCK), once.values)
    return values, graph.weight(f"{name}.scale", np.float32, (outputs, inputs // BLOCK), once.scales)


def add_block_linear(
    graph: StreamedGraph, value: str, weights: tuple[str, str], shape: tuple[int, int], *, out: str
) -> str:
    """value · matrixᵀ with block weights; accuracy level 4: products are taken in 8 bits."""
    outputs, inputs = shape
    return graph.add(
        "MatMulNBits", value, *weights, out=out, domain=ORT_DOMAIN,
        K=inputs, N=outputs, bits=8, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip
