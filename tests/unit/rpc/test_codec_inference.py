"""ModelInfer's tensors: every datatype, typed and raw, and what is said of those that are wrong."""

from __future__ import annotations

import struct
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace_server.config import InputLimits
from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.infer_queries import InferQuery, InferResult
from headrace_server.jobs.queries import ModelRef
from headrace_server.rpc.codec.inference import decode_infer, encode_infer, queue_timeout_s
from headrace_server.rpc.codec.inference_wire import RAW_IN_PLACE_BYTES, ReceivedInfer
from headrace_server.rpc.inference import messages as pb

LIMITS = InputLimits()
CONTENTS = {
    "BOOL": ("bool_contents", np.array([[True], [False]])),
    "INT8": ("int_contents", np.array([[-128], [127]], np.int8)),
    "INT16": ("int_contents", np.array([[-(2**15)], [2**15 - 1]], np.int16)),
    "INT32": ("int_contents", np.array([[-(2**31)], [2**31 - 1]], np.int32)),
    "INT64": ("int64_contents", np.array([[-(2**63)], [2**63 - 1]], np.int64)),
    "UINT8": ("uint_contents", np.array([[0], [255]], np.uint8)),
    "UINT16": ("uint_contents", np.array([[0], [2**16 - 1]], np.uint16)),
    "UINT32": ("uint_contents", np.array([[0], [2**32 - 1]], np.uint32)),
    "UINT64": ("uint64_contents", np.array([[0], [2**64 - 1]], np.uint64)),
    "FP32": ("fp32_contents", np.array([[1.5], [np.inf]], np.float32)),
    "FP64": ("fp64_contents", np.array([[1e300], [-0.1]], np.float64)),
}


def request(tensor: dict[str, Any], raw: bytes | None = None, **fields: Any) -> pb.ModelInferRequest:
    return pb.ModelInferRequest(
        model_name="m", inputs=[{"name": "x", **tensor}], raw_input_contents=[] if raw is None else [raw], **fields
    )


def decode(message: pb.ModelInferRequest) -> InferQuery:
    return decode_infer(message, LIMITS)


def refusal(message: pb.ModelInferRequest) -> ServingError:
    with pytest.raises(ServingError) as refused:
        decode(message)
    return refused.value


def answered(*arrays: np.ndarray[Any, Any]) -> pb.ModelInferResponse:
    outputs = {f"y{index}": array for index, array in enumerate(arrays)}
    return encode_infer(InferResult(outputs, ModelRef("m", "1")), "mark")


@pytest.mark.parametrize("datatype", CONTENTS)
def test_numbers_are_the_same_typed_raw_and_answered(datatype: str) -> None:
    field, array = CONTENTS[datatype]
    tensor = {"datatype": datatype, "shape": array.shape}
    typed = decode(request({**tensor, "contents": {field: array.ravel().tolist()}})).inputs["x"]
    raw = decode(request(tensor, array.tobytes())).inputs["x"]
    for got in (typed, raw):
        assert got.dtype == array.dtype
        np.testing.assert_array_equal(got, array)
    answer = answered(array)
    assert answer.outputs[0].datatype == datatype
    assert list(answer.outputs[0].shape) == [2, 1]
    assert answer.raw_output_contents[0] == array.tobytes()
    assert not answer.outputs[0].HasField("contents")


def test_half_precision_is_sent_raw_only() -> None:
    half = np.array([0.5, -65504], np.float16)
    got = decode(request({"datatype": "FP16", "shape": [2]}, half.tobytes())).inputs["x"]
    assert got.dtype == np.float16
    np.testing.assert_array_equal(got, half)
    assert answered(half).outputs[0].datatype == "FP16"
    brain = np.array([0x3FC0, 0xFF80], np.uint16)  # 1.5, -inf
    got = decode(request({"datatype": "BF16", "shape": [2]}, brain.tobytes())).inputs["x"]
    assert got.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(got.astype(np.float32), np.array([1.5, -np.inf], np.float32))
    assert answered(got).outputs[0].datatype == "BF16"
    assert answered(got).raw_output_contents == [brain.tobytes()]
    for datatype in ("FP16", "BF16"):
        error = refusal(request({"datatype": datatype, "shape": [1], "contents": {"fp32_contents": [1]}}))
        assert error.violations[0].field == "inputs[0].contents"
        assert datatype in error.message


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=20), max_size=8))
def test_bytes_have_their_length_before_them(elements: list[bytes]) -> None:
    raw = b"".join(struct.pack("<I", len(element)) + element for element in elements)
    tensor = {"datatype": "BYTES", "shape": [len(elements)]}
    assert decode(request(tensor, raw)).inputs["x"].tolist() == elements
    assert decode(request({**tensor, "contents": {"bytes_contents": elements}})).inputs["x"].tolist() == elements
    array = np.empty(len(elements), object)
    array[:] = elements
    assert answered(array).raw_output_contents[0] == raw


