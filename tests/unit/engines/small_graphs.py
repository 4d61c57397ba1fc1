"""Small real ONNX graphs for the engine's tests, written to a folder and described as a Model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace_server.models.model import Model, Task

__all__ = [
    "classifier_with_zipmap",
    "doubler",
    "embedding_table",
    "int8_matmul",
    "model_of",
    "save",
    "strings",
    "sum_of_two",
    "value",
]


def save(
    folder: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    weights: Sequence[Any] = (),
    opsets: Sequence[tuple[str, int]] = (("", 17),),
) -> Path:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(*opset) for opset in opsets])
    model.ir_version = 8
    path = folder / "model.onnx"
    onnx.save(model, str(path))
    return path


def value(name: str, dtype: int, shape: Sequence[Any]) -> Any:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def doubler(folder: Path, dtype: int = TensorProto.FLOAT) -> Path:
    """x f32[n, 4] → twice x, thrice x."""
    numpy_type = helper.tensor_dtype_to_np_dtype(dtype)
    weights = [numpy_helper.from_array(np.array([[k]], numpy_type), f"k{k}") for k in (2, 3)]
    nodes = [helper.make_node("Mul", ["x", "k2"], ["twice"]), helper.make_node("Mul", ["x", "k3"], ["thrice"])]
    return save(
        folder, nodes, [value("x", dtype, ["n", 4])], [value(o, dtype, ["n", 4]) for o in ("twice", "thrice")], weights
    )


def embedding_table(folder: Path, rows: int = 3) -> Path:
    """ids i64[n, s] → rows of a table; an id outside it is refused by the runtime."""
    table = numpy_helper.from_array(np.arange(rows * 4, dtype=np.float32).reshape(rows, 4), "table")
    node = helper.make_node("Gather", ["table", "ids"], ["y"])
    return save(
        folder,
        [node],
        [value("ids", TensorProto.INT64, ["n", "s"])],
        [value("y", TensorProto.FLOAT, ["n", "s", 4])],
        [table],
    )


def sum_of_two(folder: Path) -> Path:
    """a f32[n] + b f32[n]: two inputs that share an axis."""
    node = helper.make_node("Add", ["a", "b"], ["y"])
    inputs = [value(name, TensorProto.FLOAT, ["n"]) for name in "ab"]
    return save(folder, [node], inputs, [value("y", TensorProto.FLOAT, ["n"])])


def bfloat16_beside_float32(folder: Path) -> Path:
    """doubled bf16[n, 2] = x bf16[n, 2] + itself, rounded; wide f32[n, 2] = x, exactly."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["wide", "wide"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["doubled"], to=TensorProto.BFLOAT16),
    ]
    outputs = [value("doubled", TensorProto.BFLOAT16, ["n", 2]), value("wide", TensorProto.FLOAT, ["n", 2])]
    return save(folder, nodes, [value("x", TensorProto.BFLOAT16, ["n", 2])], outputs)


def bfloat16_beside_strings(folder: Path) -> Path:
    types = {"x": TensorProto.BFLOAT16, "text": TensorProto.STRING}
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in types]
    inputs = [value(name, kind, ["n"]) for name, kind in types.items()]
    return save(folder, nodes, inputs, [value(f"{name}_out", kind, ["n"]) for name, kind in types.items()])


def strings(folder: Path) -> Path:
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(folder, [node], [value("x", TensorProto.STRING, ["n"])], [value("y", TensorProto.STRING, ["n"])])


def classifier_with_zipmap(folder: Path, labels: Sequence[str]) -> Path:
    """p f32[n, c] handed on as one dictionary a row, as scikit-learn exports do."""
    node = helper.make_node("ZipMap", ["p"], ["probabilities"], domain="ai.onnx.ml", classlabels_strings=list(labels))
    map_type = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    output = onnx.ValueInfoProto(name="probabilities", type=helper.make_sequence_type_proto(map_type))
    inputs = [value("p", TensorProto.FLOAT, ["n", len(labels)])]
    return save(folder, [node], inputs, [output], opsets=[("", 17), ("ai.onnx.ml", 1)])


def int8_matmul(folder: Path) -> Path:
    """x f32[n, 4] through a signed 8-bit weight with a DequantizeLinear before its MatMul."""
    weights = [
        numpy_helper.from_array(np.eye(4, dtype=np.int8), "w_q"),
        numpy_helper.from_array(np.float32(0.5), "scale"),
        numpy_helper.from_array(np.int8(0), "zero"),
    ]
    nodes = [
        helper.make_node("DequantizeLinear", ["w_q", "scale", "zero"], ["w"]),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    return save(
        folder, nodes, [value("x", TensorProto.FLOAT, ["n", 4])], [value("y", TensorProto.FLOAT, ["n", 4])], weights
    )


def model_of(graph: Path, **facts: Any) -> Model:
    return Model(
        name="small", version="1", tasks=frozenset({Task.INFER}), folder=graph.parent, graph=graph, format="onnx",
        inputs=(), outputs=(), pipelines={}, **facts,
    )  # fmt: skip
