"""TensorRT's element types as the server's, and bfloat16, which NumPy has not, as the float32 that callers see."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.engines.base import Array
from headrace_server.engines.onnx_types import GraphTensor
from headrace_server.engines.tensorrt_seam import LoadedTensor, Shape
from headrace_server.errors import Reason, ServingError
from headrace_server.models.signature import DataType, TensorSpec

__all__ = ["data_type", "from_wire", "graph_tensor_of", "to_wire", "wire_dtype"]

_NAMES: MappingProxyType[str, DataType] = MappingProxyType(
    {
        "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT8": "int8", "INT32": "int32", "INT64": "int64",
        "BOOL": "bool", "UINT8": "uint8",
    }
)  # fmt: skip


def data_type(name: str, tensor: str) -> DataType:
    """Ours for TensorRT's "HALF". Raises ServingError MODEL_INVALID for a type that no caller can send or read."""
    found = _NAMES.get(name)
    if found is None:
        raise ServingError(
            Reason.MODEL_INVALID, f"tensor {tensor!r} is a {name.lower()}, which no caller can send or read; cast it"
        )
    return found


def graph_tensor_of(tensor: LoadedTensor) -> GraphTensor:
    """The tensor as callers see it: a bfloat16 is a float32 to them."""
    dtype: DataType = "float32" if tensor.dtype == "bfloat16" else tensor.dtype
    symbols: tuple[str | None, ...] = (None,) * len(tensor.shape)
    return GraphTensor(TensorSpec(tensor.name, dtype, tensor.shape), False, np.dtype(dtype), symbols)


def wire_dtype(dtype: DataType) -> np.dtype[Any]:
    """How an element lies in memory; bfloat16 as its 16 bits."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def to_wire(values: Array, dtype: DataType, out: Array) -> None:
    """Writes a caller's values into `out`, of `wire_dtype(dtype)`; to bfloat16 they are rounded to nearest even."""
    if dtype != "bfloat16":
        out[...] = values
        return
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    # A NaN whose bits round up would become an infinity.
    out[...] = np.where(np.isnan(values), np.uint32(0x7FC0), rounded).astype(np.uint16)


def from_wire(values: Array, dtype: DataType, shape: Shape) -> Array:
    """A copy of what lies in memory, as callers read it."""
    if dtype != "bfloat16":
        return values.reshape(shape).copy()
    wide: npt.NDArray[np.float32] = (values.astype(np.uint32) << np.uint32(16)).view(np.float32).reshape(shape)
    return wide