def test_texts_are_answered_in_utf8() -> None:
    assert answered(np.array([["é"], ["b"]], object)).raw_output_contents[0] == b"\x02\0\0\0\xc3\xa9\x01\0\0\0b"


def test_scalars_and_empty_tensors_are_tensors() -> None:
    assert decode(request({"datatype": "FP32", "shape": []}, b"\0\0\0\x40")).inputs["x"].shape == ()
    assert decode(request({"datatype": "INT64", "shape": [0, 3]}, b"")).inputs["x"].shape == (0, 3)
    assert decode(request({"datatype": "FP32", "shape": [0]})).inputs["x"].size == 0


def test_raw_numbers_are_viewed_where_they_arrived() -> None:
    array = np.arange(RAW_IN_PLACE_BYTES, dtype=np.float32)
    views = 0
    for filler in range(4):  # one of four places is a multiple of four bytes
        data = request({"datatype": "FP32", "shape": array.shape}, array.tobytes(), id="x" * filler).SerializeToString()
        received = ReceivedInfer.FromString(data)
        assert not received.message.raw_input_contents
        got = decode_infer(received.message, LIMITS, received.raw).inputs["x"]
        np.testing.assert_array_equal(got, array)
        assert got.flags.aligned
        views += np.shares_memory(got, np.frombuffer(data, np.uint8))
    assert views == 1


