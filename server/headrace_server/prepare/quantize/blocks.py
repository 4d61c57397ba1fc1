"""Modes `w8` and `w4`: weights in 8 or 4 bits, a scale for each 32 inputs (`MatMulNBits`); activations stay floats.

With accuracy level 4 the operator takes products in 8 bits and scales activations in the same blocks of one row, so
that rows stay apart.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from onnx import ModelProto, NodeProto, helper

from headrace_server.prepare.quantize.layers import Layer
from headrace_server.prepare.quantize.row_scaled import ORT_DOMAIN
from headrace_server.prepare.quantize.weights import quantize_blocks
from headrace_server.prepare.quantize.working_graph import WorkingGraph

__all__ = ["BLOCK", "store_in_blocks"]

BLOCK = 32


def store_in_blocks(graph: WorkingGraph, layers: Sequence[Layer], chosen: Collection[str], *, bits: int) -> ModelProto:
    """The model with the chosen matrices in blocks of `bits`."""
    graph = graph.copy()
    by_node = {layer.name: layer for layer in layers if layer.name in chosen and layer.is_matrix}

    def change(node: NodeProto) -> list[NodeProto] | None:
        layer = by_node.get(node.name)
        return None if layer is None else _product(graph, layer, bits)

    graph.rewrite(change)
    return graph.model(domains=[ORT_DOMAIN])


def _product(graph: WorkingGraph, layer: Layer, bits: int) -> list[NodeProto]:
    matrix = layer.matrix(graph)
    values, scales, zeros = quantize_blocks(matrix, bits=bits, block=BLOCK)
    base = layer.weight
    inputs = [layer.value, graph.add_constant(graph.fresh(f"{base}/w{bits}"), values)]
    inputs.append(graph.add_constant(graph.fresh(f"{base}/scales"), scales))
    if bits != 8:  # without them 8 bits lie around 128
        inputs.append(graph.add_constant(graph.fresh(f"{base}/zero_points"), zeros))
    output = graph.fresh(f"{layer.name}/product") if layer.bias else layer.output
    k, n = matrix.shape
    nodes = [
        helper.make_node(
            "MatMulNBits", inputs, [output], name=layer.name, domain=ORT_DOMAIN,
            K=k, N=n, bits=bits, block_size=BLOCK, accuracy_level=4,
        )
    ]  # fmt: skip
    if layer.bias:
        nodes.append(helper.make_node("Add", [output, layer.bias], [layer.output], name=f"{layer.name}/add_bias"))
    return nodes
