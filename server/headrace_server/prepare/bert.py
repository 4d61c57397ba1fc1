"""A BERT encoder as an ONNX graph, from its weights by name; no training framework is needed.

The graph uses standard operators of opset 17 only, in the shapes that runtimes know how to fuse (attention with an
additive mask, skip + LayerNormalization, bias + Gelu), so that a fused engine and a plain one read the same file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.graph import GraphBuilder

__all__ = ["BertConfig", "Weights", "add_bert_encoder", "add_mean_pool", "bert_inputs"]

Weights = Mapping[str, npt.NDArray[Any]]

# Scores of masked tokens get this added. exp() of it is 0 in f32 and f16 alike, and no row of scores comes near it,
# so a padded text gives the same numbers as the text alone.
_MASKED = -10000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BertConfig:
    """The shape of an encoder, as Hugging Face's config.json names it."""

    num_layers: int
    num_heads: int
    hidden_size: int
    max_positions: int
    layer_norm_eps: float

    @classmethod
    def from_json(cls, text: str | bytes) -> BertConfig:
        """The shape said by a config.json. Raises PrepareError for what this converter cannot write."""
        config = json.loads(text)
        wanted = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute"}
        for key, value in wanted.items():
            if config.get(key, value) != value:
                raise PrepareError(
                    f"config.json says {key} = {config[key]!r}; only {value!r} can be converted",
                    cure="serve an ONNX export of this model instead",
                )
        return cls(
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            hidden_size=config["hidden_size"],
            max_positions=config["max_position_embeddings"],
            layer_norm_eps=config["layer_norm_eps"],
        )


def bert_inputs(graph: GraphBuilder) -> None:
    """Declare input_ids, attention_mask and token_type_ids, i64[batch, sequence]."""
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        graph.input(name, np.int64, ("batch", "sequence"))


def add_bert_encoder(graph: GraphBuilder, weights: Weights, config: BertConfig, *, out: str) -> str:
    """Add the encoder over the declared inputs; `out` is f32[batch, sequence, hidden], the last hidden state.

    weights  by PyTorch name without a leading `bert.`; linear weights as [out, in]
    raises   KeyError where a weight is missing
    """
    hidden = _embeddings(graph, weights, config)
    mask = _additive_mask(graph)
    for layer in range(config.num_layers):
        last = layer == config.num_layers - 1
        hidden = _layer(graph, weights, config, hidden, mask, layer, out if last else f"layer{layer}/out")
    return hidden


def add_mean_pool(graph: GraphBuilder, hidden: str, *, out: str) -> str:
    """Add the mean over the tokens that attention_mask keeps; `out` is f32[batch, hidden]."""
    axis = graph.constant("pool/axis", np.array([1], np.int64))
    last = graph.constant("pool/last", np.array([-1], np.int64))
    mask = graph.add("Cast", "attention_mask", out="pool/mask", to=1)
    weights = graph.add("Unsqueeze", mask, last, out="pool/weights")
    total = graph.add("ReduceSum", graph.add("Mul", hidden, weights, out="pool/kept"), axis, out="pool/sum", keepdims=0)
    count = graph.add("ReduceSum", mask, axis, out="pool/count", keepdims=1)
    count = graph.add("Max", count, graph.constant("pool/one", np.float32(1)), out="pool/count_or_one")
    return graph.add("Div", total, count, out=out)


def _embeddings(graph: GraphBuilder, weights: Weights, config: BertConfig) -> str:
    word = graph.constant("embeddings/word_table", weights["embeddings.word_embeddings.weight"])
    segment = graph.constant("embeddings/segment_table", weights["embeddings.token_type_embeddings.weight"])
    position = graph.constant("embeddings/position_table", weights["embeddings.position_embeddings.weight"])
    words = graph.add("Gather", word, "input_ids", out="embeddings/words")
    segments = graph.add("Gather", segment, "token_type_ids", out="embeddings/segments")
    # Slice rather than Gather(table, Range(...)): the latter failed at run time in onnxruntime.
    length = graph.add("Shape", "input_ids", out="embeddings/length", start=1, end=2)
    start = graph.constant("embeddings/start", np.array([0], np.int64))
    positions = graph.add("Slice", position, start, length, start, out="embeddings/positions")
    total = graph.add("Add", words, segments, out="embeddings/words_segments")
    total = graph.add("Add", total, positions, out="embeddings/sum")
    graph.shape(total, np.float32, ("batch", "sequence", config.hidden_size))
    return _layer_norm(graph, weights, config, total, "embeddings.LayerNorm", "embeddings/out")


