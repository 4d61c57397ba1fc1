"""Packed vectors and matrices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from headrace.v1 import embedding_pb2
from headrace.v1 import tensor_pb2 as pb
from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.codec.vectors import decode_vectors, encode_vectors, packed_floats

finite_matrices = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, max_side=6),
    elements=st.floats(-60_000, 60_000, width=32),
)


@given(finite_matrices, st.booleans())
def test_float32_vectors_come_back_exactly(vectors: np.ndarray, as_floats: bool) -> None:
    message = encode_vectors(vectors, as_floats=as_floats)
    assert bool(message.data) is not as_floats
    back = decode_vectors(message, "v")
    assert back.dtype == np.float32
    assert back.flags.c_contiguous
    np.testing.assert_array_equal(back, vectors)


@given(finite_matrices)
def test_float16_vectors_are_rounded_to_nearest_even(vectors: np.ndarray) -> None:
    back = decode_vectors(encode_vectors(vectors, "float16"), "v")
    np.testing.assert_array_equal(back, vectors.astype(np.float16).astype(np.float32))


@given(npst.arrays(np.float32, (3, 4), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_int8_vectors_are_within_half_a_scale(vectors: np.ndarray) -> None:
    message = encode_vectors(vectors, "int8")
    assert np.frombuffer(message.data, np.int8).min(initial=0) >= -127
    scales = np.array(message.scales, dtype=np.float64)[:, None]
    back = np.frombuffer(message.data, np.int8).reshape(3, 4) * scales
    smallest = np.finfo(np.float32).smallest_subnormal * 127  # below, a scale has no digits to speak of
    assert (np.abs(back - vectors) <= np.maximum(scales * 0.5001, smallest)).all()


def test_zero_vector_survives_int8() -> None:
    np.testing.assert_array_equal(decode_vectors(encode_vectors(np.zeros((2, 3), np.float32), "int8"), "v"), 0)


@pytest.mark.parametrize(
    ("value", "vector_type"), [(70_000, "float16"), (np.inf, "float16"), (np.nan, "float16"), (np.inf, "int8")]
)
def test_value_that_the_type_cannot_hold_is_refused(value: float, vector_type: str) -> None:
    with pytest.raises(ServingError) as refused:
        encode_vectors(np.array([[0, value]], np.float32), vector_type)
    assert refused.value.violations[0].field == "vector_type"


def matrix(**fields: object) -> pb.VectorMatrix:
    return pb.VectorMatrix(**{"num_vectors": 1, "dimension": 2, "data": bytes(8), **fields})


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.VectorMatrix(), "v.num_vectors"),
        (matrix(num_vectors=0), "v.num_vectors"),
        (matrix(dimension=0), "v.dimension"),
        (matrix(dimension=65_537), "v.dimension"),
        (matrix(num_vectors=2**32 - 1, dimension=65_536), "v.data"),
        (matrix(data=bytes(7)), "v.data"),
        (matrix(vector_type=9), "v.vector_type"),
        (matrix(scales=[1]), "v.scales"),
        (matrix(vector_type=pb.VECTOR_TYPE_INT8, data=bytes(2)), "v.scales"),
        (matrix(data=np.array([1, np.nan], "<f4").tobytes()), "v"),
        (matrix(vector_type=pb.VECTOR_TYPE_FLOAT16, data=np.array([1, np.inf], "<f2").tobytes()), "v"),
        (matrix(vector_type=pb.VECTOR_TYPE_INT8, data=b"\x01\x7f", scales=[3e38]), "v"),
        (matrix(floats=[pb.FloatVector(values=[1, 2])]), "v.floats"),
        (pb.VectorMatrix(floats=[pb.FloatVector(values=[1, 2]), pb.FloatVector(values=[1])]), "v.floats[1]"),
        (pb.VectorMatrix(num_vectors=5, floats=[pb.FloatVector(values=[1, 2])]), "v.num_vectors"),
        (pb.VectorMatrix(floats=[pb.FloatVector()]), "v.dimension"),
        (pb.VectorMatrix(floats=[pb.FloatVector(values=[1])], vector_type=pb.VECTOR_TYPE_INT8), "v.vector_type"),
        (pb.VectorMatrix(floats=[pb.FloatVector(values=[np.inf])]), "v"),
    ],
)
def test_matrix_that_does_not_add_up_is_refused_by_field(message: pb.VectorMatrix, field: str) -> None:
    with pytest.raises(ServingError) as refused:
        decode_vectors(message, "v")
    assert refused.value.reason is Reason.INVALID_INPUT
    assert refused.value.violations[0].field == field


def test_place_of_a_value_that_is_not_finite_is_named() -> None:
    with pytest.raises(ServingError, match="element 1 of vector 0 is nan"):
        decode_vectors(matrix(data=np.array([1, np.nan], "<f4").tobytes()), "v")


def test_packed_floats_are_what_protobuf_would_write() -> None:
    values = np.linspace(-1, 1, 1000, dtype=np.float32)
    expected = embedding_pb2.SimilarityResponse(scores=values.tolist()).SerializeToString()
    assert packed_floats(embedding_pb2.SimilarityResponse.SCORES_FIELD_NUMBER, values) == expected
