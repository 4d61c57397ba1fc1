"""A serialised ModelProto walked field by field: an OnnxHeader, tensor data stepped over by its length."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Literal

from headrace_server.models.onnx_graph import Constant, GraphNode, GraphValue, OnnxHeader
from headrace_server.models.signature import DataType, TensorSpec
from headrace_server.models.wire import Buffer, Field, WireError, WireReader

__all__ = ["parse_onnx_header"]

_DATA_TYPES: dict[int, DataType] = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool",
    10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 16: "bfloat16",
}  # fmt: skip
_OTHER_TYPES = {
    14: "complex64",
    15: "complex128",
    17: "float8",
    18: "float8",
    19: "float8",
    20: "float8",
    21: "uint4",
    22: "int4",
    23: "float4",
}
_LABEL_ATTRIBUTES = frozenset({"classlabels_strings", "classlabels_int64s", "classlabels_ints"})
_MAX_DEPTH = 32  # subgraphs inside subgraphs
_MAX_CONSTANT = 100_000  # elements of a one-dimensional string or integer constant kept for label look-up


def parse_onnx_header(content: Buffer) -> OnnxHeader:
    """The header of a serialised ModelProto. Raises WireError and nothing else."""
    return _Parser(WireReader(content)).model()


@dataclass(slots=True)
class _Tensor:
    name: str = ""
    data_type: int = 0
    dims: list[int] = field(default_factory=list)
    strings: list[str] = field(default_factory=list)
    integers: list[int] = field(default_factory=list)
    raw: Field | None = None

    @property
    def num_elements(self) -> int:
        return math.prod(self.dims)


@dataclass(slots=True)
class _Attribute:
    name: str = ""
    integer: int = 0
    real: float = 0.0
    labels: Constant = ()
    tensor: _Tensor | None = None


class _Parser:
    def __init__(self, reader: WireReader) -> None:
        self.reader = reader
        self.header = OnnxHeader()

    def model(self) -> OnnxHeader:
        reader, header = self.reader, self.header
        has_graph = False
        for item in reader.fields(0, reader.size):
            match item.number:
                case 1:
                    header.ir_version = item.value
                case 2:
                    header.producer = reader.text(item)
                case 7:
                    has_graph = True
                    self.graph(item, depth=0)
                case 8:
                    domain, version = "", 0
                    for part in reader.message(item):
                        if part.number == 1:
                            domain = reader.text(part)
                        elif part.number == 2:
                            version = part.value
                    header.opsets[domain or "ai.onnx"] = version
                case 14:
                    key, value = self.entry(item)
                    header.metadata[key] = value
                case 20:
                    for part in reader.message(item):
                        if part.number in (1, 2):
                            self.graph(part, depth=1)
                case 25:
                    self.function(item)
        if not has_graph or not header.outputs:
            raise WireError("it holds no graph with outputs")
        return header

    def graph(self, item: Field, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise WireError(f"subgraphs nested more than {_MAX_DEPTH} deep")
        reader, header = self.reader, self.header
        inputs: list[GraphValue] = []
        initialized: set[str] = set()
        for part in reader.message(item):
            match part.number:
                case 1:
                    self.node(part, depth)
                case 5:
                    tensor = self.tensor(part)
                    initialized.add(tensor.name)
                    if depth == 0:
                        self.keep_constant(tensor.name, tensor)
                case 15:
                    self.sparse_tensor(part)
                case 11 if depth == 0:
                    inputs.append(self.value(part))
                case 12 if depth == 0:
                    header.outputs.append(self.value(part))
        header.inputs.extend(value for value in inputs if value.name not in initialized)

    def function(self, item: Field) -> None:
        for part in self.reader.message(item):
            if part.number == 7:
                self.node(part, depth=1)
            elif part.number == 11:
                self.attribute(part, depth=1)

    def node(self, item: Field, depth: int) -> None:
        reader = self.reader
        inputs: list[str] = []
        outputs: list[str] = []
        op_type = domain = ""
        labels: Constant = ()
        bits = 0
        fills_missing = False
        constant: _Tensor | None = None
        for part in reader.message(item):
            match part.number:
                case 1:
                    inputs.append(reader.text(part))
                case 2:
                    outputs.append(reader.text(part))
                case 4:
                    op_type = reader.text(part)
                case 5:
                    attribute = self.attribute(part, depth)
                    match attribute.name:
                        case "bits":
                            bits = attribute.integer
                        case "value":
                            constant = attribute.tensor
                        case "replaced_value_float":
                            fills_missing = math.isnan(attribute.real)
                        case _ if attribute.labels:
                            labels = attribute.labels
                case 7:
                    domain = reader.text(part)
        if depth:
            return
        self.header.nodes.append(GraphNode(op_type, domain, tuple(inputs), tuple(outputs), labels, bits, fills_missing))
        if op_type == "Constant" and constant is not None and outputs:
            self.keep_constant(outputs[0], constant)

    def attribute(self, item: Field, depth: int) -> _Attribute:
        reader = self.reader
        attribute = _Attribute()
        values: list[Field] = []
        for part in reader.message(item):
            match part.number:
                case 1:
                    attribute.name = reader.text(part)
                case 2:
                    (attribute.real,) = struct.unpack("<f", (part.value & 0xFFFF_FFFF).to_bytes(4, "little"))
                case 3:
                    attribute.integer = part.value
                case 5 | 10:
                    attribute.tensor = self.tensor(part)
                case 6 | 11:
                    self.graph(part, depth + 1)
                case 8 | 9:
                    values.append(part)
                case 22 | 23:
                    self.sparse_tensor(part)
        if attribute.name == "classlabels_strings":
            attribute.labels = tuple(reader.text(part) for part in values)
        elif attribute.name in _LABEL_ATTRIBUTES:
            attribute.labels = tuple(value for part in values for value in reader.integers(part))
        return attribute

    def sparse_tensor(self, item: Field) -> None:
        for part in self.reader.message(item):
            if part.number in (1, 2):
                self.tensor(part)

    def tensor(self, item: Field) -> _Tensor:
        reader, header = self.reader, self.header
        tensor = _Tensor()
        external, location = False, None
        for part in reader.message(item):
            match part.number:
                case 1:
                    tensor.dims.extend(reader.integers(part))
                case 2:
                    tensor.data_type = part.value
                case 5 | 7:
                    if len(tensor.integers) <= _MAX_CONSTANT and part.stop - part.start <= 10 * _MAX_CONSTANT:
                        tensor.integers.extend(reader.integers(part))
                case 6:
                    if len(tensor.strings) < _MAX_CONSTANT and tensor.data_type in (0, 8):
                        tensor.strings.append(reader.content(part).decode(errors="replace"))
                case 8:
                    tensor.name = reader.text(part)
                case 9:
                    tensor.raw = part
                case 13:
                    key, value = self.entry(part)
                    external = True
                    if key == "location":
                        location = value
                        if value not in header.external_files:
                            header.external_files.append(value)
                case 14:
                    external = external or part.value == 1
        if any(axis < 0 for axis in tensor.dims):
            raise WireError(f"tensor {tensor.name!r} has a negative dimension")
        if external and location is None:
            raise WireError(f"tensor {tensor.name!r} is external and names no file")
        type_name = _DATA_TYPES.get(tensor.data_type) or _OTHER_TYPES.get(tensor.data_type, "unknown")
        header.weight_elements[type_name] += tensor.num_elements
        return tensor

    def keep_constant(self, name: str, tensor: _Tensor) -> None:
        """Keeps a one-dimensional string or integer tensor, which may hold the class labels."""
        if len(tensor.dims) != 1 or tensor.num_elements > _MAX_CONSTANT:
            return
        if tensor.data_type == 8 and len(tensor.strings) == tensor.num_elements:
            self.header.constants[name] = tuple(tensor.strings)
        elif tensor.data_type in (6, 7):
            width = 4 if tensor.data_type == 6 else 8
            values = tensor.integers
            if tensor.raw is not None:
                raw = self.reader.content(tensor.raw)
                values = [
                    int.from_bytes(raw[at : at + width], "little", signed=True) for at in range(0, len(raw), width)
                ]
            if len(values) == tensor.num_elements:
                self.header.constants[name] = tuple(values)

    def entry(self, item: Field) -> tuple[str, str]:
        key = value = ""
        for part in self.reader.message(item):
            if part.number == 1:
                key = self.reader.text(part)
            elif part.number == 2:
                value = self.reader.text(part)
        return key, value

    def value(self, item: Field) -> GraphValue:
        name = ""
        kind: Literal["tensor", "map_sequence", "other"] = "other"
        spec: TensorSpec | None = None
        ranked, type_name, leading = True, "no type", ""
        for part in self.reader.message(item):
            if part.number == 1:
                name = self.reader.text(part)
            elif part.number == 2:
                for choice in self.reader.message(part):
                    if choice.number == 1:
                        kind = "tensor"
                        type_name, shape, leading = self.tensor_type(choice)
                        ranked = shape is not None
                        dtype = next((known for known in _DATA_TYPES.values() if known == type_name), None)
                        spec = TensorSpec("", dtype, shape or ()) if dtype else None
                    elif choice.number == 4:
                        type_name = "sequence"
                        for element in self.reader.message(choice):
                            if element.number == 1 and any(inner.number == 5 for inner in self.reader.message(element)):
                                kind, type_name = "map_sequence", "sequence of maps"
                    elif choice.number in (5, 8, 9):
                        type_name = {5: "map", 8: "sparse tensor", 9: "optional"}[choice.number]
        if spec is not None:
            spec = TensorSpec(name, spec.dtype, spec.shape)
        return GraphValue(name, kind, spec, ranked, type_name, leading)

    def tensor_type(self, item: Field) -> tuple[str, tuple[int, ...] | None, str]:
        """Element type, lengths of axes (None: not said), and what the length of axis 0 is called."""
        type_name, shape, leading = "unknown", None, ""
        for part in self.reader.message(item):
            if part.number == 1:
                type_name = _DATA_TYPES.get(part.value) or _OTHER_TYPES.get(part.value, "unknown")
            elif part.number == 2:
                axes: list[int] = []
                for dimension in self.reader.message(part):
                    if dimension.number == 1:
                        size = -1
                        for choice in self.reader.message(dimension):
                            if choice.number == 1:
                                size = next(self.reader.integers(choice), -1)
                            elif choice.number == 2 and not axes:
                                leading = self.reader.text(choice)
                        axes.append(size if size >= 0 else -1)
                shape = tuple(axes)
        return type_name, shape, leading
