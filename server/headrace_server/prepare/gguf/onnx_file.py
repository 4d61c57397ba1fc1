"""StreamedGraph: an ONNX graph whose weights are made while the file is written, so that one at a time is in memory.

A model file is one protobuf message, and its parts may come in any order: nodes and small constants are serialized by
the onnx library, then each weight is appended as one more initializer of the graph. All lengths are known before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["DATA_NAME", "GRAPH_NAME", "IMPORTS", "StreamedGraph"]

Array = npt.NDArray[Any]

GRAPH_NAME = "model.onnx"
DATA_NAME = "model.onnx.data"

_PRODUCER = "headrace"
_OPSET = 21  # blocked QuantizeLinear
_IR_VERSION = 10  # what opset 21 was released with
IMPORTS = (helper.make_opsetid("", _OPSET), helper.make_opsetid("com.microsoft", 1))
_MAX_MESSAGE = (1 << 31) - (1 << 20)  # protobuf reads less than 2 GiB; a little is kept for the nodes
_ALIGNMENT = 4096  # of external data: what mapping a file needs

# Protobuf keys (number · 8 + 2, "length-delimited") of the fields that are written by hand.
_MODEL_GRAPH = b"\x3a"
_GRAPH_INITIALIZER = b"\x2a"
_TENSOR_RAW_DATA = b"\x4a"


@dataclass(frozen=True, slots=True)
class _Weight:
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    make: Callable[[], Array]

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def header(self) -> TensorProto:
        return TensorProto(name=self.name, data_type=helper.np_dtype_to_tensor_dtype(self.dtype), dims=list(self.shape))

    def write(self, file: BinaryIO) -> None:
        value = self.make()
        if value.shape != self.shape or value.dtype != self.dtype:
            raise ValueError(f"{self.name}: made {value.dtype}{value.shape}, declared {self.dtype}{self.shape}")
        file.write(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)


class StreamedGraph:
    """An ONNX graph in the making; names are the caller's and must differ."""

    def __init__(self, name: str) -> None:
        self._graph = onnx.GraphProto(name=name)
        self._constants: set[str] = set()
        self._functions: list[onnx.FunctionProto] = []
        self._weights: list[_Weight] = []

    def input(self, name: str, dtype: type[np.generic], axes: Sequence[int | str]) -> str:
        """Declare a graph input; an axis given as a string varies. Returns its name."""
        self._graph.input.append(_value_info(name, dtype, axes))
        return name

    def output(self, name: str, dtype: type[np.generic], axes: Sequence[int | str]) -> str:
        """Declare that the value called `name` is a graph output. Returns its name."""
        self._graph.output.append(_value_info(name, dtype, axes))
        return name

    def constant(self, name: str, value: npt.ArrayLike) -> str:
        """Store a small array under `name`, once. Returns the name."""
        if name not in self._constants:
            self._constants.add(name)
            self._graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, name: str, dtype: type[np.generic], shape: Sequence[int], make: Callable[[], Array]) -> str:
        """Declare a weight that `make` gives when the file is written. Returns its name."""
        self._weights.append(_Weight(name, np.dtype(dtype), tuple(shape), make))
        return name

    def add(self, op_type: str, *inputs: str, out: str | Sequence[str], domain: str = "", **attributes: Any) -> str:
        """Append a node; `out` names its outputs. Returns the first."""
        outputs = [out] if isinstance(out, str) else list(out)
        self._graph.node.append(
            helper.make_node(op_type, list(inputs), outputs, name=outputs[0], domain=domain, **attributes)
        )
        return outputs[0]

    def function(self, function: onnx.FunctionProto) -> None:
        """Say what an operator of another domain means in operators of the standard and the runtime's own domain.

        A runtime that has the operator takes it; every other one puts the function's body in its place.
        """
        self._functions.append(function)

    def save(self, folder: Path, metadata: Mapping[str, str] | None = None) -> None:
        """Write the graph into `folder`: one file, or the weights beside it where one file cannot hold them."""
        model = helper.make_model(
            onnx.GraphProto(name=self._graph.name),
            opset_imports=[*IMPORTS, *(helper.make_opsetid(domain, 1) for domain in self._domains())],
            functions=self._functions,
            producer_name=_PRODUCER,
            ir_version=_IR_VERSION,
        )
        model.ClearField("graph")
        helper.set_model_props(model, dict(metadata or {}))
        head = model.SerializeToString(deterministic=True)
        size = len(head) + self._graph.ByteSize() + sum(weight.size_bytes + 256 for weight in self._weights)
        if size > _MAX_MESSAGE:
            self._save_external(folder, head)
        else:
            self._save_whole(folder, head)

    def _domains(self) -> list[str]:
        return sorted({function.domain for function in self._functions})

    def _save_whole(self, folder: Path, head: bytes) -> None:
        nodes = self._graph.SerializeToString(deterministic=True)
        openings = []
        for weight in self._weights:
            inner = weight.header().SerializeToString() + _TENSOR_RAW_DATA + _varint(weight.size_bytes)
            openings.append(_GRAPH_INITIALIZER + _varint(len(inner) + weight.size_bytes) + inner)
        total = len(nodes) + sum(map(len, openings)) + sum(weight.size_bytes for weight in self._weights)
        with (folder / GRAPH_NAME).open("wb") as file:
            file.write(head + _MODEL_GRAPH + _varint(total) + nodes)
            for weight, opening in zip(self._weights, openings, strict=True):
                file.write(opening)
                weight.write(file)

    def _save_external(self, folder: Path, head: bytes) -> None:
        graph = onnx.GraphProto()
        graph.CopyFrom(self._graph)
        with (folder / DATA_NAME).open("wb") as file:
            for weight in self._weights:
                file.write(bytes(-file.tell() % _ALIGNMENT))
                tensor = weight.header()
                tensor.data_location = TensorProto.EXTERNAL
                facts = {"location": DATA_NAME, "offset": str(file.tell()), "length": str(weight.size_bytes)}
                for key, value in facts.items():
                    tensor.external_data.add(key=key, value=value)
                graph.initializer.append(tensor)
                weight.write(file)
        nodes = graph.SerializeToString(deterministic=True)
        (folder / GRAPH_NAME).write_bytes(head + _MODEL_GRAPH + _varint(len(nodes)) + nodes)


def _value_info(name: str, dtype: type[np.generic], axes: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), list(axes))


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
