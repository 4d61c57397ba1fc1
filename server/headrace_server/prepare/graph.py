"""GraphBuilder: writes an ONNX graph node by node, with names that can be read in a viewer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["GraphBuilder"]

Axes = Sequence[int | str]

_PRODUCER = "headrace"
_IR_VERSION = 8  # what opset 17 was released with: any runtime that reads the opset reads the file


class GraphBuilder:
    """An ONNX graph in the making. Constants with the same name and content are stored once."""

    def __init__(self, name: str, *, opset: int = 17) -> None:
        self._name = name
        self._opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, npt.NDArray[Any]] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []
        self._shapes: list[onnx.ValueInfoProto] = []

    def input(self, name: str, dtype: type[np.generic], axes: Axes) -> str:
        """Declare a graph input; an axis given as a string varies. Returns its name."""
        self._inputs.append(helper.make_tensor_value_info(name, _element_type(dtype), list(axes)))
        return name

    def output(self, name: str, dtype: type[np.generic], axes: Axes) -> str:
        """Declare that the value called `name` is a graph output. Returns its name."""
        self._outputs.append(helper.make_tensor_value_info(name, _element_type(dtype), list(axes)))
        return name

    def shape(self, name: str, dtype: type[np.generic], axes: Axes) -> str:
        """Say the shape of an inner value where a runtime cannot infer it (fusions ask for it). Returns its name."""
        self._shapes.append(helper.make_tensor_value_info(name, _element_type(dtype), list(axes)))
        return name

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Store an array under `name`. Returns the name. Raises ValueError where the name holds something else."""
        array = np.ascontiguousarray(value) if np.ndim(value) else np.asarray(value)
        known = self._constants.setdefault(name, array)
        if known is not array and (known.dtype != array.dtype or not np.array_equal(known, array)):
            raise ValueError(f"constant {name!r} is already stored with another content")
        return name

    def add(self, op_type: str, *inputs: str, out: str, **attributes: Any) -> str:
        """Append a node with one output called `out`. Returns `out`."""
        self._nodes.append(helper.make_node(op_type, list(inputs), [out], name=out, **attributes))
        return out

    def split(self, value: str, outputs: Sequence[str], *, axis: int) -> Sequence[str]:
        """Cut a value into equal parts along an axis. Returns the parts' names, which are `outputs`."""
        self._nodes.append(helper.make_node("Split", [value], list(outputs), name=f"{value}/split", axis=axis))
        return outputs

    def model(self, metadata: Mapping[str, str] | None = None) -> onnx.ModelProto:
        """The finished, checked model. Raises onnx.checker.ValidationError where the graph is not valid."""
        initializers = [numpy_helper.from_array(array, name) for name, array in self._constants.items()]
        graph = helper.make_graph(
            self._nodes, self._name, self._inputs, self._outputs, initializers, value_info=self._shapes
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", self._opset)],
            producer_name=_PRODUCER,
            ir_version=_IR_VERSION,
        )
        helper.set_model_props(model, dict(metadata or {}))
        onnx.checker.check_model(model)
        return model

    def save(self, path: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the finished model to `path`, making its folder."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.model(metadata).SerializeToString(deterministic=True))


def _element_type(dtype: type[np.generic]) -> int:
    if dtype is np.str_:
        return TensorProto.STRING
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))
