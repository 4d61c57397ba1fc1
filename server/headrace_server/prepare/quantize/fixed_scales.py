"""Modes `static` and `fp8`: activations scaled by ranges that calibration found, once and for all; written as QDQ.

QuantizeLinear and DequantizeLinear stand around what is to run in 8 bits, and each runtime merges them into its own
integer operators. What they look like depends on who reads them:

    cpu, openvino   activations u8 with a zero point: one-sided values (after ReLU, GELU) get steps half as wide.
                    Convolutions keep their results in 8 bits, through ReLU, Clip, Add and pooling, since ONNX Runtime's
                    integer convolution goes from integers to integers; their biases are i32
    tensorrt        activations i8 around 0, biases f32, nothing after the operator: all that it accepts. ONNX Runtime
                    and OpenVINO run this form as well
    fp8             as tensorrt, in E4M3

Scales are constants: an answer does not depend on its batch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper

from headrace_server.prepare.quantize.calibrate import Range
from headrace_server.prepare.quantize.layers import Layer
from headrace_server.prepare.quantize.weights import quantize_channels
from headrace_server.prepare.quantize.working_graph import Array, WorkingGraph

__all__ = ["Form", "fix_scales", "values_to_measure"]

_FP8_LARGEST = 448.0  # of E4M3
_FP8_OPSET = 19
_SCALED_ANEW = frozenset({"Add", "AveragePool", "GlobalAveragePool"})
_SAME_VALUES = frozenset({"Flatten", "MaxPool", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})
_BIAS_LIMIT = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How QDQ is written.

    symmetric  i8 around 0, at inputs alone
    fp8        E4M3 instead of integers; symmetric
    emulated   of fp8: the same roundings by casts in an fp32 graph, where no operator takes the type
    """

    symmetric: bool
    fp8: bool = False
    emulated: bool = False


def values_to_measure(graph: WorkingGraph, layers: Sequence[Layer], form: Form) -> tuple[str, ...]:
    """The activations whose ranges `fix_scales` may ask for, whichever of the layers it is told to quantize."""
    values = [layer.value for layer in layers]
    if not form.symmetric and any(not layer.is_matrix for layer in layers):
        bounds = _activations(graph, layers)
        for layer in layers:
            if not layer.is_matrix:
                bound = bounds.get(layer.output)
                values.append(layer.output if bound is None else bound.output[0])
        values += [node.output[0] for node in graph.nodes if node.op_type in _SCALED_ANEW]
    return tuple(dict.fromkeys(values))


def fix_scales(
    graph: WorkingGraph,
    layers: Sequence[Layer],
    chosen: Collection[str],
    *,
    form: Form,
    ranges: Mapping[str, Range],
) -> ModelProto:
    """The model with the chosen layers between QuantizeLinear and DequantizeLinear."""
    graph = graph.copy()
    wanted = {layer.name: layer for layer in layers if layer.name in chosen}
    left_out = {layer.name for layer in layers} - wanted.keys()
    rewriting = _Rewriting(graph, wanted, left_out, form, ranges)
    graph.rewrite(rewriting.change)
    return graph.model(opset=_FP8_OPSET if form.fp8 else 0)


@dataclass(frozen=True, slots=True)
class _Kept:
    """A value in 8 bits: its dequantized name, and the constants that scale it."""

    name: str
    scale_name: str
    zero_name: str
    scale: float


