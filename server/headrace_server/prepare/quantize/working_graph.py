"""WorkingGraph: an ONNX graph in memory, put into one plain form, that a rewriting copies and changes.

Plain form: constants are initializers, every node has a name of its own, weights that pass through Identity or
Transpose are stored as they arrive. What a rewriting leaves unread is dropped when the model is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.version_converter
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from headrace_server.prepare.fault import PrepareError

__all__ = ["Array", "WorkingGraph"]

Array = npt.NDArray[Any]

_LARGEST_BYTES = (1 << 31) - (1 << 20)  # one protobuf message; a little is kept for the nodes
_SMALLEST_OPSET = 13  # the first whose DequantizeLinear has a scale a channel


class WorkingGraph:
    """A graph to be rewritten. Arrays are shared between copies and never changed in place."""

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self.nodes: list[NodeProto] = list(model.graph.node)
        self._constants: dict[str, TensorProto | Array] = {tensor.name: tensor for tensor in model.graph.initializer}
        self._names = {name for node in self.nodes for name in (*node.input, *node.output)}
        self._names |= {value.name for value in (*model.graph.input, *model.graph.output)} | self._constants.keys()
        self._name_nodes()
        self._fold()

    @classmethod
    def read(cls, path: Path) -> WorkingGraph:
        """The graph in a file, its external data included.

        raises  PrepareError for a graph of more than 2 GiB, one that is not valid, or an opset that cannot be raised
        """
        size = path.stat().st_size
        head = onnx.load(path, load_external_data=False)
        for tensor in head.graph.initializer:
            if tensor.data_location == TensorProto.EXTERNAL:
                facts = {entry.key: entry.value for entry in tensor.external_data}
                size += int(facts.get("length", 0))
        if size > _LARGEST_BYTES:
            raise PrepareError(
                f"{path.name}: {size / 1e9:.1f} GB with its weights, the limit of what is rewritten here is 2.1 GB",
                cure="quantize it where it was exported, block by block, and serve the result",
            )
        model = onnx.load(path)
        opset = _main_opset(model)
        if opset < _SMALLEST_OPSET:
            model = _raised(model, _SMALLEST_OPSET, path.name)
        return cls(model)

    def copy(self) -> WorkingGraph:
        """The same graph, to be changed: nodes and weights are shared until they are replaced."""
        other = WorkingGraph.__new__(WorkingGraph)
        other._model = self._model
        other.nodes = list(self.nodes)
        other._constants = dict(self._constants)
        other._names = set(self._names)
        return other

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators that the graph is written in."""
        return _main_opset(self._model)

    @property
    def inputs(self) -> tuple[str, ...]:
        """What a caller feeds."""
        return tuple(value.name for value in self._model.graph.input if value.name not in self._constants)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(value.name for value in self._model.graph.output)

    @property
    def num_subgraphs(self) -> int:
        """Bodies of loops and branches: what is in them is left as it is."""
        return sum(attribute.HasField("g") for node in self.nodes for attribute in node.attribute)

    def is_constant(self, name: str) -> bool:
        return name in self._constants

    def constant_type(self, name: str) -> tuple[int, tuple[int, ...]]:
        """Element type (of TensorProto) and shape of a constant, without its values being read."""
        held = self._constants[name]
        if isinstance(held, TensorProto):
            return held.data_type, tuple(held.dims)
        return int(helper.np_dtype_to_tensor_dtype(held.dtype)), held.shape

    def constant(self, name: str) -> Array:
        """A constant's values."""
        held = self._constants[name]
        return numpy_helper.to_array(held) if isinstance(held, TensorProto) else held

    def constants(self) -> Iterator[tuple[str, int, tuple[int, ...]]]:
        """(name, element type, shape) of every constant."""
        for name in self._constants:
            yield (name, *self.constant_type(name))

    def add_constant(self, name: str, value: npt.ArrayLike | TensorProto) -> str:
        """Stores a constant. Returns its name; the same name twice is the same constant, the first one's."""
        if name not in self._constants:
            self._constants[name] = value if isinstance(value, TensorProto) else np.asarray(value)
            self._names.add(name)
        return name

    def replace_constant(self, name: str, value: Array) -> None:
        """Another value under a name that is there."""
        self._constants[name] = value

    def fresh(self, name: str) -> str:
        """A name like this one that nothing has yet."""
        candidate, number = name, 1
        while candidate in self._names:
            number += 1
            candidate = f"{name}_{number}"
        self._names.add(candidate)
        return candidate

    def producers(self) -> dict[str, NodeProto]:
        """By value, the node that makes it."""
        return {name: node for node in self.nodes for name in node.output if name}

    def readers(self) -> dict[str, list[NodeProto]]:
        """By value, the nodes that read it; one that reads it twice stands there twice."""
        found: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                found.setdefault(name, []).append(node)
            for name in _read_inside(node):
                found.setdefault(name, []).append(node)
        return found

    def ranks(self) -> dict[str, int]:
        """By value, how many axes it has, as far as shape inference can tell."""
        inferred = onnx.shape_inference.infer_shapes(self.model()).graph
        return {
            value.name: len(value.type.tensor_type.shape.dim)
            for value in (*inferred.input, *inferred.output, *inferred.value_info)
            if value.type.tensor_type.HasField("shape")
        }

    def rewrite(self, change: Callable[[NodeProto], Iterable[NodeProto] | None]) -> None:
        """Each node becomes what `change` says: nodes in its place, or itself for None."""
        nodes: list[NodeProto] = []
        for node in self.nodes:
            changed = change(node)
            nodes.extend([node] if changed is None else changed)
        self.nodes = nodes

    def count(self) -> Counter[str]:
        """How many nodes of each type there are."""
        return Counter(node.op_type for node in self.nodes)

    def model(self, *, opset: int = 0, domains: Sequence[str] = (), extra_outputs: Sequence[str] = ()) -> ModelProto:
        """The graph as a model; constants that nobody reads are left out.

        opset          the least version of ONNX's operators that the new nodes ask for
        domains        others they come from ("com.microsoft")
        extra_outputs  f32 values to be given as outputs too
        raises         PrepareError where the result is no valid graph, or the opset cannot be raised
        """
        source = self._model.graph
        graph = GraphProto(name=source.name, doc_string=source.doc_string)
        graph.node.extend(self.nodes)
        graph.input.extend(value for value in source.input if value.name not in self._constants)
        graph.output.extend(source.output)
        graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None)
            for name in extra_outputs
            if name not in self.outputs
        )
        read = {name for node in self.nodes for name in (*node.input, *_read_inside(node))} | set(self.outputs)
        for name, held in self._constants.items():
            if name in read:
                graph.initializer.append(
                    held
                    if isinstance(held, TensorProto)
                    else numpy_helper.from_array(np.ascontiguousarray(held) if held.ndim else held, name)
                )
        model = ModelProto(
            ir_version=max(self._model.ir_version, 8),
            producer_name="headrace",
            model_version=self._model.model_version,
            doc_string=self._model.doc_string,
            graph=graph,
        )
        model.metadata_props.extend(self._model.metadata_props)
        model.functions.extend(self._model.functions)
        model.opset_import.extend(self._model.opset_import)
        known = {entry.domain for entry in model.opset_import}
        model.opset_import.extend(helper.make_opsetid(domain, 1) for domain in domains if domain not in known)
        if opset > self.opset:
            model = _raised(model, opset, "the graph")
            model.ir_version = max(model.ir_version, 9 if opset < 21 else 10)
        return model

    def _name_nodes(self) -> None:
        taken: set[str] = set()
        for node in self.nodes:
            name = node.name or next((output for output in node.output if output), node.op_type)
            candidate, number = name, 1
            while candidate in taken:
                number += 1
                candidate = f"{name}_{number}"
            taken.add(candidate)
            node.name = candidate

    def _fold(self) -> None:
        """Constant nodes become initializers; Identity and Transpose of initializers are done now."""
        outputs = set(self.outputs)

        def change(node: NodeProto) -> list[NodeProto] | None:
            if node.domain not in ("", "ai.onnx") or len(node.output) != 1 or node.output[0] in outputs:
                return None
            made = node.output[0]
            if node.op_type == "Constant":
                value = _constant_value(node)
                if value is None:
                    return None
                self._constants[made] = value
                return []
            if node.op_type in ("Identity", "Transpose") and node.input[0] in self._constants:
                held = self._constants[node.input[0]]
                if node.op_type == "Transpose":
                    order = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), None)
                    held = self.constant(node.input[0]).transpose(order)
                elif isinstance(held, TensorProto):
                    held = self.constant(node.input[0])
                self._constants[made] = held
                return []
            return None

        self.rewrite(change)


def _constant_value(node: NodeProto) -> Array | None:
    for entry in node.attribute:
        if entry.name == "value":
            return numpy_helper.to_array(entry.t)
        if entry.name == "value_float":
            return np.asarray(entry.f, np.float32)
        if entry.name == "value_int":
            return np.asarray(entry.i, np.int64)
        if entry.name == "value_floats":
            return np.asarray(entry.floats, np.float32)
        if entry.name == "value_ints":
            return np.asarray(entry.ints, np.int64)
    return None


def _read_inside(node: NodeProto) -> Iterator[str]:
    """Names that the bodies of a node read; some may be their own."""
    for entry in node.attribute:
        for graph in [entry.g] if entry.HasField("g") else entry.graphs:
            for inner in graph.node:
                yield from inner.input
                yield from _read_inside(inner)
            yield from (value.name for value in graph.output)


def _main_opset(model: ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def _raised(model: ModelProto, opset: int, what: str) -> ModelProto:
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter's own C++ faults have no type of theirs
        reason = str(error).strip().splitlines()[-1][:200]
        raise PrepareError(
            f"{what} is of opset {_main_opset(model)} and cannot be raised to {opset}: {reason}",
            cure=f"export the model with opset {opset} or newer",
        ) from None
