"""What an ONNX file says about itself, as values: its tensors, nodes, metadata, labels, external files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from headrace_server.models.signature import TensorSpec

__all__ = ["Constant", "GraphNode", "GraphValue", "OnnxHeader"]

Constant = tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GraphValue:
    """An input or output of the graph. `spec` is None where it is no tensor or of a type no caller can send."""

    name: str
    kind: Literal["tensor", "map_sequence", "other"]
    spec: TensorSpec | None
    ranked: bool = True  # False: the file does not say how many axes there are; `spec.shape` is then ()
    type_name: str = ""
    leading: str = ""  # what the file calls the length of axis 0, where it varies and has a name


@dataclass(frozen=True, slots=True)
class GraphNode:
    """One node of the main graph: what labels and activations are traced through."""

    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    class_labels: Constant = ()
    bits: int = 0  # of block-quantised weights
    fills_missing: bool = False  # an Imputer that replaces NaN


@dataclass(slots=True)
class OnnxHeader:
    """The facts of one ONNX file."""

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    inputs: list[GraphValue] = field(default_factory=list)  # without those that have an initialiser
    outputs: list[GraphValue] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    external_files: list[str] = field(default_factory=list)  # locations as written, unchecked, each once
    nodes: list[GraphNode] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    weight_elements: Counter[str] = field(default_factory=Counter)  # elements of all constants by element type

    def producer_of(self, value: str) -> GraphNode | None:
        """The node that makes `value`; None where it is an input or an initialiser."""
        return next((node for node in reversed(self.nodes) if value in node.outputs), None)

    def fills_missing(self, graph_input: str) -> bool:
        """Whether NaN in this input is replaced before anything is computed from it (an Imputer, as scikit-learn's)."""
        readers = [node for node in self.nodes if graph_input in node.inputs]
        for _ in range(len(self.nodes)):
            if not readers or all(node.fills_missing for node in readers):
                break
            passing = [node for node in readers if not node.fills_missing]
            if any(
                node.op_type not in ("Cast", "Concat", "FeatureVectorizer", "Identity", "Reshape") for node in passing
            ):
                return False
            made = {name for node in passing for name in node.outputs}
            readers = [node for node in self.nodes if made.intersection(node.inputs)]
        return bool(readers)

    @property
    def precision(self) -> str:
        """How the weights are stored: "fp32", "fp16", "bf16", "fp64", "fp8", "int8", "w4", "w8"; "" without weights."""
        for node in self.nodes:
            if node.op_type in ("MatMulNBits", "GatherBlockQuantized"):
                return f"w{node.bits or 4}"
        names = {
            "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64", "float8": "fp8",
            "int8": "int8", "uint8": "int8", "int4": "w4", "uint4": "w4",
        }  # fmt: skip
        sizes: Counter[str] = Counter()
        for element, count in self.weight_elements.items():
            if element in names:
                sizes[names[element]] += count
        total = sum(sizes.values())
        if not total:
            return ""
        # The embedding table often stays in floats and outweighs the quantised layers that do the work.
        for narrow in ("int8", "fp8"):
            if sizes[narrow] > total // 10:
                return narrow
        return max(sizes, key=lambda name: (sizes[name], name))
