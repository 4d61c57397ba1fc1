"""A client of the inference protocol of hand-built messages; the real one is asked in an environment of its own."""

from __future__ import annotations

import struct
from typing import Any

import grpc
import numpy as np

from headrace_server.rpc.inference import messages as pb

__all__ = ["InferenceClient", "encoded_tensor", "tensors_of"]

_DATATYPES = {
    "bool": "BOOL", "int8": "INT8", "int16": "INT16", "int32": "INT32", "int64": "INT64", "uint8": "UINT8",
    "uint16": "UINT16", "uint32": "UINT32", "uint64": "UINT64", "float16": "FP16", "float32": "FP32",
    "float64": "FP64", "object": "BYTES",
}  # fmt: skip
_NAMES = {datatype: name for name, datatype in _DATATYPES.items()}
TIMEOUT_S = 20


def encoded_tensor(name: str, array: np.ndarray[Any, Any]) -> tuple[dict[str, Any], bytes]:
    """An input as messages have it, and its raw elements."""
    raw = array.tobytes()
    if array.dtype == object:
        raw = b"".join(struct.pack("<I", len(item)) + item for item in array.ravel().tolist())
    return {"name": name, "datatype": _DATATYPES[array.dtype.name], "shape": array.shape}, raw


def tensors_of(response: pb.ModelInferResponse) -> dict[str, np.ndarray[Any, Any]]:
    """The outputs by name; of BYTES, arrays of bytes."""
    arrays = {}
    assert len(response.raw_output_contents) == len(response.outputs)
    for output, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        if output.datatype == "BYTES":
            items, at = [], 0
            while at < len(raw):
                (length,) = struct.unpack_from("<I", raw, at)
                items.append(raw[at + 4 : at + 4 + length])
                at += 4 + length
            array = np.empty(len(items), object)
            array[:] = items
        else:
            array = np.frombuffer(raw, _NAMES[output.datatype])
        arrays[output.name] = array.reshape(tuple(output.shape))
    return arrays


class InferenceClient:
    """Calls by name: client.ModelReady(name="x")."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def __getattr__(self, method: str) -> Any:
        request_type, response_type = getattr(pb, f"{method}Request"), getattr(pb, f"{method}Response")
        call = self._channel.unary_unary(
            f"/inference.GRPCInferenceService/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_type.FromString,
        )
        return lambda **fields: call(request_type(**fields), timeout=TIMEOUT_S)

    def infer(self, model: str, tensors: dict[str, np.ndarray[Any, Any]], **fields: Any) -> pb.ModelInferResponse:
        """ModelInfer with raw tensors."""
        encoded = [encoded_tensor(name, array) for name, array in tensors.items()]
        response: pb.ModelInferResponse = self.ModelInfer(
            model_name=model,
            inputs=[tensor for tensor, _ in encoded],
            raw_input_contents=[raw for _, raw in encoded],
            **fields,
        )
        return response