def test_raw_bytes_of_a_small_message_are_viewed() -> None:
    message = request({"datatype": "UINT8", "shape": [3]}, b"abc")
    assert not decode(message).inputs["x"].flags.owndata
    assert not decode(message).inputs["x"].flags.writeable


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=40), st.booleans())
def test_what_is_found_in_place_is_what_the_parser_finds(noise: bytes, cut: bool) -> None:
    raw = bytes(RAW_IN_PLACE_BYTES)
    sound = pb.ModelInferRequest(model_name="m", id="i", inputs=[{"name": "x"}], raw_input_contents=[raw, b"", raw])
    data = sound.SerializeToString() + noise
    data = data[: -1 - len(noise) // 2] if cut else data
    try:
        expected = pb.ModelInferRequest.FromString(data)
    except Exception as error:
        with pytest.raises(type(error)):
            ReceivedInfer.FromString(data)
        return
    received = ReceivedInfer.FromString(data)
    assert [bytes(part) for part in received.raw] == list(expected.raw_input_contents)
    expected.ClearField("raw_input_contents")
    if received.message.raw_input_contents:  # everything was parsed after all
        received.message.ClearField("raw_input_contents")
    assert received.message == expected


@pytest.mark.parametrize(
    ("tensor", "raw", "field", "said"),
    [
        ({"datatype": "FP33", "shape": [1]}, b"", "inputs[0].datatype", "'FP33'"),
        ({"datatype": "FP32", "shape": [-1]}, b"", "inputs[0].shape[0]", "-1, at least 0"),
        ({"datatype": "FP32", "shape": [1] * 9}, b"", "inputs[0].shape", "9 axes, limit 8"),
        ({"datatype": "FP32", "shape": [2**40, 2**40]}, b"", "inputs[0].shape", "more than any message holds"),
        ({"datatype": "FP32", "shape": [2]}, b"\0" * 7, "raw_input_contents[0]", "7 bytes, FP32[2] has 8"),
        ({"datatype": "BOOL", "shape": [2]}, b"\0\2", "raw_input_contents[0]", "a boolean of value 2"),
        ({"datatype": "BYTES", "shape": [2]}, b"\1\0\0\0a", "raw_input_contents[0]", "5 bytes, 2 elements have at"),
        ({"datatype": "BYTES", "shape": [1]}, b"\2\0\0\0a", "raw_input_contents[0]", "2 bytes by its length, 1 are"),
        ({"datatype": "BYTES", "shape": [1]}, b"\0\0\0\0a", "raw_input_contents[0]", "end after 4"),
        ({"datatype": "BYTES", "shape": [2]}, b"\4\0\0\0abcd", "raw_input_contents[0]", "of element 1 is missing"),
        ({"datatype": "BYTES", "shape": [2**21]}, b"", "raw_input_contents[0]", "2097152 elements"),
        (
            {"datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [1]}},
            b"\0" * 4,
            "inputs[0].contents",
            "raw",
        ),
        (
            {"datatype": "FP32", "shape": [1], "contents": {"int_contents": [1]}},
            None,
            "inputs[0].contents.int_contents",
            "FP32 is given in fp32_contents",
        ),
        ({"datatype": "FP32", "shape": [2]}, None, "inputs[0].contents.fp32_contents", "0 values, the shape has 2"),
        (
            {"datatype": "INT8", "shape": [1], "contents": {"int_contents": [128]}},
            None,
            "inputs[0].contents.int_contents",
            "128, INT8 is from -128 to 127",
        ),
        (
            {"datatype": "UINT16", "shape": [1], "contents": {"uint_contents": [65536]}},
            None,
            "inputs[0].contents.uint_contents",
            "65536, UINT16 is from 0 to 65535",
        ),
    ],
)
def test_wrong_tensor_is_refused_by_field_value_and_limit(
    tensor: dict[str, Any], raw: bytes | None, field: str, said: str
) -> None:
    error = refusal(request(tensor, raw))
    assert error.reason is Reason.INVALID_INPUT
    assert error.violations[0].field == field
    assert said in error.message


def test_raw_entries_must_be_as_many_as_inputs() -> None:
    message = request({"datatype": "UINT8", "shape": [1]}, b"a")
    message.raw_input_contents.append(b"b")
    assert "2 entries, one for each of 1 inputs" in refusal(message).message


def test_names_are_given_once() -> None:
    message = request({"datatype": "UINT8", "shape": [1]}, b"a")
    message.inputs.add().CopyFrom(message.inputs[0])
    message.raw_input_contents.append(b"b")
    assert refusal(message).violations[0].field == "inputs[1].name"


def test_parameters_are_read_or_refused_or_passed_over() -> None:
    def with_parameters(**parameters: Any) -> pb.ModelInferRequest:
        return request({"datatype": "UINT8", "shape": [1]}, b"a", parameters=parameters)

    asked = decode(
        with_parameters(
            routing_key={"string_param": "k"},
            normalize={"bool_param": False},
            dimensions={"int64_param": 3},
            priority={"uint64_param": 1},
            nobody={"double_param": 0.5},
        )
    )
    assert asked.model == ModelRef("m", routing_key="k")
    assert asked.options.normalize is False
    assert asked.options.dimensions == 3
    decode(with_parameters(sequence_id={"int64_param": 0}))
    assert refusal(with_parameters(sequence_id={"int64_param": 7})).reason is Reason.UNSUPPORTED
    assert "'yes', true or false" in refusal(with_parameters(truncate={"string_param": "yes"})).message
    assert queue_timeout_s(with_parameters(timeout={"int64_param": 2500})) == 0.0025
    assert queue_timeout_s(with_parameters(timeout={"int64_param": 0})) is None
    with pytest.raises(ServingError, match="microseconds"):
        queue_timeout_s(with_parameters(timeout={"int64_param": -1}))


def test_shared_memory_is_refused() -> None:
    region = {"shared_memory_region": {"string_param": "r"}}
    assert refusal(request({"datatype": "UINT8", "shape": [1], "parameters": region})).reason is Reason.UNSUPPORTED
    message = request({"datatype": "UINT8", "shape": [1]}, b"a", outputs=[{"name": "y", "parameters": region}])
    assert "outputs[0]" in refusal(message).message


def test_version_is_a_number_and_anything_else_a_label() -> None:
    def asked(version: str) -> ModelRef:
        return decode(request({"datatype": "UINT8", "shape": [1]}, b"a", model_version=version)).model

    assert asked("") == ModelRef("m")
    assert asked("12") == ModelRef("m", "12")
    assert asked("v2.1") == ModelRef("m", "v2.1")
    assert asked("canary") == ModelRef("m", label="canary")
