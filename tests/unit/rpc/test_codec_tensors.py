"""Tensor messages and arrays."""

from __future__ import annotations

import contextlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from headrace.v1 import tensor_pb2 as pb
from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.codec.tensors import DATA_TYPES, decode_tensor, encode_tensor

NUMPY_TYPES = [name for name in DATA_TYPES if name not in ("bfloat16", "string")]


def decode(message: pb.Tensor) -> np.ndarray:
    return decode_tensor(message, "t", max_text_bytes=100)


def refused_field(message: pb.Tensor) -> str:
    with pytest.raises(ServingError) as refused:
        decode(message)
    assert refused.value.reason is Reason.INVALID_INPUT
    return refused.value.violations[0].field


@given(
    st.sampled_from(NUMPY_TYPES).flatmap(
        lambda name: npst.arrays(name, npst.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=4))
    )
)
def test_array_comes_back_as_it_was(array: np.ndarray) -> None:
    back = decode(encode_tensor(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_every_type_of_the_contract_can_be_decoded() -> None:
    assert set(DATA_TYPES.values()) == {number for number in pb.DataType.values() if number}


def test_numbers_are_viewed_not_copied() -> None:
    message = encode_tensor(np.arange(6, dtype=np.float32))
    assert not decode(message).flags.owndata


def test_strings_come_back_as_objects() -> None:
    array = np.array([["a", "é"], ["", "c"]], dtype=object)
    back = decode(encode_tensor(array))
    assert back.dtype == object
    assert back.tolist() == array.tolist()


def test_bfloat16_comes_back_as_it_was_sent() -> None:
    upper_halves = (np.array([1.0, -2.5, np.inf, 0.0], dtype="<f4").view("<u4") >> 16).astype("<u2")
    message = pb.Tensor(data_type=pb.DATA_TYPE_BFLOAT16, shape=[4], data=upper_halves.tobytes())
    back = decode(message)
    assert back.dtype == ml_dtypes.bfloat16
    assert back.tolist() == [1.0, -2.5, np.inf, 0.0]
    assert encode_tensor(back) == message


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (pb.Tensor(), "t.data_type"),
        (pb.Tensor(data_type=99), "t.data_type"),
        (pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[2], data=b"1234"), "t.data"),
        (pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[1], data=b"12345"), "t.data"),
        (pb.Tensor(data_type=pb.DATA_TYPE_FLOAT32, shape=[-1], data=b""), "t.shape[0]"),
        (pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[1] * 9, data=b"1"), "t.shape"),
        (pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[2**62, 4], data=b""), "t.shape"),
        (pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[2**32, 2**32], data=b""), "t.shape"),
        (pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[0, 2**62], data=b""), "t.shape"),
        (pb.Tensor(data_type=pb.DATA_TYPE_BOOL, shape=[2], data=b"\x00\x02"), "t.data"),
        (pb.Tensor(data_type=pb.DATA_TYPE_INT8, shape=[1], data=b"1", strings=["x"]), "t.strings"),
        (pb.Tensor(data_type=pb.DATA_TYPE_STRING, shape=[2], strings=["x"]), "t.strings"),
        (pb.Tensor(data_type=pb.DATA_TYPE_STRING, shape=[1], strings=["x"], data=b"1"), "t.data"),
        (pb.Tensor(data_type=pb.DATA_TYPE_STRING, shape=[1], strings=["é" * 51]), "t.strings[0]"),
    ],
)
def test_tensor_that_does_not_add_up_is_refused_by_field(message: pb.Tensor, field: str) -> None:
    assert refused_field(message) == field


@given(st.binary(max_size=64), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9), st.integers(-1, 20))
def test_no_tensor_raises_anything_but_a_refusal(data: bytes, shape: list[int], data_type: int) -> None:
    with contextlib.suppress(ServingError):
        decode(pb.Tensor(data_type=data_type, shape=shape, data=data))