def _additive_mask(graph: GraphBuilder) -> str:
    """f32[batch, 1, 1, sequence]: 0 where a token is kept, a large negative number where it is padding."""
    first = graph.constant("mask/axis1", np.array([1], np.int64))
    second = graph.constant("mask/axis2", np.array([2], np.int64))
    mask = graph.add("Unsqueeze", "attention_mask", first, out="mask/by_head")
    mask = graph.add("Unsqueeze", mask, second, out="mask/by_query")
    mask = graph.add("Cast", mask, out="mask/f32", to=1)
    dropped = graph.add("Sub", graph.constant("mask/one", np.float32(1)), mask, out="mask/dropped")
    return graph.add("Mul", dropped, graph.constant("mask/masked", np.float32(_MASKED)), out="mask/additive")


def _layer(
    graph: GraphBuilder, weights: Weights, config: BertConfig, hidden: str, mask: str, layer: int, out: str
) -> str:
    prefix, name = f"encoder.layer.{layer}", f"layer{layer}"
    context = _attention(graph, weights, config, hidden, mask, f"{prefix}.attention.self", f"{name}/attention")
    context = _linear(graph, weights, context, f"{prefix}.attention.output.dense", f"{name}/attention/dense")
    total = graph.add("Add", context, hidden, out=f"{name}/attention/skip")
    middle = _layer_norm(graph, weights, config, total, f"{prefix}.attention.output.LayerNorm", f"{name}/middle")
    wide = _linear(graph, weights, middle, f"{prefix}.intermediate.dense", f"{name}/wide")
    narrow = _linear(graph, weights, _gelu(graph, wide), f"{prefix}.output.dense", f"{name}/narrow")
    total = graph.add("Add", narrow, middle, out=f"{name}/skip")
    return _layer_norm(graph, weights, config, total, f"{prefix}.output.LayerNorm", out)


def _attention(
    graph: GraphBuilder, weights: Weights, config: BertConfig, hidden: str, mask: str, prefix: str, name: str
) -> str:
    head_size = config.hidden_size // config.num_heads
    split = graph.constant("attention/split_heads", np.array([0, 0, config.num_heads, head_size], np.int64))
    join = graph.constant("attention/join_heads", np.array([0, 0, config.hidden_size], np.int64))
    scale = graph.constant("attention/scale", np.float32(math.sqrt(head_size)))
    heads = {}
    for role, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
        projected = _linear(graph, weights, hidden, f"{prefix}.{role}", f"{name}/{role}")
        shaped = graph.add("Reshape", projected, split, out=f"{name}/{role}/heads")
        heads[role] = graph.add("Transpose", shaped, out=f"{name}/{role}/by_head", perm=order)
    scores = graph.add("MatMul", heads["query"], heads["key"], out=f"{name}/scores")
    scores = graph.add("Div", scores, scale, out=f"{name}/scaled")
    scores = graph.add("Add", scores, mask, out=f"{name}/masked")
    share = graph.add("Softmax", scores, out=f"{name}/share", axis=3)
    context = graph.add("MatMul", share, heads["value"], out=f"{name}/context")
    context = graph.add("Transpose", context, out=f"{name}/by_token", perm=(0, 2, 1, 3))
    return graph.add("Reshape", context, join, out=f"{name}/joined")


def _linear(graph: GraphBuilder, weights: Weights, value: str, prefix: str, name: str) -> str:
    weight = graph.constant(f"{name}/weight", weights[f"{prefix}.weight"].T)
    bias = graph.constant(f"{name}/bias", weights[f"{prefix}.bias"])
    product = graph.add("MatMul", value, weight, out=f"{name}/product")
    return graph.add("Add", product, bias, out=f"{name}/linear")


def _layer_norm(graph: GraphBuilder, weights: Weights, config: BertConfig, value: str, prefix: str, out: str) -> str:
    weight = graph.constant(f"{out}/weight", weights[f"{prefix}.weight"])
    bias = graph.constant(f"{out}/bias", weights[f"{prefix}.bias"])
    return graph.add("LayerNormalization", value, weight, bias, out=out, axis=-1, epsilon=config.layer_norm_eps)


def _gelu(graph: GraphBuilder, value: str) -> str:
    """x ÷ 2 × (1 + erf(x ÷ √2)), in the order of operations that runtimes fuse into one Gelu."""
    root = graph.constant("gelu/sqrt2", np.float32(math.sqrt(2)))
    one = graph.constant("gelu/one", np.float32(1))
    half = graph.constant("gelu/half", np.float32(0.5))
    erf = graph.add("Erf", graph.add("Div", value, root, out=f"{value}/scaled"), out=f"{value}/erf")
    grown = graph.add("Add", erf, one, out=f"{value}/erf1")
    product = graph.add("Mul", value, grown, out=f"{value}/product")
    return graph.add("Mul", product, half, out=f"{value}/gelu")