class _Rewriting:
    """One walk over the nodes in the order they run."""

    def __init__(
        self,
        graph: WorkingGraph,
        wanted: Mapping[str, Layer],
        left_out: Collection[str],
        form: Form,
        ranges: Mapping[str, Range],
    ) -> None:
        self._graph, self._wanted, self._left_out, self._form, self._ranges = graph, wanted, left_out, form, ranges
        self._kept: dict[str, _Kept] = {}
        self._for_all: set[str] = set()  # values that everybody reads in 8 bits, not layers alone
        self._bounds = {} if form.symmetric else _activations(graph, list(wanted.values()))
        # The runtime merges a MatMul of rank 2 with the Add after it before it looks for QDQ: they become a Gemm here,
        # whose bias is in integers as well.
        self._gemms = {} if form.symmetric else _flat_sums(graph, list(wanted.values()))
        self._dropped: set[str] = set()
        self._outputs = set(graph.outputs)

    def change(self, node: NodeProto) -> list[NodeProto] | None:
        if node.name in self._dropped:
            return []
        layer = self._wanted.get(node.name)
        if layer is None:
            return self._passed_on(node)
        made = self._quantize(layer.value, layer.value) if layer.value not in self._kept else []
        read = self._kept[layer.value]
        if layer.name in self._gemms:
            return made + self._gemm(layer, read, self._gemms[layer.name])
        return made + (self._matrix(layer, read) if layer.is_matrix else self._convolution(node, layer, read))

    def _passed_on(self, node: NodeProto) -> list[NodeProto] | None:
        """Another node: it reads 8 bits where its maker keeps them, and keeps them where it can."""
        names = [self._kept[name].name if name in self._for_all else name for name in node.input]
        if names == list(node.input):
            return None
        if node.name in self._left_out:
            return self._kept_in_floats(node, names)
        changed = _with_inputs(node, names)
        output = node.output[0]
        varying = [name for name in node.input if name and not self._graph.is_constant(name)]
        if len(node.output) != 1 or output in self._outputs or not all(name in self._for_all for name in varying):
            return [changed]
        if node.op_type in _SAME_VALUES:
            self._for_all.add(output)
            return [changed, *self._quantize(output, output, like=self._kept[node.input[0]])]
        if node.op_type in _SCALED_ANEW and output in self._ranges:
            self._for_all.add(output)
            return [changed, *self._quantize(output, output)]
        return [changed]

    def _kept_in_floats(self, node: NodeProto, names: Sequence[str]) -> list[NodeProto]:
        """A layer that was left out, between others that were not.

        Where such a layer stands right between DequantizeLinear and QuantizeLinear, ONNX Runtime quantizes its weights
        by itself, with one scale for all channels. A Max that changes nothing stands between.
        """
        lowest = self._graph.add_constant("quantize/lowest", np.float32(np.finfo(np.float32).min))
        guarded = self._graph.fresh(f"{names[0]}/float")
        return [_node("Max", [names[0], lowest], guarded), _with_inputs(node, [guarded, *names[1:]])]

    def _quantize(self, source: str, name: str, like: _Kept | None = None) -> list[NodeProto]:
        """QuantizeLinear and DequantizeLinear of `source`, for who reads `name`; scaled `like` another where given."""
        graph = self._graph
        base = graph.fresh(f"{name}/qdq")
        if like is None:
            scale, zero = _scale(self._ranges[name], self._form)
            scale_name = graph.add_constant(f"{base}/scale", np.float32(scale))
            like = _Kept("", scale_name, graph.add_constant(f"{base}/zero_point", zero), scale)
        quantized, output = f"{base}/quantized", f"{base}/dequantized"
        if self._form.emulated:
            self._kept[name] = _Kept(output, like.scale_name, like.zero_name, like.scale)
            return [
                _node("Div", [source, like.scale_name], f"{base}/divided"),
                _node("Cast", [f"{base}/divided"], quantized, to=TensorProto.FLOAT8E4M3FN),
                _node("Cast", [quantized], f"{base}/rounded", to=TensorProto.FLOAT),
                _node("Mul", [f"{base}/rounded", like.scale_name], output),
            ]
        self._kept[name] = _Kept(output, like.scale_name, like.zero_name, like.scale)
        return [
            _node("QuantizeLinear", [source, like.scale_name, like.zero_name], quantized),
            _node("DequantizeLinear", [quantized, like.scale_name, like.zero_name], output),
        ]

    def _matrix(self, layer: Layer, read: _Kept) -> list[NodeProto]:
        """A MatMul, and for Gemm an Add of its own, so that the bias stays f32 everywhere."""
        weight, nodes = self._weight(layer, layer.matrix(self._graph), axis=1)
        output = self._graph.fresh(f"{layer.name}/product") if layer.bias else layer.output
        nodes.append(helper.make_node("MatMul", [read.name, weight], [output], name=layer.name))
        if layer.bias:
            nodes.append(_node("Add", [output, layer.bias], layer.output))
        return nodes

    def _gemm(self, layer: Layer, read: _Kept, total: _Sum) -> list[NodeProto]:
        """A Gemm of integers, its bias too."""
        self._dropped.add(total.node)
        values = self._graph.constant(total.bias).reshape(-1)
        least = np.abs(values) / (read.scale * _BIAS_LIMIT)
        weight, nodes = self._weight(layer, layer.matrix(self._graph), axis=1, least_scales=least)
        bias, made = self._bias(layer, values, read.scale * self._weight_scales)
        return [*nodes, *made, helper.make_node("Gemm", [read.name, weight, bias], [total.output], name=layer.name)]

    def _convolution(self, node: NodeProto, layer: Layer, read: _Kept) -> list[NodeProto]:
        graph, bias_values = self._graph, self._graph.constant(layer.bias) if layer.bias else None
        inputs = [read.name]
        if self._form.symmetric:
            weight, nodes = self._weight(layer, graph.constant(layer.weight), axis=0)
            return [*nodes, _with_inputs(node, [read.name, weight, *node.input[2:]])]
        values = graph.constant(layer.weight)
        least = None if bias_values is None else np.abs(bias_values) / (read.scale * _BIAS_LIMIT)
        weight, nodes = self._weight(layer, values, axis=0, least_scales=least)
        inputs.append(weight)
        if bias_values is not None:
            bias, made = self._bias(layer, bias_values, read.scale * self._weight_scales)
            nodes += made
            inputs.append(bias)
        nodes.append(_with_inputs(node, inputs))
        bound = self._bounds.get(layer.output)
        name = layer.output if bound is None else bound.output[0]
        if bound is not None:
            self._dropped.add(bound.name)
        if layer.output in self._outputs:
            return nodes
        self._for_all.add(name)
        return [*nodes, *self._quantize(layer.output, name)]

    def _weight(
        self, layer: Layer, values: Array, *, axis: int, least_scales: Array | None = None
    ) -> tuple[str, list[NodeProto]]:
        graph, base = self._graph, self._graph.fresh(f"{layer.weight}/qdq")
        if self._form.fp8:
            stored, scales, zero = _fp8_channels(values, axis)
        else:
            stored, scales = quantize_channels(values, axis=axis, least_scales=least_scales)
            zero = np.zeros(len(scales), np.int8)
        self._weight_scales = scales
        if self._form.emulated:
            shape = [1] * values.ndim
            shape[axis] = -1
            return graph.add_constant(f"{base}/rounded", stored.astype(np.float32) * scales.reshape(shape)), []
        names = [
            graph.add_constant(f"{base}/{part}", array)
            for part, array in (("values", stored), ("scales", scales), ("zero_points", zero))
        ]
        output = f"{base}/dequantized"
        return output, [_node("DequantizeLinear", names, output, axis=axis)]

    def _bias(self, layer: Layer, values: Array, scales: Array) -> tuple[str, list[NodeProto]]:
        """i32, in the units of the products."""
        graph, base = self._graph, self._graph.fresh(f"{layer.name}/bias_qdq")
        scales = scales.astype(np.float32)
        integers = graph.add_constant(f"{base}/values", np.rint(values / scales).astype(np.int32))
        names = [integers, graph.add_constant(f"{base}/scales", scales)]
        names.append(graph.add_constant(f"{base}/zero_points", np.zeros(len(scales), np.int32)))
        return f"{base}/dequantized", [_node("DequantizeLinear", names, f"{base}/dequantized", axis=0)]


