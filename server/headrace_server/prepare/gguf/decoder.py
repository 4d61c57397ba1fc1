"""A llama as an ONNX graph with a shared-buffer cache: the contract of docs/generation-models.md.

A layer is: norm, queries/keys/values in one product, GroupQueryAttention (which rotates, appends to the cache and
attends), output product, norm, gate and up, SiLU(gate) · up, down. In rq8 two things save work:

- gate and up read the same quantized rows;
- the rows' scale of `up` is not multiplied in: it is one factor a row, quantization divides it out again, and it is
  put back on `down`'s output, which is narrower.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.gguf.calibrate import DecoderWeights
from headrace_server.prepare.gguf.linear import (
    BLOCK,
    ORT_DOMAIN,
    Precision,
    Rows,
    add_block_linear,
    add_block_weights,
    add_float_linear,
    add_row_linear,
    row_quantizer,
)
from headrace_server.prepare.gguf.llama import LlamaConfig, rope_caches
from headrace_server.prepare.gguf.onnx_file import StreamedGraph

__all__ = ["DecoderBuilder"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Value:
    """A value of the graph; what it stands for is the value times `scale` (one column a row), where there is one."""

    name: str
    scale: str = ""


class DecoderBuilder:
    """Writes a llama's graph in one precision."""

    def __init__(self, config: LlamaConfig, weights: DecoderWeights, precision: Precision) -> None:
        self._config = config
        self._weights = weights
        self._precision = precision
        self._graph = StreamedGraph("llama")
        self._quantize: Callable[[str, int, str], Rows] | None = None

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
            self._quantize = row_quantizer(graph, "input_ids")
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
        hidden, wide = config.hidden_size, config.intermediate_size
        roles = [f"{source}.attn_{role}" for role in "qkv"]
        (qkv,) = self._linear(normed, {f"{name}.qkv": roles}, (queries + 2 * keys, hidden))
        attended = self._attention(layer, self._scaled(qkv), out=f"{name}.attention")
        (output,) = self._linear(attended, {f"{name}.attention_output": [f"{source}.attn_output"]}, (hidden, queries))
        residual, normed = self._skip_norm(residual, self._scaled(output), f"{source}.ffn_norm", f"{name}.middle")
        gate, up = self._linear(
            normed, {f"{name}.gate": [f"{source}.ffn_gate"], f"{name}.up": [f"{source}.ffn_up"]}, (wide, hidden)
        )
        add = self._graph.add
        opened = add("QuickGelu", self._scaled(gate), out=f"{name}.silu", domain=ORT_DOMAIN, alpha=1.0)
        inner = add("Mul", opened, up.name, out=f"{name}.feed_forward")
        (down,) = self._linear(inner, {f"{name}.down": [f"{source}.ffn_down"]}, (hidden, wide))
        scales = [scale for scale in (down.scale, up.scale) if scale]
        if len(scales) == 2:
            scales = [add("Mul", *scales, out=f"{name}.down.scale_of_both")]
        last = layer + 1 == config.num_layers
        following = "output_norm" if last else f"blk.{layer + 1}.attn_norm"
        return self._skip_norm(
            residual, self._scaled(_Value(down.name, *scales)), following, f"{name}.end", keep_sum=not last
        )

    def _linear(self, value: str, layers: dict[str, list[str]], shape: tuple[int, int]) -> list[_Value]:
        """Linear layers of one shape that read the same value: output name → the file's matrices, stacked."""
        graph, results = self._graph, []
        rows = None
        if self._quantize is not None:
            rows = self._quantize(value, shape[1], next(iter(layers)) + ".input")
        for out, names in layers.items():

            def make(names: list[str] = names) -> Floats:
                return self._weights.matrix(names)

            if rows is not None:
                results.append(_Value(add_row_linear(graph, rows, make, shape, out=out), rows.scale))
            elif self._precision is Precision.W8:
                weights = add_block_weights(graph, make, shape, name=out)
                results.append(_Value(add_block_linear(graph, value, weights, shape, out=out)))
            else:
                results.append(_Value(add_float_linear(graph, value, make, shape, out=out)))
        return results

    def _scaled(self, value: _Value) -> str:
        if not value.scale:
            return value.name
        return self._graph.add("Mul", value.name, value.scale, out=f"{value.name}.scaled")

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
