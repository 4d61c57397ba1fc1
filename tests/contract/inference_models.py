"""Models that are asked by their tensors alone: one of every datatype, one without a batch axis, one that waits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper
from unit.models.small_models import make_model, tensor, write_classifier, write_folder

__all__ = ["DTYPES", "write_tensor_models"]

# By datatype of the protocol: ONNX's number and NumPy's name.
DTYPES = {
    "BOOL": (TensorProto.BOOL, "bool"),
    "INT8": (TensorProto.INT8, "int8"),
    "INT16": (TensorProto.INT16, "int16"),
    "INT32": (TensorProto.INT32, "int32"),
    "INT64": (TensorProto.INT64, "int64"),
    "UINT8": (TensorProto.UINT8, "uint8"),
    "UINT16": (TensorProto.UINT16, "uint16"),
    "UINT32": (TensorProto.UINT32, "uint32"),
    "UINT64": (TensorProto.UINT64, "uint64"),
    "FP16": (TensorProto.FLOAT16, "float16"),
    "FP32": (TensorProto.FLOAT, "float32"),
    "FP64": (TensorProto.DOUBLE, "float64"),
    "BYTES": (TensorProto.STRING, "object"),
}


def write_tensor_models(folder: Path) -> Path:
    """Models of tensors, and one of texts, in a repository.

    `every`: an identity of each datatype, [batch, 2]; `product`: a[rows, 3] times b[3, columns], no batch axis;
    `patient`: twice x[batch, 4], whose worker waits 300 ms for company;
    `patient-mood`: a classifier of texts that waits as long.
    """
    patience = "[batching]\nmax_delay_ms = 300\nmax_padding_ratio = 16\n"
    write_classifier(folder / "patient-mood" / "1", headrace__toml=patience)
    write_folder(folder / "every" / "1", model__onnx=_every())
    write_folder(folder / "product" / "1", model__onnx=_product())
    write_folder(folder / "patient" / "1", model__onnx=_twice(), headrace__toml=patience)
    return folder


def _every() -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [f"x_{name}"], [f"y_{name}"]) for name in DTYPES]
    return make_model(
        nodes,
        [tensor(f"x_{name}", number, "batch", 2) for name, (number, _) in DTYPES.items()],
        [tensor(f"y_{name}", number, "batch", 2) for name, (number, _) in DTYPES.items()],
    )


def _product() -> onnx.ModelProto:
    inputs = [tensor("a", TensorProto.FLOAT, "rows", 3), tensor("b", TensorProto.FLOAT, 3, "columns")]
    nodes = [helper.make_node("MatMul", ["a", "b"], ["product"])]
    return make_model(nodes, inputs, [tensor("product", TensorProto.FLOAT, "rows", "columns")])


def _twice() -> onnx.ModelProto:
    weights = {"two": np.array(2, dtype=np.float32)}
    nodes = [helper.make_node("Mul", ["x", "two"], ["y"])]
    inputs = [tensor("x", TensorProto.FLOAT, "batch", 4)]
    return make_model(nodes, inputs, [tensor("y", TensorProto.FLOAT, "batch", 4)], weights)
