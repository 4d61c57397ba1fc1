"""Layers: the nodes that hold a matrix or a kernel of weights, which is what quantizing is about.

MatMul   f32[…, k] · constant f32[k, n]
Gemm     f32[m, k] · constant f32[k, n] or, with transB, f32[n, k]; alpha and beta 1
Conv     constant f32[n, k, …]
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import NodeProto, TensorProto, helper

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quantize.working_graph import Array, WorkingGraph

__all__ = ["Layer", "exclude_layers", "find_layers", "refuse_unfit", "small_heads"]

_QUANTIZED = frozenset(
    {
        "ConvInteger", "DequantizeLinear", "DynamicQuantizeLSTM", "DynamicQuantizeLinear", "DynamicQuantizeMatMul",
        "GatherBlockQuantized", "MatMulBnb4", "MatMulInteger", "MatMulIntegerToFloat", "MatMulNBits", "QAttention",
        "QGemm", "QLinearConv", "QLinearMatMul", "QMoE", "QuantizeLinear",
    }
)  # fmt: skip
# What ONNX Runtime's optimizers write: matrices and activations inside these can no longer be told apart.
_FUSED = frozenset(
    {
        "Attention", "BiasGelu", "EmbedLayerNormalization", "FastGelu", "FusedConv", "FusedGemm", "FusedMatMul",
        "FusedMatMulActivation", "MultiHeadAttention", "NhwcConv", "NhwcFusedConv", "PackedAttention",
        "SkipLayerNormalization", "TransposeMatMul",
    }
)  # fmt: skip
_NARROW = {
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4,
    TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2,
}  # fmt: skip
_HALF = {TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_SHOWN = 5
_SMALL = 0.01  # of all weights
_AFTER_HEADS = frozenset({"Add", "Identity", "LogSoftmax", "Reshape", "Sigmoid", "Softmax", "Squeeze"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One node with weights. `shape` is the weights' own; `transposed`: outputs stand first, as Gemm with transB."""

    name: str
    op_type: str
    value: str  # the activation it reads
    weight: str
    bias: str  # "": none, or added by a node of its own
    output: str
    shape: tuple[int, ...]
    transposed: bool

    @property
    def size(self) -> int:
        """Weights."""
        return math.prod(self.shape)

    @property
    def is_matrix(self) -> bool:
        return self.op_type != "Conv"

    def matrix(self, graph: WorkingGraph) -> Array:
        """The weights of a MatMul or Gemm as f32[k, n]."""
        weight = graph.constant(self.weight)
        return weight.T if self.transposed else weight


def find_layers(graph: WorkingGraph) -> tuple[Layer, ...]:
    """Every layer of the main graph, in the order it runs."""
    return tuple(layer for node in graph.nodes if (layer := _layer(graph, node)) is not None)


def exclude_layers(layers: Sequence[Layer], patterns: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """By pattern (fnmatch, on node names), the layers it leaves out. Raises PrepareError for one that matches none."""
    found = {}
    for pattern in patterns:
        found[pattern] = tuple(layer.name for layer in layers if fnmatch.fnmatchcase(layer.name, pattern))
        if not found[pattern]:
            names = ", ".join(layer.name for layer in layers[:_SHOWN]) + (", …" if len(layers) > _SHOWN else "")
            raise PrepareError(
                f"--exclude {pattern}: no layer has such a name", cure=f"names are those of the graph's nodes: {names}"
            )
    return found


def small_heads(graph: WorkingGraph, layers: Sequence[Layer]) -> tuple[str, ...]:
    """Matrices that give a graph's answers and hold less than a hundredth of its weights.

    Nothing comes after them to even out what they lose, and they take no time: 8 bits would cost and not gain.
    """
    ends = set(graph.outputs)
    for node in reversed(graph.nodes):
        if node.op_type in _AFTER_HEADS and ends.intersection(node.output):
            ends.update(node.input)
    total = sum(layer.size for layer in layers)
    return tuple(
        layer.name for layer in layers if layer.is_matrix and layer.output in ends and layer.size < _SMALL * total
    )


def refuse_unfit(graph: WorkingGraph) -> None:
    """Raises PrepareError for a graph that is quantized, fused or narrow already: what to start from instead."""
    counted = graph.count()
    quantized = {name: counted[name] for name in sorted(_QUANTIZED & counted.keys())}
    stored = sum(math.prod(shape) for _, kind, shape in graph.constants() if kind in _NARROW and len(shape) > 1)
    total = sum(math.prod(shape) for _, _, shape in graph.constants() if len(shape) > 1)
    if quantized or stored > total // 10:
        shown = ", ".join(f"{count} {name}" for name, count in quantized.items()) or "weights of 8 bits or less"
        raise PrepareError(f"the model is quantized already ({shown})", cure="start from its fp32 version")
    fused = {name: counted[name] for name in sorted(_FUSED & counted.keys())}
    if fused:
        shown = ", ".join(f"{count} {name}" for name, count in fused.items())
        raise PrepareError(
            f"the graph was fused by an optimizer ({shown}): its operators cannot be quantized one by one",
            cure="start from the original export; the runtime fuses for itself when it loads the result",
        )
    for kind, name in _HALF.items():
        halves = sum(math.prod(shape) for _, element, shape in graph.constants() if element == kind and len(shape) > 1)
        if halves > total // 2:
            raise PrepareError(f"the model's weights are {name}", cure="start from its fp32 version")


def _layer(graph: WorkingGraph, node: NodeProto) -> Layer | None:
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("MatMul", "Gemm", "Conv"):
        return None
    value, weight = node.input[0], node.input[1]
    if graph.is_constant(value) or not graph.is_constant(weight):
        return None
    kind, shape = graph.constant_type(weight)
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if kind != TensorProto.FLOAT or (len(shape) != 2 if node.op_type != "Conv" else len(shape) < 3) or 0 in shape:
        return None
    bias = node.input[2] if len(node.input) > 2 else ""
    if bias and not graph.is_constant(bias):
        return None
    if node.op_type == "Gemm" and (
        attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0
    ):
        return None
    return Layer(
        name=node.name,
        op_type=node.op_type,
        value=value,
        weight=weight,
        bias=bias,
        output=node.output[0],
        shape=shape,
        transposed=node.op_type == "Conv" or bool(attributes.get("transB", 0)),
    )
