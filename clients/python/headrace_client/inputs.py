"""Python values as the inputs of a request.

str                       a text
(str, str)                a pair of texts
Image(bytes | path)       an encoded PNG, JPEG or WebP image
Raw(bytes)                raw bytes
{"column": value, …}      one row of a table
Tensors({"name": array})  one row of the graph's own inputs
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from headrace.v1 import input_pb2, tensor_pb2

__all__ = ["FeatureValue", "Image", "Input", "Raw", "Tensors", "encode_input", "encode_inputs", "encode_vectors"]

FeatureValue = str | float | int | bool | None


class Image:
    """An encoded image, from its bytes or a file's path."""

    __slots__ = ("data",)

    def __init__(self, source: bytes | str | os.PathLike[str]) -> None:
        self.data = source if isinstance(source, bytes) else Path(source).read_bytes()


@dataclass(frozen=True, slots=True)
class Raw:
    """Raw bytes, for models that read a file's own bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Tensors:
    """One row of the graph's own inputs by name, without the batch axis."""

    tensors: Mapping[str, npt.ArrayLike]


Input = str | tuple[str, str] | Image | Raw | Tensors | Mapping[str, FeatureValue]


def encode_inputs(inputs: Input | Sequence[Input]) -> list[input_pb2.Input]:
    """One message an input; a lone input is a list of one."""
    lone = (str, bytes, bytearray, memoryview, Image, Raw, Tensors, Mapping)
    if isinstance(inputs, lone) or _is_pair(inputs):
        return [encode_input(cast(Input, inputs))]
    return [encode_input(each) for each in inputs]


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)


def encode_input(value: Input) -> input_pb2.Input:
    """The message for one value. Raises TypeError for one that is no input."""
    if isinstance(value, str):
        return input_pb2.Input(text=value)
    if isinstance(value, Image):
        return input_pb2.Input(image=value.data)
    if isinstance(value, Raw):
        return input_pb2.Input(raw=value.data)
    if isinstance(value, Tensors):
        named = {name: _encode_tensor(np.asarray(array)) for name, array in value.tensors.items()}
        return input_pb2.Input(tensors=input_pb2.NamedTensors(tensors=named))
    if isinstance(value, Mapping):
        values = {name: _encode_feature(name, each) for name, each in value.items()}
        return input_pb2.Input(features=input_pb2.Features(values=values))
    if _is_pair(value):
        return input_pb2.Input(text_pair=input_pb2.TextPair(text=value[0], pair=value[1]))
    if isinstance(value, (bytes, bytearray, memoryview)):
        raise TypeError("bytes alone do not say what they are: wrap them in Image(…) or Raw(…)")
    raise TypeError(f"{type(value).__name__} is no input: give a str, a pair, a mapping, Image, Raw or Tensors")


def _encode_feature(name: str, value: FeatureValue) -> input_pb2.FeatureValue:
    if value is None:
        return input_pb2.FeatureValue()
    if isinstance(value, (bool, np.bool_)):
        return input_pb2.FeatureValue(flag=bool(value))
    if isinstance(value, (int, np.integer)):
        return input_pb2.FeatureValue(integer=int(value))
    if isinstance(value, (float, np.floating)):
        return input_pb2.FeatureValue(number=float(value))
    if isinstance(value, str):
        return input_pb2.FeatureValue(text=value)
    raise TypeError(f"feature {name!r} is a {type(value).__name__}: give a str, number, bool or None")


_DATA_TYPES = {
    np.dtype(name): getattr(tensor_pb2, f"DATA_TYPE_{name.upper()}")
    for name in (
        "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
        "float16", "float32", "float64",
    )
}  # fmt: skip


def _encode_tensor(array: npt.NDArray[Any]) -> tensor_pb2.Tensor:
    if array.dtype.kind in "US" or array.dtype == np.object_:
        strings = [str(each) for each in array.ravel()]
        return tensor_pb2.Tensor(data_type=tensor_pb2.DATA_TYPE_STRING, shape=array.shape, strings=strings)
    data_type = _DATA_TYPES.get(array.dtype.newbyteorder("="))
    if data_type is None:
        raise TypeError(f"an array of {array.dtype} cannot be sent")
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return tensor_pb2.Tensor(data_type=data_type, shape=array.shape, data=little.tobytes())


def encode_vectors(vectors: npt.ArrayLike) -> tensor_pb2.VectorMatrix:
    """vectors f[n, d] or f[d] as one packed float32 matrix. Raises ValueError for another rank."""
    matrix = np.atleast_2d(np.asarray(vectors, dtype="<f4"))
    if matrix.ndim != 2:
        raise ValueError(f"vectors have {matrix.ndim} axes: give [n, d]")
    return tensor_pb2.VectorMatrix(
        num_vectors=matrix.shape[0],
        dimension=matrix.shape[1],
        vector_type=tensor_pb2.VECTOR_TYPE_FLOAT32,
        data=np.ascontiguousarray(matrix).tobytes(),
    )
