"""TensorRT's element types as the server's."""

from __future__ import annotations

from types import MappingProxyType

from headrace_server.engines.onnx.types import GraphTensor
from headrace_server.engines.tensorrt.seam import LoadedTensor
from headrace_server.errors import Reason, ServingError
from headrace_server.models.signature import DataType, TensorSpec, array_dtype

__all__ = ["data_type", "graph_tensor_of"]

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
    """The tensor as feeds are checked against it."""
    symbols: tuple[str | None, ...] = (None,) * len(tensor.shape)
    spec = TensorSpec(tensor.name, tensor.dtype, tensor.shape)
    return GraphTensor(spec, False, array_dtype(tensor.dtype), symbols)
