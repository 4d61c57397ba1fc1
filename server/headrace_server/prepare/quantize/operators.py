"""What really was quantized: counted in the graph that was written, and in the one that the runtime made of it."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from headrace_server.engines.onnx.session import CPU, FATAL_ONLY, load_runtime
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quantize.layers import Layer

__all__ = ["CountedOperators", "count_operators", "count_optimized"]

_INTEGER = frozenset({"MatMulIntegerToFloat", "MatMulNBits"})
# What ONNX Runtime's optimizer makes of QDQ around a layer.
_MERGED = frozenset({"MatMulIntegerToFloat", "MatMulNBits", "QGemm", "QLinearConv", "QLinearMatMul"})
_NARROW = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedOperators:
    """Layers by the type they had: those that are quantized now, and those that are not."""

    quantized: Counter[str]
    left: Counter[str]

    @property
    def num_quantized(self) -> int:
        return self.quantized.total()


def count_operators(model: ModelProto, layers: Sequence[Layer]) -> CountedOperators:
    """Counts in a written graph. Raises PrepareError where none of the layers is quantized."""
    nodes = {node.name: node for node in model.graph.node}
    makers = {name: node for node in model.graph.node for name in node.output}
    types = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    quantized, left = Counter[str](), Counter[str]()
    for layer in layers:
        node = nodes.get(layer.name)
        (quantized if node is not None and _is_quantized(node, makers, types) else left)[layer.op_type] += 1
    if not quantized:
        raise PrepareError(
            f"no operator was quantized ({sum(left.values())} could have been)",
            cure="leave fewer layers out by --exclude, or take another mode",
        )
    return CountedOperators(quantized=quantized, left=left)


def count_optimized(graph: Path) -> int:
    """Layers that ONNX Runtime computes in integers on the CPU, told by the graph that its optimizer makes."""
    runtime = load_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = FATAL_ONLY
    with tempfile.TemporaryDirectory(prefix="headrace-optimized-") as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        runtime.InferenceSession(str(graph), options, providers=[CPU])
        optimized = onnx.load(options.optimized_model_filepath, load_external_data=False)
    return sum(node.op_type in _MERGED for node in optimized.graph.node)


def _is_quantized(node: NodeProto, makers: dict[str, NodeProto], types: dict[str, int]) -> bool:
    if node.op_type in _INTEGER:
        return True
    if any(types.get(name) in _NARROW for name in node.input):
        return True
    read = [makers.get(name) for name in node.input[:2]]
    return all(maker is not None and maker.op_type == "DequantizeLinear" for maker in read)
