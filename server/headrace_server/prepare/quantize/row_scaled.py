"""Mode `dynamic`: weights in 8 bits, a scale an output; activations in 8 bits, a scale a row, found while running.

    scale = max |row| / 127        rows = row / scale, rounded        product = (rows · weights) · weight scale · scale

The row is the last axis: one token, one sample. Nothing of a neighbour enters it, so that an answer never depends on
its batch; ONNX Runtime's own dynamic quantization takes one scale for the whole tensor, and does. The product is
`MatMulIntegerToFloat`, which runs on the machine's integer matrix units and is known to ONNX Runtime alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from headrace_server.prepare.quantize.layers import Layer
from headrace_server.prepare.quantize.weights import quantize_columns
from headrace_server.prepare.quantize.working_graph import WorkingGraph

__all__ = ["ORT_DOMAIN", "scale_rows"]

ORT_DOMAIN = "com.microsoft"

_LIMIT = 127
_ZERO = 128  # activations are unsigned, around this: what integer units multiply fastest with signed weights
_AXES_ARE_INPUTS = 18  # the opset since which ReduceMax is told its axes by an input


def scale_rows(graph: WorkingGraph, layers: Sequence[Layer], chosen: Collection[str]) -> ModelProto:
    """The model with the chosen matrices in 8 bits; activations that several of them read are quantized once."""
    graph = graph.copy()
    by_node = {layer.name: layer for layer in layers if layer.name in chosen and layer.is_matrix}
    rows: dict[str, tuple[str, str]] = {}

    def change(node: NodeProto) -> list[NodeProto] | None:
        layer = by_node.get(node.name)
        if layer is None:
            return None
        made = []
        if layer.value not in rows:
            nodes, rows[layer.value] = _quantize_rows(graph, layer.value)
            made += nodes
        return made + _product(graph, layer, *rows[layer.value])

    graph.rewrite(change)
    return graph.model(domains=[ORT_DOMAIN])


def _quantize_rows(graph: WorkingGraph, value: str) -> tuple[list[NodeProto], tuple[str, str]]:
    """Nodes, and the names of the quantized value and its scales, one a row.

    A row of zeros divides by the smallest normal number instead of by 0.
    """
    name = graph.fresh(f"{value}/rows")
    reciprocal = graph.add_constant("quantize/one_in_127", np.float32(1 / _LIMIT))
    smallest = graph.add_constant("quantize/smallest", np.float32(np.finfo(np.float32).tiny))
    unit = graph.add_constant("quantize/unit_scale", np.float32(1))
    zero = graph.add_constant("quantize/zero_point", np.uint8(_ZERO))
    size, largest = f"{name}/abs", f"{name}/max"
    if graph.opset >= _AXES_ARE_INPUTS:
        axes = graph.add_constant("quantize/last_axis", np.array([-1], np.int64))
        reduce = _node("ReduceMax", [size, axes], largest, keepdims=1)
    else:
        reduce = _node("ReduceMax", [size], largest, axes=[-1], keepdims=1)
    nodes = [
        _node("Abs", [value], size),
        reduce,
        _node("Mul", [largest, reciprocal], f"{name}/raw_scale"),
        _node("Max", [f"{name}/raw_scale", smallest], f"{name}/scale"),
        _node("Div", [value, f"{name}/scale"], f"{name}/divided"),
        _node("QuantizeLinear", [f"{name}/divided", unit, zero], f"{name}/quantized"),
    ]
    return nodes, (f"{name}/quantized", f"{name}/scale")


def _product(graph: WorkingGraph, layer: Layer, quantized: str, scale: str) -> list[NodeProto]:
    values, scales = quantize_columns(layer.matrix(graph))
    name = layer.name
    weight = graph.add_constant(graph.fresh(f"{layer.weight}/int8"), values)
    weight_scale = graph.add_constant(graph.fresh(f"{layer.weight}/scale"), scales)
    inputs = [quantized, weight, "quantize/unit_scale", weight_scale, "quantize/zero_point"]
    product, scaled = graph.fresh(f"{name}/product"), graph.fresh(f"{name}/scaled") if layer.bias else layer.output
    nodes = [
        helper.make_node("MatMulIntegerToFloat", inputs, [product], name=name, domain=ORT_DOMAIN),
        _node("Mul", [product, scale], scaled),
    ]
    if layer.bias:
        nodes.append(_node("Add", [scaled, layer.bias], layer.output))
    return nodes


def _node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, list(inputs), [output], name=f"{output}/{op_type}", **attributes)
