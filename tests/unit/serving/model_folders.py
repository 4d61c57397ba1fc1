"""Version folders of real graphs for the tests of serving: a small text encoder, a table, a classifier with ZipMap."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

__all__ = ["WORDS", "damaged", "fixed_batch", "heavy", "linear", "text_encoder"]

WORDS = [f"w{index}" for index in range(500)]
_HIDDEN = 32


def _save(
    path: Path, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], weights: Sequence[Any]
) -> None:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, str(path))


def _value(name: str, dtype: int, shape: Sequence[Any]) -> Any:
    return helper.make_tensor_value_info(name, dtype, list(shape))


def linear(
    folder: Path, factor: float = 2.0, *, batch: str | int = "n", width: str | int = 4, dynamic_int8: bool = False
) -> Path:
    """x f32[n, 4] → y f32[n, 4], each times `factor`; with `dynamic_int8` through one scale for the whole batch."""
    weight = numpy_helper.from_array(np.float32(factor), "k")
    nodes = [helper.make_node("Mul", ["x", "k"], ["y"])]
    if dynamic_int8:
        nodes = [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["back"]),
            helper.make_node("Mul", ["back", "k"], ["y"]),
        ]
    values = [_value(name, TensorProto.FLOAT, [batch, width]) for name in "xy"]
    _save(folder / "model.onnx", nodes, values[:1], values[1:], [weight])
    return folder


def fixed_batch(folder: Path, size: int) -> Path:
    """As `linear`, of a graph that insists on `size` rows."""
    return linear(folder, batch=size)


def heavy(folder: Path, factor: float = 2.0, *, size_mb: int = 24) -> Path:
    """As `linear`, with a table of `size_mb` that every run reads a number of."""
    weights = [
        numpy_helper.from_array(np.float32(factor), "k"),
        numpy_helper.from_array(np.ones(size_mb << 18, np.float32), "table"),
        numpy_helper.from_array(np.float32(0), "zero"),
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["at"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "at"], ["read"]),
        helper.make_node("Mul", ["read", "zero"], ["nothing"]),
        helper.make_node("Mul", ["x", "k"], ["times"]),
        helper.make_node("Add", ["times", "nothing"], ["y"]),
    ]
    values = [_value(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    _save(folder / "model.onnx", nodes, values[:1], values[1:], weights)
    return folder


def damaged(folder: Path) -> Path:
    """A folder whose graph cannot be read."""
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"\x99 this is no graph")
    return folder


def text_encoder(folder: Path, *, num_embeddings: int = 502) -> Path:
    """A sentence embedder in miniature: embedding, one attention block under the mask, feed-forward; random weights.

    num_embeddings  32 numbers each: what makes the file large
    """
    rng = np.random.default_rng(3)
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1} | {w: i + 2 for i, w in enumerate(WORDS)}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")
    tokenizer.enable_truncation(256)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"architectures": ["BertModel"], "model_type": "bert", "hidden_size": _HIDDEN, "pad_token_id": 0,
              "max_position_embeddings": 256, "vocab_size": 502}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))

    def weight(name: str, *shape: int) -> Any:
        return numpy_helper.from_array((rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32), name)

    h = _HIDDEN
    shapes = {
        "table": (num_embeddings, h),
        "wq": (h, h),
        "wk": (h, h),
        "wv": (h, h),
        "w1": (h, 4 * h),
        "w2": (4 * h, h),
    }
    weights = [weight(name, *shape) for name, shape in shapes.items()]
    weights += [
        numpy_helper.from_array(constant, name)
        for name, constant in (("far", np.float32(-1e4)), ("one", np.float32(1)), ("axis", np.array([1], np.int64)))
    ]
    make = helper.make_node
    nodes = [
        make("Gather", ["table", "input_ids"], ["e"]),
        make("MatMul", ["e", "wq"], ["q"]),
        make("MatMul", ["e", "wk"], ["k"]),
        make("MatMul", ["e", "wv"], ["v"]),
        make("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        make("MatMul", ["q", "kt"], ["scores"]),
        make("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        make("Sub", ["one", "mask"], ["hidden"]),
        make("Mul", ["hidden", "far"], ["bias2"]),
        make("Unsqueeze", ["bias2", "axis"], ["bias"]),
        make("Add", ["scores", "bias"], ["masked"]),
        make("Softmax", ["masked"], ["attention"], axis=-1),
        make("MatMul", ["attention", "v"], ["mixed"]),
        make("Add", ["e", "mixed"], ["a"]),
        make("MatMul", ["a", "w1"], ["f1"]),
        make("Relu", ["f1"], ["f2"]),
        make("MatMul", ["f2", "w2"], ["f3"]),
        make("Add", ["a", "f3"], ["last_hidden_state"]),
    ]
    inputs = [_value(name, TensorProto.INT64, ["b", "s"]) for name in ("input_ids", "attention_mask")]
    outputs = [_value("last_hidden_state", TensorProto.FLOAT, ["b", "s", h])]
    _save(folder / "model.onnx", nodes, inputs, outputs, weights)
    return folder