@dataclass(frozen=True, slots=True)
class _Sum:
    """A matrix product and its bias: the Add's name ("" where the layer is a Gemm), the bias, the result."""

    node: str
    bias: str
    output: str


def _flat_sums(graph: WorkingGraph, layers: Sequence[Layer]) -> dict[str, _Sum]:
    """By layer that reads f32[m, k], its bias: its own, or the constant that an Add alone puts on its result."""
    readers, outputs, ranks = graph.readers(), set(graph.outputs), graph.ranks()
    found = {}
    for layer in layers:
        if not layer.is_matrix:
            continue
        if layer.bias:
            if graph.constant(layer.bias).size == layer.matrix(graph).shape[1]:
                found[layer.name] = _Sum("", layer.bias, layer.output)
            continue
        following = readers.get(layer.output, [])
        if ranks.get(layer.value) != 2 or len(following) != 1 or layer.output in outputs:
            continue
        node = following[0]
        others = [name for name in node.input if name != layer.output]
        if node.op_type != "Add" or len(others) != 1 or not graph.is_constant(others[0]):
            continue
        if graph.constant_type(others[0])[1] in ((layer.shape[1],), (1, layer.shape[1])):
            found[layer.name] = _Sum(node.name, others[0], node.output[0])
    return found


def _activations(graph: WorkingGraph, layers: Sequence[Layer]) -> dict[str, NodeProto]:
    """By convolution's result, the ReLU or Clip from 0 that alone reads it: integers that start at 0 and end at its
    largest value do the same."""
    readers, outputs = graph.readers(), set(graph.outputs)
    found = {}
    for layer in layers:
        following = readers.get(layer.output, [])
        if layer.is_matrix or len(following) != 1 or layer.output in outputs or following[0].output[0] in outputs:
            continue
        node = following[0]
        if node.op_type == "Relu" or (node.op_type == "Clip" and _starts_at_zero(graph, node)):
            found[layer.output] = node
    return found


