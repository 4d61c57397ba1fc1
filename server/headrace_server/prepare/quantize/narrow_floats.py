"""Modes `fp16` and `bf16`: weights and the operators that bear it in 16 bits; the rest, and what callers see, in fp32.

Sums over many values, and what grows like an exponential, stay in fp32: normalization, Softmax, reductions. So does a
node with a constant that 16 bits cannot hold. Casts stand where the two meet, one a value.

    emulated   the same roundings, of constants and of each operator's inputs and results, in an fp32 graph: what a
               device that multiplies in 16 bits and adds in 32 answers, told on one that cannot
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from headrace_server.prepare.quantize.layers import Layer
from headrace_server.prepare.quantize.working_graph import Array, WorkingGraph

__all__ = ["narrow_floats"]

_OPSETS = {"fp16": 13, "bf16": 17}  # since when what is narrowed here takes the type
# By operator, which of its inputs are of the type that is narrowed; () stands for all of them.
_NARROWED: Mapping[str, tuple[int, ...]] = {
    "Add": (), "AveragePool": (0,), "Clip": (), "Concat": (), "Conv": (), "Div": (), "Erf": (), "Flatten": (0,),
    "Gather": (0,), "Gelu": (), "Gemm": (), "HardSigmoid": (), "HardSwish": (), "LeakyRelu": (), "MatMul": (),
    "MaxPool": (0,), "Mul": (), "Neg": (), "Relu": (), "Reshape": (0,), "Sigmoid": (), "Slice": (0,), "Split": (0,),
    "Squeeze": (0,), "Sub": (), "Tanh": (), "Transpose": (0,), "Unsqueeze": (0,),
}  # fmt: skip
_BF16_TAKES = frozenset(_NARROWED) - {"AveragePool", "Conv", "HardSigmoid", "HardSwish", "LeakyRelu", "MaxPool"}


@dataclass(frozen=True, slots=True)
class _Type:
    name: str
    element: int
    dtype: np.dtype[np.generic]
    largest: float


_TYPES = {
    "fp16": _Type("fp16", TensorProto.FLOAT16, np.dtype(np.float16), 65504.0),
    "bf16": _Type("bf16", TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), 3.38e38),
}


def narrow_floats(
    graph: WorkingGraph,
    layers: Sequence[Layer],
    chosen: Collection[str],
    *,
    kind: Literal["fp16", "bf16"],
    emulated: bool = False,
) -> ModelProto:
    """The model with all that bears it in 16 bits, but for the layers that were not chosen."""
    graph = graph.copy()
    left_out = {layer.name for layer in layers} - set(chosen)
    rewriting = _Narrowing(graph, _TYPES[kind], left_out, emulated)
    graph.rewrite(rewriting.change)
    return graph.model(opset=_OPSETS[kind])


class _Narrowing:
    """One walk over the nodes: values by name in fp32, and as `name/fp16` where somebody wants them so."""

    def __init__(self, graph: WorkingGraph, kind: _Type, left_out: Collection[str], emulated: bool) -> None:
        self._graph, self._type, self._left_out, self._emulated = graph, kind, left_out, emulated
        self._floats = _float_values(graph)
        self._narrow: dict[str, str] = {}  # by value, its narrow self
        self._only_narrow: set[str] = set()  # made in 16 bits, not cast back yet
        self._outputs = set(graph.outputs)

    def change(self, node: NodeProto) -> list[NodeProto]:
        if not self._bears(node):
            return [*(cast for name in node.input for cast in self._widened(name)), node]
        places = _NARROWED[node.op_type]
        made, inputs = [], []
        for place, name in enumerate(node.input):
            if not name or (places and place not in places):
                made += self._widened(name)
                inputs.append(name)
                continue
            casts, narrow = self._narrowed(name)
            made += casts
            inputs.append(narrow)
        changed = NodeProto()
        changed.CopyFrom(node)
        del changed.input[:]
        changed.input.extend(inputs)
        for place, name in enumerate(node.output):
            narrow = self._graph.fresh(f"{name}/{self._type.name}")
            changed.output[place] = narrow
            self._narrow[name] = narrow
            self._only_narrow.add(name)
        made.append(changed)
        if self._emulated:
            made = [
                each for step in made for each in ([step, *_rounded(step, self._type)] if step is changed else [step])
            ]
        made += [cast for name in node.output if name in self._outputs for cast in self._widened(name)]
        return made

    def _bears(self, node: NodeProto) -> bool:
        if node.domain not in ("", "ai.onnx") or node.op_type not in _NARROWED or node.name in self._left_out:
            return False
        if self._type.name == "bf16" and node.op_type not in _BF16_TAKES:
            return False
        places = _NARROWED[node.op_type]
        for place, name in enumerate(node.input):
            if name and (not places or place in places):
                if name not in self._floats:
                    return False
                if self._graph.is_constant(name):
                    values = self._graph.constant(name)
                    if values.size and not np.abs(values).max() <= self._type.largest:
                        return False
        return True

    def _narrowed(self, name: str) -> tuple[list[NodeProto], str]:
        if name in self._narrow:
            return [], self._narrow[name]
        narrow = self._graph.fresh(f"{name}/{self._type.name}")
        self._narrow[name] = narrow
        if self._graph.is_constant(name):
            values: Array = self._graph.constant(name).astype(self._type.dtype)
            self._graph.add_constant(narrow, values.astype(np.float32) if self._emulated else values)
            return [], narrow
        if self._emulated:
            return _round(name, narrow, self._type), narrow
        return [_cast(name, narrow, self._type.element)], narrow

    def _widened(self, name: str) -> list[NodeProto]:
        """What gives the value its fp32 self, where it has none."""
        if name not in self._only_narrow:
            return []
        self._only_narrow.discard(name)
        if self._emulated:
            return [helper.make_node("Identity", [self._narrow[name]], [name], name=f"{name}/widened")]
        return [_cast(self._narrow[name], name, TensorProto.FLOAT)]


def _float_values(graph: WorkingGraph) -> set[str]:
    """Names of all f32 values, as far as shape inference can tell."""
    inferred = onnx.shape_inference.infer_shapes(graph.model())
    found = {name for name, kind, _ in graph.constants() if kind == TensorProto.FLOAT}
    for value in (*inferred.graph.input, *inferred.graph.output, *inferred.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            found.add(value.name)
    return found


def _rounded(node: NodeProto, kind: _Type) -> list[NodeProto]:
    """Roundings of a node's results, which it then gives under other names."""
    made = []
    for place, name in enumerate(node.output):
        if name:
            node.output[place] = f"{name}/unrounded"
            made += _round(f"{name}/unrounded", name, kind)
    return made


def _round(source: str, target: str, kind: _Type) -> list[NodeProto]:
    return [_cast(source, f"{target}/narrow", kind.element), _cast(f"{target}/narrow", target, TensorProto.FLOAT)]


def _cast(source: str, target: str, element: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}/cast", to=element)
