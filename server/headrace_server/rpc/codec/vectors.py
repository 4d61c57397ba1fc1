"""VectorMatrix ↔ float32 matrices: packed float32, float16 and int8, or plain floats."""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal

import numpy as np

from headrace.v1 import tensor_pb2
from headrace_server.errors import invalid_input
from headrace_server.jobs.queries import Vectors
from headrace_server.rpc.codec.checks import known

__all__ = ["MAX_DIMENSION", "VECTOR_TYPES", "VectorType", "decode_vectors", "encode_vectors", "packed_floats"]

VectorType = Literal["float32", "float16", "int8"]
MAX_DIMENSION = 65_536
_MAX_FLOAT16 = 65_504.0

VECTOR_TYPES: MappingProxyType[int, VectorType] = MappingProxyType(
    {
        tensor_pb2.VECTOR_TYPE_UNSPECIFIED: "float32",
        tensor_pb2.VECTOR_TYPE_FLOAT32: "float32",
        tensor_pb2.VECTOR_TYPE_FLOAT16: "float16",
        tensor_pb2.VECTOR_TYPE_INT8: "int8",
    }
)
_NUMBERS: dict[VectorType, tensor_pb2.VectorType] = {
    "float32": tensor_pb2.VECTOR_TYPE_FLOAT32,
    "float16": tensor_pb2.VECTOR_TYPE_FLOAT16,
    "int8": tensor_pb2.VECTOR_TYPE_INT8,
}


def decode_vectors(message: tensor_pb2.VectorMatrix, field: str, *, finite: bool = True) -> Vectors:
    """f32[n, d] with n, d ≥ 1, C-contiguous, every element finite; a view of the message's bytes for float32.

    finite  False: who asks looks himself at each row for values that are not

    raises  ServingError INVALID_INPUT naming `{field}.…`: sizes that disagree, unknown type, values not finite
    """
    vector_type = known(message.vector_type, VECTOR_TYPES, f"{field}.vector_type")
    vectors = _decode_floats(message, field) if message.floats else _decode_packed(message, field, vector_type)
    if not finite:
        return vectors
    are_finite = np.isfinite(vectors)
    if not are_finite.all():
        row, column = (int(place) for place in np.argwhere(~are_finite)[0])
        raise invalid_input(field, f"element {column} of vector {row} is {vectors[row, column]}, must be finite")
    return vectors


def encode_vectors(
    vectors: Vectors, vector_type: VectorType = "float32", *, as_floats: bool = False
) -> tensor_pb2.VectorMatrix:
    """The message that holds f32[n, d] `vectors`.

    float16  rounded to nearest even        int8  symmetric, one scale a row: |error| ≤ scale ÷ 2
    raises   ServingError INVALID_INPUT naming vector_type where the type cannot hold a value
    """
    num_vectors, dimension = vectors.shape
    message = tensor_pb2.VectorMatrix(num_vectors=num_vectors, dimension=dimension, vector_type=_NUMBERS[vector_type])
    if as_floats:
        for row in vectors:
            message.floats.add().MergeFromString(packed_floats(tensor_pb2.FloatVector.VALUES_FIELD_NUMBER, row))
    elif vector_type == "float32":
        message.data = vectors.astype("<f4", copy=False).tobytes()
    elif vector_type == "float16":
        _require_range(vectors, _MAX_FLOAT16, "float16")
        message.data = vectors.astype("<f2").tobytes()
    else:
        _require_range(vectors, float(np.finfo(np.float32).max), "int8")
        scales = (np.abs(vectors).max(axis=1, initial=0.0).astype(np.float64) / 127).astype(np.float32)
        divisors = np.where(scales > 0, scales, np.float32(1))[:, None].astype(np.float64)
        message.data = np.clip(np.rint(vectors / divisors), -127, 127).astype(np.int8).tobytes()
        message.scales.extend(scales.tolist())
    return message


def packed_floats(field_number: int, values: Vectors) -> bytes:
    """A `repeated float` field with `values`, serialized: to be merged into its message without a Python float each."""
    data = values.astype("<f4", copy=False).tobytes()
    return _varint(field_number << 3 | 2) + _varint(len(data)) + data


def _decode_floats(message: tensor_pb2.VectorMatrix, field: str) -> Vectors:
    if message.data or message.scales:
        raise invalid_input(f"{field}.floats", "given beside data; only one of them may be")
    if message.vector_type not in (tensor_pb2.VECTOR_TYPE_UNSPECIFIED, tensor_pb2.VECTOR_TYPE_FLOAT32):
        raise invalid_input(f"{field}.vector_type", "plain floats are float32")
    num_vectors = len(message.floats)
    if message.num_vectors not in (0, num_vectors):
        raise invalid_input(f"{field}.num_vectors", f"{message.num_vectors}, floats has {num_vectors}")
    dimension = message.dimension or len(message.floats[0].values)
    _require_dimension(dimension, field)
    vectors = np.empty((num_vectors, dimension), dtype=np.float32)
    for index, vector in enumerate(message.floats):
        if len(vector.values) != dimension:
            raise invalid_input(
                f"{field}.floats[{index}]", f"{len(vector.values)} elements, the dimension is {dimension}"
            )
        vectors[index] = vector.values
    return vectors


def _decode_packed(message: tensor_pb2.VectorMatrix, field: str, vector_type: VectorType) -> Vectors:
    num_vectors, dimension = message.num_vectors, message.dimension
    if num_vectors < 1:
        raise invalid_input(f"{field}.num_vectors", "0, at least 1")
    _require_dimension(dimension, field)
    stored = np.dtype(vector_type).newbyteorder("<")
    expected = num_vectors * dimension * stored.itemsize
    if len(message.data) != expected:
        raise invalid_input(
            f"{field}.data",
            f"{len(message.data)} bytes, {num_vectors} × {dimension} {vector_type} elements have {expected}",
            expected_bytes=expected,
        )
    num_scales = num_vectors if vector_type == "int8" else 0
    if len(message.scales) != num_scales:
        raise invalid_input(f"{field}.scales", f"{len(message.scales)}, {vector_type} has {num_scales}")
    packed = np.frombuffer(message.data, dtype=stored).reshape(num_vectors, dimension)
    if vector_type == "float32":
        return packed.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused, with its place, by the caller
        if vector_type == "float16":
            return packed.astype(np.float32)
        scales = np.array(message.scales, dtype=np.float32)
        vectors: Vectors = packed.astype(np.float32) * scales[:, None]
        return vectors


def _require_dimension(dimension: int, field: str) -> None:
    if not 1 <= dimension <= MAX_DIMENSION:
        raise invalid_input(f"{field}.dimension", f"{dimension}, from 1 to {MAX_DIMENSION}", limit=MAX_DIMENSION)


def _require_range(vectors: Vectors, largest: float, name: VectorType) -> None:
    outside = ~(np.abs(vectors) <= largest)  # NaN too
    if outside.any():
        row, column = (int(place) for place in np.argwhere(outside)[0])
        raise invalid_input(
            "vector_type", f"element {column} of vector {row} is {vectors[row, column]}, which {name} cannot hold"
        )


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