def _starts_at_zero(graph: WorkingGraph, clip: NodeProto) -> bool:
    bounds = [name for name in clip.input[1:] if name]
    if len(clip.input) < 2 or not clip.input[1] or not all(graph.is_constant(name) for name in bounds):
        return False
    return float(graph.constant(clip.input[1]).reshape(-1)[0]) == 0


def _scale(found: Range, form: Form) -> tuple[float, Array]:
    """Scale and zero point of an activation."""
    tiny = float(np.finfo(np.float32).tiny)
    if form.fp8:
        return max(found.high / _FP8_LARGEST, tiny), np.zeros((), ml_dtypes.float8_e4m3fn)
    if form.symmetric:
        return max(found.high / 127, tiny), np.zeros((), np.int8)
    scale = max((found.high - found.low) / 255, tiny)
    return scale, np.asarray(np.clip(np.rint(-found.low / scale), 0, 255), np.uint8)


def _fp8_channels(values: Array, axis: int) -> tuple[Array, Array, Array]:
    others = tuple(each for each in range(values.ndim) if each != axis)
    largest = np.abs(values).max(others)
    scales = np.where(largest > 0, largest / np.float32(_FP8_LARGEST), 1).astype(np.float32)
    shape = [1] * values.ndim
    shape[axis] = -1
    stored = np.clip(values / scales.reshape(shape), -_FP8_LARGEST, _FP8_LARGEST).astype(ml_dtypes.float8_e4m3fn)
    return stored, scales, np.zeros(len(scales), ml_dtypes.float8_e4m3fn)


def _with_inputs(node: NodeProto, names: Sequence[str]) -> NodeProto:
    changed = NodeProto()
    changed.CopyFrom(node)
    del changed.input[:]
    changed.input.extend(names)
    return changed


def _node(op_type: str, inputs: Sequence[str], output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(op_type, list(inputs), [output], name=f"{output}/{op_type}", **attributes)
