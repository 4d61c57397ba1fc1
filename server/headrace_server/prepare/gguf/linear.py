"""Linear layers of a decoder graph in each precision, and the quantizations behind them.

fp32  MatMul on f32 weights, unchanged: the reference of tests.
w8    8-bit weights with one scale each 32 inputs; activations are quantized in the same blocks while the operator runs.
rq8   8-bit weights with one scale an output, activations quantized row by row in the graph: integer products at the
      speed of the machine's matrix units. Scales are a row's own, so that an answer never depends on its batch.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.gguf.onnx_file import StreamedGraph

__all__ = [
    "BLOCK",
    "ORT_DOMAIN",
    "Precision",
    "Rows",
    "add_block_linear",
    "add_block_weights",
    "add_float_linear",
    "add_row_linear",
    "quantize_blocks",
    "quantize_rows",
    "row_quantizer",
]

Floats = npt.NDArray[np.float32]
MakeMatrix = Callable[[], Floats]

ORT_DOMAIN = "com.microsoft"
BLOCK = 32
_LIMIT = 127
_ZERO = 128  # activations and block weights are unsigned, around this


class Precision(enum.Enum):
    """How weights are kept and products taken."""

    FP32 = "fp32"
    W8 = "w8"
    RQ8 = "rq8"


@dataclass(frozen=True, slots=True)
class Rows:
    """An activation quantized row by row: value ≈ (quantized − 128) · scale; `scale` has one column."""

    quantized: str
    scale: str


def quantize_blocks(matrix: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """u8[rows, columns / 32, 32] around 128, f32[rows, columns / 32] scales. Q8_0 weights come back unchanged."""
    blocks = matrix.reshape(matrix.shape[0], -1, BLOCK)
    scales = _scales(np.abs(blocks).max(-1))
    return (np.rint(blocks / scales[..., None]) + _ZERO).astype(np.uint8), scales


def quantize_rows(matrix: Floats) -> tuple[npt.NDArray[np.int8], Floats]:
    """i8[columns, rows] (transposed, as the product takes it), and f32[rows] scales."""
    scales = _scales(np.abs(matrix).max(-1))
    return np.rint(matrix / scales[:, None]).astype(np.int8).T, scales


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


def row_quantizer(graph: StreamedGraph, input_ids: str) -> Callable[[str, int, str], Rows]:
    """Makes the function (value f32[batch, sequence, inputs], inputs, name) → Rows.

    scale = max |row| / 127. A row of zeros divides 0 by 0; whatever integers come of it are multiplied by that scale,
    0. The operator divides row by row ("blocked", the block being the row), and needs as many zero points as rows.
    """
    axes = graph.constant("last_axis", np.array([-1], np.int64))
    shape = graph.add("Shape", input_ids, out="rows.shape")
    one = graph.constant("one", np.array([1], np.int64))
    column = graph.add("Concat", shape, one, out="rows.column_shape", axis=0)
    zero_points = graph.add("Expand", graph.constant("zero_point", np.uint8(_ZERO)), column, out="rows.zero_points")
    reciprocal = graph.constant("one_in_127", np.float32(1 / _LIMIT))

    def quantize(value: str, inputs: int, name: str) -> Rows:
        size = graph.add("Abs", value, out=f"{name}.abs")
        largest = graph.add("ReduceMax", size, axes, out=f"{name}.max", keepdims=1)
        scale = graph.add("Mul", largest, reciprocal, out=f"{name}.scale")
        quantized = graph.add(
            "QuantizeLinear", value, scale, zero_points, out=f"{name}.rows", axis=-1, block_size=inputs
        )
        return Rows(quantized, scale)

    return quantize


def add_row_linear(graph: StreamedGraph, rows: Rows, make: MakeMatrix, shape: tuple[int, int], *, out: str) -> str:
    """The product before the rows' scale is put back: value · matrixᵀ / rows.scale, f32."""
    outputs, inputs = shape
    once = _Once(make, quantize_rows)
    values = graph.weight(f"{out}.quantized", np.int8, (inputs, outputs), once.values)
    scales = graph.weight(f"{out}.weight_scale", np.float32, (outputs,), once.scales)
    unit, zero = graph.constant("unit_scale", np.float32(1)), graph.constant("zero_point", np.uint8(_ZERO))
    return graph.add("MatMulIntegerToFloat", rows.quantized, values, unit, scales, zero, out=out, domain=ORT_DOMAIN)
