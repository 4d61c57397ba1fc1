"""Operators of a quantized decoder, each with what it means in operators that the runtime has.

A graph names `headrace.RowLinear`, `headrace.RowFeedForward` and `headrace.CachedAttention`. Where the compiled kernels
have them for the machine, they run in one piece; elsewhere the runtime puts the functions below in their place, so that
a folder is usable with onnxruntime alone. Weights are kept as the kernels read them:

    weights i8[outputs / 16, inputs / 4, 16, 4]     scales f32[outputs]
    gate and up in one, their blocks of 16 outputs in turn

A row's scale is max |row| / 127, its own, so that an answer never depends on its batch. In the functions a row of zeros
divides 0 by 0; whatever integers come of it are multiplied by that scale, 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import AttributeProto, FunctionProto, NodeProto, helper, numpy_helper

from headrace_server.prepare.gguf.onnx_file import IMPORTS, StreamedGraph

__all__ = [
    "OUTPUTS_A_BLOCK",
    "ROW_DOMAIN",
    "add_cached_attention",
    "add_row_feed_forward",
    "add_row_linear",
    "declare_attention",
    "declare_row_operators",
    "pack_rows",
    "quantize_rows",
]

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int8]
MakeMatrix = Callable[[], Floats]

ROW_DOMAIN = "headrace"
OUTPUTS_A_BLOCK = 16
_INPUTS_A_STEP = 4
_LIMIT = 127
_ZERO = 128  # the runtime's products want unsigned activations, around this


def quantize_rows(matrix: Floats) -> tuple[Codes, Floats]:
    """i8[outputs, inputs] and f32[outputs] scales: each output's weights around 0, its largest at ±127."""
    scales = (np.abs(matrix).max(-1) / np.float32(_LIMIT)).astype(np.float32)
    scales = np.where(scales < np.finfo(np.float32).tiny, np.float32(1), scales)
    return np.rint(matrix / scales[:, None]).astype(np.int8), scales


