"""A BERT encoder written as a graph, with weights small enough to think about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest

from headrace_server.prepare.bert import BertConfig, add_bert_encoder, add_mean_pool, bert_inputs
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.graph import GraphBuilder

CONFIG = BertConfig(num_layers=2, num_heads=2, hidden_size=8, max_positions=16, layer_norm_eps=1e-12)


def _weights() -> dict[str, npt.NDArray[Any]]:
    rng = np.random.default_rng(3)
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (20, 8),
        "embeddings.position_embeddings.weight": (16, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(2):
        name = f"encoder.layer.{layer}"
        linears = {f"attention.self.{role}": (8, 8) for role in ("query", "key", "value")}
        linears |= {"attention.output.dense": (8, 8), "intermediate.dense": (12, 8), "output.dense": (8, 12)}
        for part, shape in linears.items():
            shapes |= {f"{name}.{part}.weight": shape, f"{name}.{part}.bias": shape[:1]}
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
    for norm in norms:
        shapes |= {f"{norm}.weight": (8,), f"{norm}.bias": (8,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def _graph(weights: dict[str, npt.NDArray[Any]]) -> GraphBuilder:
    graph = GraphBuilder("tiny")
    bert_inputs(graph)
    hidden = graph.output(
        add_bert_encoder(graph, weights, CONFIG, out="last_hidden_state"), np.float32, ("batch", "sequence", 8)
    )
    graph.output(add_mean_pool(graph, hidden, out="pooled"), np.float32, ("batch", 8))
    return graph


def _run(model: bytes | str, ids: list[list[int]], mask: list[list[int]]) -> list[npt.NDArray[Any]]:
    feeds = {
        "input_ids": np.array(ids, np.int64),
        "attention_mask": np.array(mask, np.int64),
        "token_type_ids": np.zeros_like(np.array(ids, np.int64)),
    }
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs: list[npt.NDArray[Any]] = session.run(["last_hidden_state", "pooled"], feeds)
    return outputs


def test_padding_changes_neither_token_vectors_nor_their_mean(tmp_path: Path) -> None:
    _graph(_weights()).save(tmp_path / "model.onnx")
    path = str(tmp_path / "model.onnx")
    alone, alone_mean = _run(path, [[5, 6, 7]], [[1, 1, 1]])
    padded, padded_mean = _run(path, [[5, 6, 7, 0, 0], [9, 8, 7, 6, 5]], [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    np.testing.assert_allclose(padded[0, :3], alone[0], atol=1e-6)
    np.testing.assert_allclose(padded_mean[0], alone_mean[0], atol=1e-6)
    np.testing.assert_allclose(alone_mean[0], alone[0].mean(0), atol=1e-6)


def test_a_mask_that_keeps_nothing_gives_zeros_instead_of_nan(tmp_path: Path) -> None:
    _graph(_weights()).save(tmp_path / "model.onnx")
    _, mean = _run(str(tmp_path / "model.onnx"), [[5, 6]], [[0, 0]])
    np.testing.assert_array_equal(mean, np.zeros((1, 8)))


def test_order_of_tokens_matters_through_the_positions(tmp_path: Path) -> None:
    _graph(_weights()).save(tmp_path / "model.onnx")
    _, forward = _run(str(tmp_path / "model.onnx"), [[5, 6, 7]], [[1, 1, 1]])
    _, backward = _run(str(tmp_path / "model.onnx"), [[7, 6, 5]], [[1, 1, 1]])
    assert np.abs(forward - backward).max() > 1e-3


def test_graph_uses_standard_operators_of_opset_17_only() -> None:
    model = _graph(_weights()).model()
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 17)]
    onnx.checker.check_model(model, full_check=True)


def test_a_missing_weight_is_named() -> None:
    weights = _weights()
    del weights["encoder.layer.1.output.dense.bias"]
    with pytest.raises(KeyError, match=r"encoder\.layer\.1\.output\.dense\.bias"):
        _graph(weights)


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "roberta"), ("hidden_act", "relu"), ("position_embedding_type", "relative_key")],
)
def test_another_architecture_is_refused(key: str, value: str) -> None:
    config = {
        "model_type": "bert", "hidden_act": "gelu", "num_hidden_layers": 2, "num_attention_heads": 2,
        "hidden_size": 8, "max_position_embeddings": 16, "layer_norm_eps": 1e-12,
    }  # fmt: skip
    assert BertConfig.from_json(json.dumps(config)) == CONFIG
    with pytest.raises(PrepareError, match=value):
        BertConfig.from_json(json.dumps(config | {key: value}))


def test_a_constant_cannot_silently_take_anothers_name() -> None:
    graph = GraphBuilder("twice")
    assert graph.constant("one", np.float32(1)) == graph.constant("one", np.float32(1))
    with pytest.raises(ValueError, match="one"):
        graph.constant("one", np.float32(2))
