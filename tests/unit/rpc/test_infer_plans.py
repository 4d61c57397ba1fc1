"""Requests known by their bytes: what a plan says is what the codec says, or the plan says nothing; of answers too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError

from headrace_server.config import InputLimits
from headrace_server.errors import ServingError
from headrace_server.jobs.infer_queries import InferResult
from headrace_server.jobs.queries import ModelRef
from headrace_server.rpc.codec.inference import decode_infer, encode_infer
from headrace_server.rpc.inference import messages as pb
from headrace_server.rpc.inference.plans import InferPlan, InferPlans, encode_answers

LIMITS = InputLimits()
NUMBERS = {
    "INT8": "i1", "INT16": "<i2", "INT32": "<i4", "INT64": "<i8", "UINT8": "u1", "UINT16": "<u2", "UINT32": "<u4",
    "UINT64": "<u8", "FP16": "<f2", "FP32": "<f4", "FP64": "<f8",
}  # fmt: skip


def request(
    rows: int = 1, datatypes: Sequence[str] = ("FP32",), width: int = 3, seed: int = 0, **fields: Any
) -> pb.ModelInferRequest:
    rng = np.random.default_rng(seed)
    message = pb.ModelInferRequest(model_name="m", **fields)
    for index, datatype in enumerate(datatypes):
        message.inputs.add(name=f"x{index}", datatype=datatype, shape=(rows, width))
        message.raw_input_contents.append(rng.bytes(rows * width * np.dtype(NUMBERS[datatype]).itemsize))
    return message


def learnt(message: pb.ModelInferRequest | bytes) -> InferPlans:
    plans = InferPlans(LIMITS)
    plans.learn(message if isinstance(message, bytes) else message.SerializeToString())
    return plans


def meaning(data: bytes) -> Any:
    """What the codec reads in a request; None: it refuses it."""
    try:
        message = pb.ModelInferRequest.FromString(data)
        query = decode_infer(message, LIMITS)
    except (DecodeError, ServingError):
        return None
    tensors = {name: (array.dtype.str, array.shape, array.tobytes()) for name, array in query.inputs.items()}
    return query.model, message.id, tensors, tuple(output.name for output in query.outputs), query.options


def planned(found: tuple[InferPlan, bytes, Sequence[bytes]]) -> Any:
    plan, request_id, contents = found
    shape = plan.shape
    tensors = {each.name: (each.dtype.str, each.shape, data) for each, data in zip(shape.inputs, contents, strict=True)}
    bare = decode_infer(request(), LIMITS)
    return shape.model, request_id.decode(), tensors, shape.outputs, bare.options


VARIANTS = [
    request(),
    request(2, ("FP32", "INT64", "FP16")),
    request(3, ("UINT8",), id="abc"),
    request(1, ("INT32", "FP64"), model_version="2", id="7"),
    request(1, ("FP32",), model_version="canary"),
    request(40, ("FP32",), outputs=[{"name": "y"}, {"name": "a"}]),
    request(id="9", parameters={"triton_enable_empty_final_response": pb.InferParameter(bool_param=True)}),
]


@pytest.mark.parametrize("message", VARIANTS)
def test_a_request_of_the_same_bytes_is_found_with_its_own_id_and_values(message: pb.ModelInferRequest) -> None:
    plans = learnt(message)
    for number, request_id in enumerate(("", "x", "é"[:0], "request-17", "a" * 64)):
        other = pb.ModelInferRequest.FromString(message.SerializeToString())
        other.id = request_id
        other.raw_input_contents[:] = [random.Random(number).randbytes(len(raw)) for raw in message.raw_input_contents]
        data = other.SerializeToString()
        found = plans.find(data)
        assert found is not None
        assert planned(found) == meaning(data)


@pytest.mark.parametrize("num", [400, pytest.param(40_000, marks=pytest.mark.full)])
@pytest.mark.parametrize("message", VARIANTS)
def test_what_is_found_means_what_the_codec_reads(message: pb.ModelInferRequest, num: int) -> None:
    plans, rng = learnt(message), random.Random(5)
    data = message.SerializeToString()
    num_found = 0
    for _ in range(num):
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 5))):
            at = rng.randrange(min(len(changed), 96) if rng.random() < 0.8 else len(changed))
            kind = rng.random()
            if kind < 0.6:
                changed[at] = rng.choice((rng.randrange(256), changed[at] ^ 1, changed[at] ^ 0x80, 0x1A, 0x12, 0))
            elif kind < 0.8:
                del changed[at]
            else:
                changed.insert(at, rng.choice((0, 0x1A, 0x80, 0x81, rng.randrange(256))))
        found = plans.find(bytes(changed))
        if found is not None:
            num_found += 1
            assert planned(found) == meaning(bytes(changed))
    assert num_found  # values were changed too, or this says nothing


def test_an_id_whose_length_is_written_in_two_bytes_is_parsed() -> None:
    message = request()
    plans = learnt(message)
    head = b"\x0a\x01m"
    rest = message.SerializeToString()[len(head) :]
    assert plans.find(head + b"\x1a\x02ab" + rest) is not None
    assert plans.find(head + b"\x1a\x82\x00ab" + rest) is None
    assert plans.find(head + b"\x1a\xc8" + b"a" * 200 + rest) is None
    assert plans.find(head + b"\x1a\x02\xff\xff" + rest) is None  # no UTF-8: the parser refuses it


@pytest.mark.parametrize(
    "message",
    [
        request(parameters={"timeout": pb.InferParameter(int64_param=5)}),
        request(outputs=[{"name": "y", "parameters": {"classification": pb.InferParameter(int64_param=2)}}]),
        request(model_version="x" * 65),
        pb.ModelInferRequest(model_name="m"),
        pb.ModelInferRequest(
            model_name="m",
            inputs=[{"name": "x", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [1]}}],
        ),
        pb.ModelInferRequest(
            model_name="m",
            inputs=[{"name": "x", "datatype": "BYTES", "shape": [1]}],
            raw_input_contents=[b"\x01\0\0\0a"],
        ),
        pb.ModelInferRequest(
            model_name="m", inputs=[{"name": "x", "datatype": "BOOL", "shape": [1]}], raw_input_contents=[b"\1"]
        ),
        pb.ModelInferRequest(
            model_name="m", inputs=[{"name": "x", "datatype": "BF16", "shape": [1]}], raw_input_contents=[b"\1\1"]
        ),
        pb.ModelInferRequest(
            model_name="m",
            inputs=[{"name": name, "datatype": "INT8", "shape": [size]} for name, size in (("a", 1), ("b", 2))],
            raw_input_contents=[b"1", b"12"],
        ),
    ],
)
def test_what_is_read_one_by_one_has_no_plan(message: pb.ModelInferRequest) -> None:
    assert learnt(message).find(message.SerializeToString()) is None


def test_a_request_written_in_another_order_has_no_plan() -> None:
    message = request(id="7")
    data = pb.ModelInferRequest(id="7").SerializeToString()
    message.id = ""
    data += message.SerializeToString()
    assert meaning(data) is not None
    assert learnt(data).find(data) is None
    unknown = request().SerializeToString() + b"\xf8\x07\x01"
    assert meaning(unknown) is not None
    assert learnt(unknown).find(unknown) is None


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("ids", [("",), ("", "a", "b" * 64)])
@pytest.mark.parametrize("names", [("y",), ("y", "z")])
def test_answers_are_the_codecs_byte_for_byte(rows: int, ids: tuple[str, ...], names: tuple[str, ...]) -> None:
    found = learnt(message := request(rows)).find(message.SerializeToString())
    assert found is not None
    rng = np.random.default_rng(3)
    dtypes = [*(np.dtype(name) for name in NUMBERS.values()), np.dtype(bool), np.dtype(object), np.dtype(">f4")]
    for dtype in dtypes:
        for width in (0, 1, 2, 200):
            whole = {
                name: (rng.integers(0, 2, (rows * len(ids), width, 2)) + number).astype(dtype)
                for number, name in enumerate(names)
            }
            model = ModelRef("m", "3")
            expected = []
            for index, request_id in enumerate(ids):
                part = {name: array[index * rows : (index + 1) * rows] for name, array in whole.items()}
                expected.append(encode_infer(InferResult(part, model), request_id).SerializeToString())
            encoded = [request_id.encode() for request_id in ids]
            assert list(encode_answers(found[0], "3", whole, encoded)) == expected
