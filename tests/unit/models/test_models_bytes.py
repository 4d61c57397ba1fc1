"""Raw bytes: which of them a window holds, and when a folder may ask for one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import answer, load, make_model, refused, tensor, write_folder

from headrace_server.errors import Reason
from headrace_server.models.byte_window import ByteWindow
from headrace_server.models.inputs import BytesInput
from headrace_server.models.model import PrepareOptions, Task

MANIFEST = """
labels = ["low", "high"]
[input]
kind = "bytes"
[window]
head = 4
tail = 4
block = 8
padding_value = 256
strip = true
"""


def window(**changes: object) -> ByteWindow:
    settings: dict[str, object] = {"head": 4, "tail": 4, "block": 8, "padding_value": 256, "strip": True, **changes}
    return ByteWindow(**settings)  # type: ignore[arg-type]


def byte_graph(width: int | str = 8, kind: int = TensorProto.INT32) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["bytes"], ["values"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["values", "matrix"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["target_label"], axis=1),
    ]
    weights = {"matrix": np.linspace(-0.01, 0.01, 16, dtype=np.float32).reshape(8, 2)}
    return make_model(nodes, [tensor("bytes", kind, "b", width)], [tensor("target_label", 1, "b", 2)], weights)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", [256] * 8),
        (b"ab", [97, 98, 256, 256, 256, 256, 97, 98]),
        (b"abcdefghij", [*b"abcd", *b"ghij"]),
        (b"  abcdefghij\n\n", [*b"abcd", *b"ghij"]),
        (b"          a          ", [256] * 8),  # nothing but white space in either block
    ],
)
def test_a_window_holds_the_first_and_the_last_bytes_without_their_white_space(
    data: bytes, expected: list[int]
) -> None:
    assert window().values(data).tolist() == expected


def test_white_space_stays_where_it_is_not_to_be_stripped() -> None:
    assert window(strip=False, tail=0, head=3).values(b" ab ").tolist() == [*b" ab"]
    assert window(strip=False, tail=3, head=0, block=0).values(b"xyz ab ").tolist() == [*b"ab "]


def test_a_byte_model_is_made_by_the_manifests_window(tmp_path: Path) -> None:
    model = load(write_folder(tmp_path, headrace__toml=MANIFEST, model__onnx=byte_graph()))
    assert model.tasks == {Task.CLASSIFY, Task.INFER}
    assert model.input_kinds == {"bytes", "tensors"}
    assert model.max_length == 8
    scores = answer(model, Task.CLASSIFY, [BytesInput(b""), BytesInput(b"abcdefghijkl")])["scores"]
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-6)
    short, long = model.pipelines[Task.CLASSIFY].prepare([BytesInput(b"abc"), BytesInput(b"x" * 99)], PrepareOptions())
    assert (short.truncated, short.num_units) == (False, 3)
    assert (long.truncated, long.num_units) == (True, 99)
    with refused(Reason.INVALID_INPUT, "inputs[0].raw: 99 bytes, limit 8"):
        model.pipelines[Task.CLASSIFY].prepare([BytesInput(b"x" * 99)], PrepareOptions(truncate=False))


@pytest.mark.parametrize(
    ("graph", "manifest", "words"),
    [
        (byte_graph("width"), MANIFEST.replace("head = 4", "head = 0\n"), ()),
        (byte_graph(), MANIFEST.replace("head = 4", "head = 5"), ("head + tail are 9", "bytes int32[?,8]")),
        (byte_graph(kind=TensorProto.UINT8), MANIFEST, ("padding_value", "256", "uint8")),
        (byte_graph(), '[input]\nkind = "bytes"', ("no [window]",)),
    ],
)
def test_a_window_that_does_not_fit_the_graph_is_refused(
    tmp_path: Path, graph: onnx.ModelProto, manifest: str, words: tuple[str, ...]
) -> None:
    folder = write_folder(tmp_path, headrace__toml=manifest, model__onnx=graph)
    if not words:
        assert load(folder).max_length == 4
        return
    with refused(Reason.MODEL_INVALID, *words):
        load(folder)
