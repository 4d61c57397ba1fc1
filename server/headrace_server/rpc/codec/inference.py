"""ModelInfer's messages ↔ InferQuery and InferResult: tensors of every datatype, typed and raw.

Raw numbers are viewed, not copied, wherever they begin at a multiple of their size: arrays are read-only and live as
long as the message's bytes. What is answered is always raw.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import repeat
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.config import InputLimits
from headrace_server.engines.base import Array
from headrace_server.errors import Reason, ServingError, invalid_input
from headrace_server.jobs.infer_queries import InferQuery, InferResult, ReadOptions, WantedOutput
from headrace_server.jobs.queries import ModelRef
from headrace_server.models.model import PrepareOptions
from headrace_server.models.signature import DataType, array_dtype, little_endian
from headrace_server.rpc.codec.checks import entry, require_text
from headrace_server.rpc.codec.selector import MAX_NAME_BYTES, MAX_VERSION_BYTES
from headrace_server.rpc.codec.tensors import MAX_AXES, require_shape
from headrace_server.rpc.inference import messages as pb

__all__ = ["DATATYPES", "SURELY_SHORT", "decode_infer", "decode_ref", "encode_infer", "queue_timeout_s"]

DATATYPES: Mapping[DataType, str] = MappingProxyType(
    {
        "bool": "BOOL",
        "int8": "INT8",
        "int16": "INT16",
        "int32": "INT32",
        "int64": "INT64",
        "uint8": "UINT8",
        "uint16": "UINT16",
        "uint32": "UINT32",
        "uint64": "UINT64",
        "float16": "FP16",
        "bfloat16": "BF16",
        "float32": "FP32",
        "float64": "FP64",
        "string": "BYTES",
    }
)
_MAX_ELEMENTS = 1 << 20  # of BYTES: each becomes an object
_MAX_SIZE = 1 << 30  # elements that a tensor may have without a second look
SURELY_SHORT = MAX_NAME_BYTES // 4  # characters: no encoding of a name can be too long
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
# As they are stored raw; None: BYTES, which has no size of its own.
_STORED: dict[str, np.dtype[Any] | None] = {
    datatype: None if name == "string" else little_endian("uint8" if name == "bool" else name)
    for name, datatype in DATATYPES.items()
}
_BY_DTYPE = {array_dtype(name): DATATYPES[name] for name in DATATYPES if name != "string"}
_length = struct.Struct("<I")


def decode_infer(
    request: pb.ModelInferRequest, limits: InputLimits, raw: Sequence[bytes | memoryview] | None = None
) -> InferQuery:
    """What a request asks. Raises ServingError INVALID_INPUT naming the field, UNSUPPORTED for what is not built.

    raw  its raw_input_contents where they are not in the message
    """
    name = _name(request.model_name, "model_name")
    if not name:
        raise invalid_input("model_name", "required")
    _name(request.id, "id")
    tensors = request.inputs
    if raw is None:
        raw = request.raw_input_contents
    if len(tensors) > limits.max_features:
        raise invalid_input("inputs", f"{len(tensors)} tensors, limit {limits.max_features} (max_features)")
    if raw and len(raw) != len(tensors):
        raise invalid_input(
            "raw_input_contents", f"{len(raw)} entries, one for each of {len(tensors)} inputs is expected"
        )
    inputs: dict[str, Array] = {}
    for index, (tensor, data) in enumerate(zip(tensors, raw or repeat(None), strict=False)):
        input_name = tensor.name
        if len(input_name) > SURELY_SHORT:
            require_text(input_name, f"inputs[{index}].name", MAX_NAME_BYTES)
        if input_name in inputs:
            raise invalid_input(f"inputs[{index}].name", f"{input_name[:128]!r} is given twice")
        if tensor.parameters:
            _refuse_shared_memory(tensor.parameters, f"inputs[{index}].parameters")
        inputs[input_name] = _decode(tensor, data, index)
    outputs = [_wanted(output, index) for index, output in enumerate(request.outputs)] if request.outputs else ()
    if not request.parameters:
        return InferQuery(model=decode_ref(name, request.model_version), inputs=inputs, outputs=outputs)
    parameters = _values(request.parameters)
    if parameters.get("sequence_id"):
        raise ServingError(Reason.UNSUPPORTED, 'parameters["sequence_id"]: sequences that share a state are not built')
    key = require_text(_of(parameters, "routing_key", str, ""), 'parameters["routing_key"]', MAX_NAME_BYTES)
    return InferQuery(
        model=decode_ref(name, request.model_version, routing_key=key),
        inputs=inputs,
        outputs=outputs,
        options=_options(parameters),
    )


def decode_ref(name: str, version: str, *, field: str = "model_version", routing_key: str = "") -> ModelRef:
    """The model that is asked. What stands for its version and does not begin as one ("2", "v2") is a label."""
    if not version:
        return ModelRef(name, routing_key=routing_key)
    require_text(version, field, MAX_VERSION_BYTES)
    if version.removeprefix("v")[:1].isdigit():
        return ModelRef(name, version, routing_key=routing_key)
    return ModelRef(name, label=version, routing_key=routing_key)


def _name(text: str, field: str) -> str:
    return text if len(text) <= SURELY_SHORT else require_text(text, field, MAX_NAME_BYTES)


def queue_timeout_s(request: pb.ModelInferRequest) -> float | None:
    """How long the request may wait, by its own `timeout`; None: it does not say."""
    if not request.parameters or "timeout" not in request.parameters:
        return None
    value = _values(request.parameters).get("timeout")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise invalid_input('parameters["timeout"]', f"{value!r}, a whole number of microseconds, at least 0")
    return value * 1e-6 or None


def encode_infer(result: InferResult, request_id: str) -> pb.ModelInferResponse:
    """The answer, all of it raw. Raises ValueError for an element type that the protocol lacks."""
    tensors, raw = [], []
    for name, array in result.outputs.items():
        datatype, data = _encode(array)
        tensors.append(pb.ModelInferResponse.InferOutputTensor(name=name, datatype=datatype, shape=array.shape))
        raw.append(data)
    return pb.ModelInferResponse(
        model_name=result.model.name,
        model_version=result.model.version,
        id=request_id,
        outputs=tensors,
        raw_output_contents=raw,
    )


# tensors in


def _decode(tensor: pb.ModelInferRequest.InferInputTensor, data: bytes | memoryview | None, index: int) -> Array:
    datatype = tensor.datatype
    stored = _STORED.get(datatype, _UNKNOWN)
    if stored is _UNKNOWN:
        known = ", ".join(_STORED)
        raise invalid_input(f"inputs[{index}].datatype", f"{datatype[:64]!r}, one of {known} is expected")
    shape = tuple(tensor.shape)
    size = prod(shape)
    if not 0 < size <= _MAX_SIZE or len(shape) > MAX_AXES or (shape and min(shape) < 0):  # it may be wrong
        shape, size = require_shape(shape, f"inputs[{index}].shape")
    if data is None:
        return _decode_typed(tensor, f"inputs[{index}]", shape, size)
    if tensor.HasField("contents") and tensor.contents.ListFields():
        raise invalid_input(f"inputs[{index}].contents", "given together with raw_input_contents, give one of them")
    if stored is None:
        return _decode_elements(data, f"raw_input_contents[{index}]", shape, size)
    if len(data) != size * stored.itemsize:
        expected = size * stored.itemsize
        axes = ", ".join(map(str, shape))
        raise invalid_input(
            f"raw_input_contents[{index}]",
            f"{len(data)} bytes, {datatype}[{axes}] has {expected}",
            expected_bytes=expected,
        )
    array = np.frombuffer(data, stored).reshape(shape)
    if not array.flags.aligned:  # runtimes read whole numbers
        array = array.copy()
    if datatype == "BOOL":
        if size and array.max() > 1:
            raise invalid_input(f"raw_input_contents[{index}]", f"a boolean of value {array.max()}, must be 0 or 1")
        return array.view(np.bool_)
    return array


def _decode_typed(
    tensor: pb.ModelInferRequest.InferInputTensor, where: str, shape: tuple[int, ...], size: int
) -> Array:
    datatype = tensor.datatype
    wanted = _CONTENTS.get(datatype)
    if wanted is None:
        raise invalid_input(f"{where}.contents", f"{datatype} is sent in raw_input_contents only")
    contents = tensor.contents
    for field, values in contents.ListFields():
        if field.name != wanted:
            raise invalid_input(
                f"{where}.contents.{field.name}", f"{len(values)} values, {datatype} is given in {wanted}"
            )
    values = getattr(contents, wanted)
    if len(values) != size:
        raise invalid_input(f"{where}.contents.{wanted}", f"{len(values)} values, the shape has {size}", expected=size)
    if datatype == "BYTES":
        return _objects(list(values), f"{where}.contents.{wanted}").reshape(shape)
    stored = _STORED[datatype]
    assert stored is not None, "BYTES has been dealt with"
    if datatype == "BOOL":
        return np.array(values, np.bool_).reshape(shape)
    if size and wanted in ("int_contents", "uint_contents"):
        limits = np.iinfo(stored)
        for value in (min(values), max(values)):
            if not limits.min <= value <= limits.max:
                raise invalid_input(
                    f"{where}.contents.{wanted}", f"{value}, {datatype} is from {limits.min} to {limits.max}"
                )
    return np.array(values, stored).reshape(shape)


def _decode_elements(
    data: bytes | memoryview, where: str, shape: tuple[int, ...], size: int
) -> npt.NDArray[np.object_]:
    if size > _MAX_ELEMENTS:
        raise invalid_input(where, f"{size} elements of BYTES, limit {_MAX_ELEMENTS}", limit=_MAX_ELEMENTS)
    if size * 4 > len(data):
        raise invalid_input(where, f"{len(data)} bytes, {size} elements have at least {size * 4}")
    elements: list[bytes] = []
    at = 0
    data = bytes(data)
    for index in range(size):
        if at + 4 > len(data):
            raise invalid_input(where, f"{len(data)} bytes, the length of element {index} is missing")
        (length,) = _length.unpack_from(data, at)
        at += 4
        if length > len(data) - at:
            raise invalid_input(where, f"element {index} has {length} bytes by its length, {len(data) - at} are left")
        elements.append(data[at : at + length])
        at += length
    if at != len(data):
        raise invalid_input(where, f"{len(data)} bytes, the {size} elements of the shape end after {at}")
    return _objects(elements, where).reshape(shape)


def _objects(elements: list[bytes], where: str) -> npt.NDArray[np.object_]:
    if len(elements) > _MAX_ELEMENTS:
        raise invalid_input(where, f"{len(elements)} elements of BYTES, limit {_MAX_ELEMENTS}", limit=_MAX_ELEMENTS)
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array


# tensors out


def _encode(array: Array) -> tuple[str, bytes]:
    datatype = _BY_DTYPE.get(array.dtype)
    if datatype is not None:
        return datatype, array.tobytes()
    if array.dtype.kind in "OUST":
        parts = []
        for item in array.ravel().tolist():
            data = item if isinstance(item, bytes) else str(item).encode(errors="replace")
            parts += [_length.pack(len(data)), data]
        return "BYTES", b"".join(parts)
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    datatype = _BY_DTYPE.get(np.dtype(array.dtype.name))
    if datatype is None:
        raise ValueError(f"arrays of {array.dtype} cannot be sent")
    return datatype, little.tobytes()


# parameters

_Value = bool | int | float | str
_UNKNOWN: Any = object()


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, _Value]:
    values: dict[str, _Value] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is not None:
            values[name] = getattr(parameter, kind)
    return values


def _of(parameters: Mapping[str, _Value], name: str, kind: type, default: Any) -> Any:
    value = parameters.get(name, default)
    if value is default:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        what = {bool: "true or false", int: "a whole number", str: "a text"}[kind]
        raise invalid_input(entry("parameters", name), f"{str(value)[:64]!r}, {what} is expected")
    return value


def _options(parameters: Mapping[str, _Value]) -> ReadOptions:
    dimensions = _of(parameters, "dimensions", int, 0)
    if dimensions < 0:
        raise invalid_input('parameters["dimensions"]', f"{dimensions}, at least 0 (all)")
    return ReadOptions(
        prepare=PrepareOptions(
            truncate=_of(parameters, "truncate", bool, True),
            truncation_side=_of(parameters, "truncation_side", str, ""),
            prompt_name=require_text(
                _of(parameters, "prompt_name", str, ""), 'parameters["prompt_name"]', MAX_NAME_BYTES
            ),
        ),
        normalize=_of(parameters, "normalize", bool, None),
        dimensions=dimensions,
    )


def _wanted(output: pb.ModelInferRequest.InferRequestedOutputTensor, index: int) -> WantedOutput:
    where = f"outputs[{index}].parameters"
    name = require_text(output.name, f"outputs[{index}].name", MAX_NAME_BYTES)
    if not output.parameters:
        return WantedOutput(name)
    _refuse_shared_memory(output.parameters, where)
    values = _values(output.parameters)
    if "classification" not in values:
        return WantedOutput(name)
    count = values["classification"]
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise invalid_input(entry(where, "classification"), f"{str(count)[:64]}, a whole number, at least 1")
    return WantedOutput(name, count)


def _refuse_shared_memory(parameters: Mapping[str, pb.InferParameter], where: str) -> None:
    for name in parameters:
        if name.startswith("shared_memory"):
            raise ServingError(Reason.UNSUPPORTED, f"{entry(where, name)}: shared memory is not built")
