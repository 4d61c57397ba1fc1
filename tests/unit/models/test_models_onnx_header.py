"""The header reader agrees with onnx's own reading, and never reads what it can step over."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_models import encoder, image_graph, make_model, refused, tensor

from headrace_server.errors import Reason
from headrace_server.models.onnx_header import parse_onnx_header, read_onnx_header
from headrace_server.models.wire import WireError


def external(name: str, location: str) -> TensorProto:
    proto = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    proto.external_data.add(key="location", value=location)
    return proto


def tag(number: int, length: int) -> bytes:
    """What stands before a length-delimited field."""
    content = [number << 3 | 2]
    while length > 0x7F:
        content.append(length & 0x7F | 0x80)
        length >>= 7
    return bytes([*content, length])


def wrapped(number: int, content: bytes) -> bytes:
    return tag(number, len(content)) + content


def test_inputs_outputs_and_metadata_are_those_onnx_reads() -> None:
    model = image_graph(shape=("batch", 3, 32, -1), both=True)
    helper.set_model_props(model, {"labels": "a,b"})
    header = parse_onnx_header(model.SerializeToString())
    assert [str(value.spec) for value in header.inputs] == ["image float32[?,3,32,?]"]
    assert [str(value.spec) for value in header.outputs] == ["logits float32[?,4]", "embedding float32[?,3]"]
    assert header.metadata == {"labels": "a,b"}
    assert header.opsets == {"ai.onnx": 17}
    assert [node.op_type for node in header.nodes] == [node.op_type for node in model.graph.node]


def test_an_input_with_an_initialiser_is_no_input_of_callers() -> None:
    model = encoder()
    model.graph.input.append(tensor("table", TensorProto.FLOAT, 22, 8))
    header = parse_onnx_header(model.SerializeToString())
    assert [value.name for value in header.inputs] == ["input_ids", "attention_mask", "token_type_ids"]


@pytest.mark.parametrize(
    ("dtype", "precision"),
    [(np.float32, "fp32"), (np.float16, "fp16"), (np.float64, "fp64"), (np.int8, "int8"), (np.uint8, "int8")],
)
def test_precision_is_that_of_the_weights(dtype: type, precision: str) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    node = helper.make_node("Identity", ["weights"], ["out"])
    model = make_model([node], [], [tensor("out", kind, 100)], {"weights": np.zeros(100, dtype)})
    assert parse_onnx_header(model.SerializeToString()).precision == precision


def test_an_int8_graph_is_int8_though_its_embedding_table_is_larger() -> None:
    node = helper.make_node("Identity", ["table"], ["out"])
    weights = {"table": np.zeros(600, np.float32), "layers": np.zeros(400, np.int8)}
    model = make_model([node], [], [tensor("out", TensorProto.FLOAT, 600)], weights)
    assert parse_onnx_header(model.SerializeToString()).precision == "int8"


def test_external_files_are_found_wherever_a_tensor_may_stand() -> None:
    branch = helper.make_graph([], "branch", [], [tensor("x", TensorProto.FLOAT, 2)], [external("x", "branch.bin")])
    sparse = onnx.SparseTensorProto(values=external("v", "values.bin"), indices=external("i", "indices.bin"), dims=[4])
    nodes = [
        helper.make_node("If", ["condition"], ["y"], then_branch=branch, else_branch=branch),
        helper.make_node("Constant", [], ["c"], value=external("c", "constant.bin")),
        helper.make_node("Custom", [], ["d"], domain="d", many=[external("m", "list.bin")]),
        helper.make_node("Constant", [], ["s"], sparse_value=onnx.SparseTensorProto(values=external("a", "value.bin"))),
    ]
    graph = helper.make_graph(nodes, "g", [], [tensor("y", TensorProto.FLOAT, 2)], [external("w", "weights.bin")])
    graph.sparse_initializer.append(sparse)
    model = helper.make_model(graph)
    body = [helper.make_node("Constant", [], ["o"], value=external("f", "function.bin"))]
    model.functions.append(helper.make_function("d", "F", [], ["o"], body, []))
    training = model.training_info.add()
    training.algorithm.initializer.append(external("t", "training.bin"))
    found = parse_onnx_header(model.SerializeToString()).external_files
    assert sorted(found) == sorted(
        f"{name}.bin"
        for name in ("branch", "values", "indices", "constant", "list", "weights", "function", "training", "value")
    )


def test_an_external_tensor_without_a_location_is_malformed() -> None:
    proto = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[2], data_location=TensorProto.EXTERNAL)
    graph = helper.make_graph([], "g", [], [tensor("w", TensorProto.FLOAT, 2)], [proto])
    with pytest.raises(WireError, match="names no file"):
        parse_onnx_header(helper.make_model(graph).SerializeToString())


def test_every_prefix_of_a_file_is_malformed_or_read_and_raises_nothing_else() -> None:
    content = encoder(head="logits").SerializeToString()
    malformed = 0
    for length in range(len(content)):
        try:
            parse_onnx_header(content[:length])
        except WireError:
            malformed += 1
    assert malformed > len(content) * 0.9


def test_deep_subgraphs_are_refused_rather_than_followed() -> None:
    graph = helper.make_graph([], "leaf", [], [tensor("x", TensorProto.FLOAT)]).SerializeToString()
    for _ in range(2000):
        graph = wrapped(1, wrapped(5, wrapped(6, graph)))  # a node's attribute holds the graph
    with pytest.raises(WireError, match="nested"):
        parse_onnx_header(wrapped(7, graph))


def test_a_gigabyte_of_weights_is_stepped_over(tmp_path: Path) -> None:
    size = 1 << 30
    model = make_model(
        [helper.make_node("Identity", ["w"], ["y"])],
        [],
        [tensor("y", TensorProto.FLOAT, 1)],
        {"w": np.zeros(1, np.float32)},
    )
    del model.graph.initializer[:]
    rest = model.graph.SerializeToString()
    name = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[size // 4]).SerializeToString()

    raw = tag(9, size)
    initializer = tag(5, len(name) + len(raw) + size)
    path = tmp_path / "big.onnx"
    with path.open("wb") as file:
        file.write(tag(7, len(rest) + len(initializer) + len(name) + len(raw) + size))
        file.write(rest + initializer + name + raw)
        file.truncate(file.tell() + size)  # a hole: it takes no space, but reading it would take its time
    header = read_onnx_header(path)
    assert header.weight_elements["float32"] == size // 4


@pytest.mark.parametrize("content", [b"", b"not a graph at all", b"\x00" * 64, b"\x3a\x00"])
def test_what_is_no_onnx_file_is_named_with_a_cure(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    with refused(Reason.MODEL_INVALID, "model.onnx", "again"):
        read_onnx_header(tmp_path / "model.onnx")


def test_label_tensors_are_kept_and_weights_are_not() -> None:
    weights = {"classes": np.array([b"no", b"yes"], dtype=object), "w": np.zeros(8, np.float32), "n": np.array([3, -1])}
    node = helper.make_node("Identity", ["w"], ["y"])
    graph = helper.make_graph(
        [node],
        "g",
        [],
        [tensor("y", TensorProto.FLOAT, 8)],
        [
            helper.make_tensor("classes", TensorProto.STRING, [2], [b"no", b"yes"]),
            numpy_helper.from_array(weights["w"], "w"),
            numpy_helper.from_array(weights["n"], "n"),
        ],
    )
    assert parse_onnx_header(helper.make_model(graph).SerializeToString()).constants == {
        "classes": ("no", "yes"),
        "n": (3, -1),
    }
