"""Tensors of callers are checked against the signature, value by value."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from small_models import refused

from headrace_server.errors import Reason
from headrace_server.models.inputs import TensorsInput
from headrace_server.models.model import PrepareOptions
from headrace_server.models.signature import TensorSpec
from headrace_server.models.tensors import TensorReader, check_feeds

SPECS = (TensorSpec("x", "float32", (-1, 3, -1)), TensorSpec("s", "string", (-1,)))
GOOD: dict[str, Any] = {"x": np.zeros((3, 2), np.float32), "s": np.array("a", dtype=object)}


def prepare(**tensors: Any) -> Any:
    return TensorReader(SPECS).prepare([TensorsInput({**GOOD, **tensors})], PrepareOptions())[0]


def test_rows_of_equal_shapes_are_stacked() -> None:
    reader = TensorReader(SPECS)
    feeds = reader.collate([prepare(), prepare(s=np.array("é", dtype=object))])
    assert feeds["x"].shape == (2, 3, 2)
    assert feeds["s"].tolist() == ["a", "é"]


def test_rows_of_other_shapes_share_no_batch() -> None:
    assert prepare().shape_key != prepare(x=np.zeros((3, 4), np.float32)).shape_key


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"x": np.zeros((3, 2))}, ('tensors["x"]', "float64, float32 is expected")),
        ({"x": np.zeros((2, 2), np.float32)}, ('tensors["x"]', "shape [2,2], [3,any] is expected")),
        ({"x": np.zeros(3, np.float32)}, ('tensors["x"]', "shape [3]")),
        ({"x": np.full((3, 2), np.nan, np.float32)}, ('tensors["x"]', "nan at [0, 0]", "finite")),
        ({"x": np.full((3, 2), -np.inf, np.float32)}, ('tensors["x"]', "-inf")),
        ({"s": np.array(3)}, ('tensors["s"]', "int64, string is expected")),
        ({"s": np.array(b"x", dtype=object)}, ('tensors["s"]', "bytes")),
        ({"s": np.array("\ud800", dtype=object)}, ('tensors["s"]', "surrogate")),
        ({"y": np.zeros(1)}, ('tensors["y"]', "nearest")),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(tensors: dict[str, Any], words: tuple[str, ...]) -> None:
    with refused(Reason.INVALID_INPUT, "inputs[0].", *words):
        prepare(**tensors)


def test_a_tensor_that_is_missing_is_named() -> None:
    with refused(Reason.INVALID_INPUT, 'inputs[4].tensors.tensors["s"]', "missing"):
        TensorReader(SPECS).prepare([TensorsInput({"x": GOOD["x"]})], PrepareOptions(), first=4)


def test_feeds_of_a_whole_run_are_checked_with_their_batch_axis() -> None:
    feeds = check_feeds(SPECS, {"s": np.array(["a"], dtype=object), "x": np.zeros((1, 3, 9), np.float32)})
    assert list(feeds) == ["x", "s"]
    with refused(Reason.INVALID_INPUT, 'inputs["x"]', "[any,3,any]"):
        check_feeds(SPECS, {"s": np.array(["a"], dtype=object), "x": np.zeros((3, 9), np.float32)})
