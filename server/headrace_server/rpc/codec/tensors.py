"""Tensor messages ↔ arrays, for every element type of the contract.

Numbers are viewed, not copied, where the type allows: arrays are read-only and live as long as the message's bytes.
Strings become an array of objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from headrace.v1 import tensor_pb2
from headrace_server.engines.base import Array
from headrace_server.errors import invalid_input
from headrace_server.models.signature import BFLOAT16, DataType, little_endian

__all__ = ["DATA_TYPES", "MAX_AXES", "decode_tensor", "encode_tensor", "require_shape"]

MAX_AXES = 8
_MAX_ELEMENTS = 1 << 40  # more than any message holds; keeps empty tensors of absurd shape away from NumPy

DATA_TYPES: MappingProxyType[DataType, int] = MappingProxyType(
    {
        "bool": tensor_pb2.DATA_TYPE_BOOL,
        "int8": tensor_pb2.DATA_TYPE_INT8,
        "int16": tensor_pb2.DATA_TYPE_INT16,
        "int32": tensor_pb2.DATA_TYPE_INT32,
        "int64": tensor_pb2.DATA_TYPE_INT64,
        "uint8": tensor_pb2.DATA_TYPE_UINT8,
        "uint16": tensor_pb2.DATA_TYPE_UINT16,
        "uint32": tensor_pb2.DATA_TYPE_UINT32,
        "uint64": tensor_pb2.DATA_TYPE_UINT64,
        "float16": tensor_pb2.DATA_TYPE_FLOAT16,
        "bfloat16": tensor_pb2.DATA_TYPE_BFLOAT16,
        "float32": tensor_pb2.DATA_TYPE_FLOAT32,
        "float64": tensor_pb2.DATA_TYPE_FLOAT64,
        "string": tensor_pb2.DATA_TYPE_STRING,
    }
)
_NAMES: dict[int, DataType] = {number: name for name, number in DATA_TYPES.items()}


def decode_tensor(message: tensor_pb2.Tensor, field: str, *, max_text_bytes: int) -> Array:
    """The array that `message` holds.

    returns  read-only, C-contiguous, of the named type; object (str) for strings
    raises   ServingError INVALID_INPUT naming `{field}.…`: unknown type, bad shape, sizes that disagree
    """
    name = _NAMES.get(message.data_type)
    if name is None:
        raise invalid_input(f"{field}.data_type", f"{message.data_type}, a data type is required")
    shape, size = require_shape(message.shape, f"{field}.shape")
    if name == "string":
        return _decode_strings(message, field, shape, size, max_text_bytes)
    if message.strings:
        raise invalid_input(f"{field}.strings", f"{len(message.strings)} strings in a tensor of {name}")
    stored = _stored_type(name)
    expected = size * stored.itemsize
    if len(message.data) != expected:
        axes = ", ".join(map(str, shape))
        raise invalid_input(
            f"{field}.data", f"{len(message.data)} bytes, {name}[{axes}] has {expected}", expected_bytes=expected
        )
    array = np.frombuffer(message.data, dtype=stored).reshape(shape)
    if name == "bool":
        if size and array.max() > 1:
            raise invalid_input(f"{field}.data", f"a boolean of value {array.max()}, must be 0 or 1")
        return array.view(np.bool_)
    return array


def encode_tensor(array: Array) -> tensor_pb2.Tensor:
    """The message that holds `array`. Raises ValueError for an element type that the contract lacks."""
    if array.dtype.kind in "OUS":
        strings = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
        return tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_STRING, shape=array.shape, strings=strings)
    for name, number in DATA_TYPES.items():
        if name == array.dtype.name:
            little = array if array.dtype == BFLOAT16 else array.astype(array.dtype.newbyteorder("<"), copy=False)
            return tensor_pb2.Tensor(data_type=number, shape=array.shape, data=little.tobytes())  # type: ignore[arg-type]
    raise ValueError(f"arrays of {array.dtype} cannot be sent")


def require_shape(axes: Sequence[int], field: str) -> tuple[tuple[int, ...], int]:
    """The shape, and the number of elements. Raises INVALID_INPUT naming the axis that is out of range."""
    shape = tuple(axes[: MAX_AXES + 1])
    if len(shape) > MAX_AXES:
        raise invalid_input(field, f"{len(axes)} axes, limit {MAX_AXES}", limit=MAX_AXES)
    size = extent = 1
    for index, length in enumerate(shape):
        if length < 0:
            raise invalid_input(f"{field}[{index}]", f"{length}, at least 0")
        size *= length
        extent *= length or 1
    if extent > _MAX_ELEMENTS:
        raise invalid_input(field, f"{', '.join(map(str, shape))} is more than any message holds")
    return shape, size


def _stored_type(name: DataType) -> np.dtype[np.generic]:
    return little_endian("uint8" if name == "bool" else name)


def _decode_strings(
    message: tensor_pb2.Tensor, field: str, shape: tuple[int, ...], size: int, max_text_bytes: int
) -> npt.NDArray[np.object_]:
    if message.data:
        raise invalid_input(f"{field}.data", f"{len(message.data)} bytes in a tensor of strings")
    if len(message.strings) != size:
        raise invalid_input(f"{field}.strings", f"{len(message.strings)}, the shape has {size}", expected=size)
    array = np.empty(size, dtype=np.object_)
    for index, text in enumerate(message.strings):
        if len(text) * 4 > max_text_bytes and len(text.encode()) > max_text_bytes:
            raise invalid_input(
                f"{field}.strings[{index}]", f"{len(text.encode())} bytes, limit {max_text_bytes} (max_text_bytes)"
            )
        array[index] = text
    return array.reshape(shape)
