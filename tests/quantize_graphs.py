"""Small graphs to quantize: a net of matrices, one of convolutions, and what must be refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["conv_net", "model_of", "net", "run", "tree", "write_net"]

Array = npt.NDArray[Any]


def model_of(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    opset: int = 17,
) -> onnx.ModelProto:
    """f32 in, f32 out."""

    def infos(shapes: dict[str, list[int | str]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]

    graph = helper.make_graph(
        nodes, "net", infos(inputs), infos(outputs), [numpy_helper.from_array(v, k) for k, v in constants.items()]
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def net(*, sizes: tuple[int, ...] = (64, 128, 128, 32), outlier: bool = False, seed: int = 1) -> onnx.ModelProto:
    """x f32[batch, 64] through MatMul + Add + Relu, the last a Gemm, to y. `outlier`: layer 1 reads a huge channel."""
    rng = np.random.default_rng(seed)
    nodes, constants, value = [], {}, "x"
    for number, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        last = number == len(sizes) - 2
        weight = (rng.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32)
        bias = rng.standard_normal(columns).astype(np.float32) / 10
        if outlier and number == 0:
            bias[0] = 300.0
        if outlier and number == 1:
            weight[0] = 1e-4
        name = f"layer{number}"
        constants[f"{name}.weight"] = np.ascontiguousarray(weight.T) if last else weight
        constants[f"{name}.bias"] = bias
        if last:
            nodes.append(
                helper.make_node("Gemm", [value, f"{name}.weight", f"{name}.bias"], ["y"], name=name, transB=1)
            )
            continue
        nodes.append(helper.make_node("MatMul", [value, f"{name}.weight"], [f"{name}.product"], name=name))
        nodes.append(helper.make_node("Add", [f"{name}.product", f"{name}.bias"], [f"{name}.sum"]))
        nodes.append(helper.make_node("Relu", [f"{name}.sum"], [f"{name}.out"]))
        value = f"{name}.out"
    return model_of(nodes, constants, {"x": ["batch", sizes[0]]}, {"y": ["batch", sizes[-1]]})


def conv_net(seed: int = 2) -> onnx.ModelProto:
    """x f32[batch, 3, 16, 16] through convolutions with ReLU6, a skip and pooling to y f32[batch, 8]."""
    rng = np.random.default_rng(seed)

    def kernel(*shape: int) -> Array:
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    constants: dict[str, Array] = {
        "w0": kernel(16, 3, 3, 3), "b0": kernel(16, 1).reshape(-1), "w1": kernel(16, 1, 3, 3),
        "b1": kernel(16, 1).reshape(-1), "w2": kernel(16, 16, 1, 1), "b2": kernel(16, 1).reshape(-1),
        "low": np.float32(0), "high": np.float32(6), "w3": kernel(8, 16), "b3": kernel(8, 1).reshape(-1),
    }  # fmt: skip
    pads = [1, 1, 1, 1]
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], name="stem", kernel_shape=[3, 3], pads=pads),
        helper.make_node("Clip", ["c0", "low", "high"], ["a0"]),
        helper.make_node("Conv", ["a0", "w1", "b1"], ["c1"], name="deep", kernel_shape=[3, 3], pads=pads, group=16),
        helper.make_node("Relu", ["c1"], ["a1"]),
        helper.make_node("Conv", ["a1", "w2", "b2"], ["c2"], name="narrow", kernel_shape=[1, 1]),
        helper.make_node("Add", ["c2", "a0"], ["skip"]),
        helper.make_node("GlobalAveragePool", ["skip"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "w3", "b3"], ["y"], name="head", transB=1),
    ]
    return model_of(nodes, constants, {"x": ["batch", 3, 16, 16]}, {"y": ["batch", 8]})


def tree() -> onnx.ModelProto:
    """x f32[batch, 4] to class and scores by one tree, as gradient boosting is exported."""
    node = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], name="tree", domain="ai.onnx.ml", n_targets=1,
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[0, 0, 0], nodes_values=[0.5, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[1.0, 2.0],
    )  # fmt: skip
    model = model_of([node], {}, {"x": ["batch", 4]}, {"y": ["batch", 1]})
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    return model


def write_net(folder: Path, model: onnx.ModelProto) -> Path:
    """A version's folder with this graph and nothing else."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder


def run(model: onnx.ModelProto, *, optimized: bool = True, **feeds: Array) -> Array:
    """y, on ONNX Runtime's CPU. Not `optimized`: each node as it is written."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    answer: Array = session.run(["y"], feeds)[0]
    return answer