def pack_rows(codes: Codes) -> Codes:
    """i8[outputs, inputs] as i8[outputs / 16, inputs / 4, 16, 4]."""
    outputs, inputs = codes.shape
    blocks = codes.reshape(outputs // OUTPUTS_A_BLOCK, OUTPUTS_A_BLOCK, inputs // _INPUTS_A_STEP, _INPUTS_A_STEP)
    return np.ascontiguousarray(blocks.swapaxes(1, 2))


def add_row_linear(graph: StreamedGraph, value: str, make: MakeMatrix, shape: tuple[int, int], *, out: str) -> str:
    """value · matrixᵀ; `shape` is the matrix's (outputs, inputs)."""
    return graph.add("RowLinear", value, *_add_weights(graph, make, shape, name=out), out=out, domain=ROW_DOMAIN)


def add_row_feed_forward(
    graph: StreamedGraph, value: str, makes: Sequence[MakeMatrix], shape: tuple[int, int], *, out: str
) -> str:
    """(SiLU(value · gateᵀ) · (value · upᵀ)) · downᵀ; `makes` make these, `shape` is the (outputs, inputs) of gate."""
    gate, up, down = makes
    wide, width = shape

    def make_both() -> Floats:
        parts = [matrix.reshape(-1, OUTPUTS_A_BLOCK, width) for matrix in (gate(), up())]
        return np.stack(parts, axis=1).reshape(2 * wide, width)

    opening = _add_weights(graph, make_both, (2 * wide, width), name=f"{out}.gate_up")
    closing = _add_weights(graph, down, (width, wide), name=f"{out}.down")
    return graph.add("RowFeedForward", value, *opening, *closing, out=out, domain=ROW_DOMAIN)


def _add_weights(graph: StreamedGraph, make: MakeMatrix, shape: tuple[int, int], *, name: str) -> tuple[str, str]:
    outputs, inputs = shape
    made: list[Floats] = []  # the scales, between the two calls in which a weight is written

    def values() -> Codes:
        codes, scales = quantize_rows(make())
        made.append(scales)
        return pack_rows(codes)

    packed = (outputs // OUTPUTS_A_BLOCK, inputs // _INPUTS_A_STEP, OUTPUTS_A_BLOCK, _INPUTS_A_STEP)
    return (
        graph.weight(f"{name}.codes", np.int8, packed, values),
        graph.weight(f"{name}.scales", np.float32, (outputs,), lambda: made.pop()),
    )


def add_cached_attention(
    graph: StreamedGraph, inputs: Sequence[str], outputs: Sequence[str], *, num_heads: int, num_kv_heads: int
) -> str:
    """Rotation, append to the cache, attention.

    inputs   queries, keys and values in one; past keys and values; seqlens_k and total_sequence_length; cosines, sines
    outputs  attended, present keys and values
    """
    return graph.add(
        "CachedAttention", *inputs, out=outputs, domain=ROW_DOMAIN, num_heads=num_heads, kv_num_heads=num_kv_heads
    )


def declare_attention(graph: StreamedGraph) -> None:
    """Say in the graph what `CachedAttention` means."""
    inputs = ["qkv", "past_key", "past_value", "seqlens_k", "total", "cosines", "sines"]
    outputs = ["attended", "present_key", "present_value"]
    node = helper.make_node(
        "GroupQueryAttention", ["qkv", "", "", *inputs[1:]], outputs, domain="com.microsoft", do_rotary=1
    )
    for name in ("num_heads", "kv_num_heads"):
        node.attribute.append(AttributeProto(name=name, ref_attr_name=name, type=AttributeProto.INT))
    graph.function(
        helper.make_function(
            ROW_DOMAIN, "CachedAttention", inputs, outputs, [node], list(IMPORTS), ["num_heads", "kv_num_heads"]
        )
    )


def declare_row_operators(graph: StreamedGraph) -> None:
    """Say in the graph what `RowLinear` and `RowFeedForward` mean."""
    graph.function(_row_linear())
    graph.function(_row_feed_forward())


class _Body:
    """The nodes of a function in the making."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []

    def add(self, op_type: str, *inputs: str, out: str, domain: str = "", **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op_type, list(inputs), [out], domain=domain, **attributes))
        return out

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        return self.add("Constant", out=name, value=numpy_helper.from_array(np.asarray(value), name))

    def function(self, name: str, inputs: list[str], output: str) -> FunctionProto:
        imports = list(IMPORTS)
        return helper.make_function(ROW_DOMAIN, name, inputs, [output], self.nodes, imports)

    def quantized(self, value: str) -> tuple[str, str]:
        """Its unsigned integers, and its rows' scales (one column)."""
        size = self.add("Abs", value, out=f"{value}_abs")
        largest = self.add("ReduceMax", size, self.constant(f"{value}_axis", [-1]), out=f"{value}_max", keepdims=1)
        scale = self.add("Mul", largest, self.constant(f"{value}_part", np.float32(1 / _LIMIT)), out=f"{value}_scale")
        ratio = self.add("Div", value, scale, out=f"{value}_ratio")
        one, zero = self.constant(f"{value}_one", np.float32(1)), self.constant(f"{value}_zero", np.uint8(_ZERO))
        return self.add("QuantizeLinear", ratio, one, zero, out=f"{value}_codes"), scale

    def product(self, codes: str, weights: str, scales: str, out: str) -> str:
        """The product before the rows' scale is put back. What is done with the weights is done when a graph loads."""
        turned = self.add("Transpose", weights, out=f"{out}_turned", perm=[1, 3, 0, 2])
        plain = self.add("Flatten", turned, out=f"{out}_plain", axis=2)
        one, zero = self.constant(f"{out}_one", np.float32(1)), self.constant(f"{out}_zero", np.uint8(_ZERO))
        return self.add("MatMulIntegerToFloat", codes, plain, one, scales, zero, out=out, domain="com.microsoft")

    def half(self, weights: str, scales: str, index: int, out: str) -> tuple[str, str]:
        """The gate's (0) or up's (1) blocks of both in turn."""
        first, end = self.constant(f"{out}_first", [index]), self.constant(f"{out}_end", [np.iinfo(np.int64).max])
        axis, step = self.constant(f"{out}_axis", [0]), self.constant(f"{out}_step", [2])
        pairs = self.add(
            "Reshape", scales, self.constant(f"{out}_pairs", [-1, 2, OUTPUTS_A_BLOCK]), out=f"{out}_scales_in_pairs"
        )
        chosen = self.add(
            "Gather", pairs, self.constant(f"{out}_index", np.int64(index)), out=f"{out}_of_pairs", axis=1
        )
        return (
            self.add("Slice", weights, first, end, axis, step, out=f"{out}_codes"),
            self.add("Reshape", chosen, self.constant(f"{out}_flat", [-1]), out=f"{out}_scales"),
        )


def _row_linear() -> FunctionProto:
    body = _Body()
    codes, scale = body.quantized("x")
    body.add("Mul", body.product(codes, "weights", "scales", "product"), scale, out="y")
    return body.function("RowLinear", ["x", "weights", "scales"], "y")


def _row_feed_forward() -> FunctionProto:
    """`up` keeps its rows' scale to the end: it is one factor a row, which quantization would divide out again."""
    body = _Body()
    codes, scale = body.quantized("x")
    gate = body.product(codes, *body.half("gate_up", "gate_up_scales", 0, "gate_part"), "gate")
    up = body.product(codes, *body.half("gate_up", "gate_up_scales", 1, "up_part"), "up")
    gate = body.add("Mul", gate, scale, out="gate_scaled")
    opened = body.add("QuickGelu", gate, out="opened", domain="com.microsoft", alpha=1.0)
    inner_codes, inner_scale = body.quantized(body.add("Mul", opened, up, out="inner"))
    product = body.product(inner_codes, "down", "down_scales", "product")
    body.add("Mul", product, body.add("Mul", inner_scale, scale, out="both_scales"), out="y")
    return body.function("RowFeedForward", ["x", "gate_up", "gate_up_scales", "down", "down_scales"], "y")
