"""A llama as an ONNX graph with a shared-buffer cache: the contract of docs/generation-models.md.

A layer is: norm, queries/keys/values in one product, GroupQueryAttention (which rotates, appends to the cache and
attends), output product, norm, SiLU(gate) · up, down. In rq8 the feed-forward is one operator (row_operators.py).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.gguf.calibrate import DecoderWeights
from headrace_server.prepare.gguf.linear import (
    BLOCK,
    ORT_DOMAIN,
    Precision,
    add_block_linear,
    add_block_weights,
    add_float_linear,
)
from headrace_server.prepare.gguf.llama import LlamaConfig, rope_caches
from headrace_server.prepare.gguf.onnx_file import StreamedGraph
from headrace_server.prepare.gguf.row_operators import (
    add_cached_attention,
    add_row_feed_forward,
    add_row_linear,
    declare_attention,
    declare_row_operators,
)

__all__ = ["DecoderBuilder"]

Floats = npt.NDArray[np.float32]


class DecoderBuilder:
    """Writes a llama's graph in one precision."""

    def __init__(self, config: LlamaConfig, weights: DecoderWeights, precision: Precision) -> None:
        self._config = config
        self._weights = weights
        self._precision = precision
        self._graph = StreamedGraph("llama")

    def build(self) -> StreamedGraph:
        """The whole graph; weights are made when it is saved."""
        graph, config = self._graph, self._config
        graph.input("input_ids", np.int64, ("batch", "sequence"))
        graph.input("seqlens_k", np.int32, ("batch",))
        graph.input("total_sequence_length", np.int32, ())
        graph.input("logit_rows", np.int64, ("rows",))
        graph.output("logits", np.float32, ("rows", config.vocab_size))
        cosines, sines = rope_caches(config)
        graph.weight("rope.cos", np.float32, cosines.shape, lambda: cosines)
        graph.weight("rope.sin", np.float32, sines.shape, lambda: sines)
        if self._precision is Precision.RQ8:
            declare_row_operators(graph)
        if self._precision is not Precision.FP32:
            declare_attention(graph)
        residual, head = self._embedding()
        normed = self._first_norm(residual)
        for layer in range(config.num_layers):
            residual, normed = self._layer(layer, residual, normed)
        self._head(normed, head)
        return graph

    def _layer(self, layer: int, residual: str, normed: str) -> tuple[str, str]:
        """Residual stream and normed input in; both for the next layer out (the last has no residual: "")."""
        config, name, source = self._config, f"layers.{layer}", f"blk.{layer}"
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        hidden = config.hidden_size
        roles = [f"{source}.attn_{role}" for role in "qkv"]
        qkv = self._linear(normed, roles, (queries + 2 * keys, hidden), out=f"{name}.qkv")
        attended = self._attention(layer, qkv, out=f"{name}.attention")
        output = self._linear(attended, [f"{source}.attn_output"], (hidden, queries), out=f"{name}.attention_output")
        residual, normed = self._skip_norm(residual, output, f"{source}.ffn_norm", f"{name}.middle")
        down = self._feed_forward(normed, source, out=f"{name}.feed_forward")
        last = layer + 1 == config.num_layers
        following = "output_norm" if last else f"blk.{layer + 1}.attn_norm"
        return self._skip_norm(residual, down, following, f"{name}.end", keep_sum=not last)

    def _feed_forward(self, value: str, source: str, *, out: str) -> str:
        """down(SiLU(gate) · up)."""
        graph, shape = self._graph, (self._config.intermediate_size, self._config.hidden_size)
        gate, up, down = (f"{source}.ffn_{role}" for role in ("gate", "up", "down"))
        if self._precision is Precision.RQ8:
            makes = [self._make([name]) for name in (gate, up, down)]
            return add_row_feed_forward(graph, value, makes, shape, out=out)
        opened = self._linear(value, [gate], shape, out=f"{out}.gate")
        opened = graph.add("QuickGelu", opened, out=f"{out}.silu", domain=ORT_DOMAIN, alpha=1.0)
        inner = graph.add("Mul", opened, self._linear(value, [up], shape, out=f"{out}.up"), out=f"{out}.inner")
        return self._linear(inner, [down], shape[::-1], out=out)

    def _linear(self, value: str, names: list[str], shape: tuple[int, int], *, out: str) -> str:
        """A linear layer whose matrix is the file's matrices of these names, stacked."""
        graph, make = self._graph, self._make(names)
        if self._precision is Precision.RQ8:
            return add_row_linear(graph, value, make, shape, out=out)
        if self._precision is Precision.W8:
            weights = add_block_weights(graph, make, shape, name=out)
            return add_block_linear(graph, value, weights, shape, out=out)
        return add_float_linear(graph, value, make, shape, out=out)

    def _make(self, names: list[str]) -> Callable[[], Floats]:
        return lambda: self._weights.matrix(names)

    def _attention(self, layer: int, qkv: str, *, out: str) -> str:
        config, graph = self._config, self._graph
        cache = ("batch", config.num_kv_heads, "max_length", config.head_dim)
        past, present = (
            [f"{time}.{layer}.{kind}" for kind in ("key", "value")] for time in ("past_key_values", "present")
        )
        for name in past:
            graph.input(name, np.float32, cache)
        for name in present:
            graph.output(name, np.float32, cache)
        if self._precision is not Precision.FP32:
            return add_cached_attention(
                graph, [qkv, *past, "seqlens_k", "total_sequence_length", "rope.cos", "rope.sin"], [out, *present],
                num_heads=config.num_heads, num_kv_heads=config.num_kv_heads,
            )  # fmt: skip
        return graph.add(
            "GroupQueryAttention", qkv, "", "", *past, "seqlens_k", "total_sequence_length", "rope.cos", "rope.sin",
            out=[out, *present], domain=ORT_DOMAIN, num_heads=config.num_heads, kv_num_heads=config.num_kv_heads,
            scale=config.head_dim**-0.5, do_rotary=1, rotary_interleaved=0,
        )  # fmt: skip

    def _norm_weight(self, name: str) -> str:
        weights = self._weights
        return self._graph.weight(
            f"{name}.weight", np.float32, (self._config.hidden_size,), lambda: weights.vector(name)
        )

    def _first_norm(self, value: str) -> str:
        """RMS norm of the embedding, written out: the operator of that name is younger than this opset."""
        graph, name = self._graph, "embedding.norm"
        two, axes = graph.constant("two", np.float32(2)), graph.constant("last_axis", np.array([-1], np.int64))
        squares = graph.add("Pow", value, two, out=f"{name}.squares")
        mean = graph.add("ReduceMean", squares, axes, out=f"{name}.mean", keepdims=1)
        epsilon = graph.constant("epsilon", np.float32(self._config.rms_norm_eps))
        root = graph.add("Sqrt", graph.add("Add", mean, epsilon, out=f"{name}.shifted"), out=f"{name}.root")
        unit = graph.add("Div", value, root, out=f"{name}.unit")
        return graph.add("Mul", unit, self._norm_weight("blk.0.attn_norm"), out=name)

    def _skip_norm(
        self, residual: str, update: str, weight: str, name: str, *, keep_sum: bool = True
    ) -> tuple[str, str]:
        """(residual + update, its RMS norm)."""
        outputs = [f"{name}.norm", "", "", f"{name}.residual"] if keep_sum else [f"{name}.norm"]
        normed = self._graph.add(
            "SkipSimplifiedLayerNormalization", residual, update, self._norm_weight(weight),
            out=outputs, domain=ORT_DOMAIN, epsilon=self._config.rms_norm_eps,
        )  # fmt: skip
        return outputs[-1] if keep_sum else "", normed

    def _embedding(self) -> tuple[str, tuple[str, ...]]:
        """The embedded tokens, and the embedding's weights as the head may read them too."""
        graph, shape = self._graph, (self._config.vocab_size, self._config.hidden_size)

        def make() -> Floats:
            return self._weights.matrix(["token_embd"])

        if self._precision is Precision.FP32:
            table = graph.weight("embedding.weight", np.float32, shape, make)
            return graph.add("Gather", table, "input_ids", out="embedding"), (table,)
        weights = add_block_weights(graph, make, shape, name="embedding")
        table = graph.add(
            "Reshape", weights[0], graph.constant("embedding.shape", np.array(shape, np.int64)), out="embedding.table"
        )
        embedded = graph.add(
            "GatherBlockQuantized", table, "input_ids", weights[1], out="embedding", domain=ORT_DOMAIN,
            bits=8, block_size=BLOCK, gather_axis=0, quantize_axis=1,
        )  # fmt: skip
        return embedded, weights

    def _head(self, normed: str, embedding: tuple[str, ...]) -> None:
        """Logits of the rows that were asked for. The head keeps block weights in rq8 too: golden answers need them."""
        graph, config = self._graph, self._config
        shape = (config.vocab_size, config.hidden_size)
        flat = graph.constant("flat", np.array([-1, config.hidden_size], np.int64))
        rows = graph.add(
            "Gather", graph.add("Reshape", normed, flat, out="final"), "logit_rows", out="final.rows", axis=0
        )
        name = "token_embd" if config.tied else "output"

        def make() -> Floats:
            return self._weights.matrix([name])

        if self._precision is Precision.FP32 and config.tied:
            graph.add("Gemm", rows, embedding[0], out="logits", transB=1)
        elif self._precision is Precision.FP32:
            add_float_linear(graph, rows, make, shape, out="logits")
        elif config.tied:
            add_block_linear(graph, rows, (embedding[0], embedding[1]), shape, out="logits")
        else:
            weights = add_block_weights(graph, make, shape, name="head")
            add_block_linear(graph, rows, weights, shape, out="logits")
