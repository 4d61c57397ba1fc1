"""A TensorRT plan's sidecar, `model.plan.json` beside `model.plan`: what the plan holds and what it runs on.

A plan is opaque: only the library that built it reads it, and only on the GPU it was built for. The sidecar says enough
to describe the model and to refuse a wrong machine without either: tensors, shapes, the library, the GPU, digests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import PurePath
from typing import Literal

import msgspec

from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_graph import GraphNode, GraphValue, OnnxHeader
from headrace_server.models.signature import DataType, TensorSpec
from headrace_server.models.struct_types import resolve_types

__all__ = [
    "SIDECAR_SUFFIX",
    "PlanNode",
    "PlanProfile",
    "PlanSidecar",
    "PlanTensor",
    "is_plan",
    "leading_names",
    "output_ends",
    "parse_sidecar",
]

SIDECAR_SUFFIX = ".json"

_PLAN_SUFFIXES = (".plan", ".engine")
_MAX_TRACE = 8  # steps back from an output, as far as anybody looks for its activation
_ELEMENTS = {
    "fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16", "fp8": "float8", "int8": "int8",
    "w4": "int4", "w8": "int8",
}  # fmt: skip


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the sidecar."""


class PlanTensor(_Record, frozen=True):
    """An input or output of the plan; -1 where an axis varies. `leading` is what the graph called axis 0."""

    name: str
    dtype: DataType
    shape: tuple[int, ...]
    leading: str = ""


class PlanProfile(_Record, frozen=True):
    """Shapes the plan was compiled for, by input name."""

    min: dict[str, tuple[int, ...]]
    opt: dict[str, tuple[int, ...]]
    max: dict[str, tuple[int, ...]]


class PlanNode(_Record, frozen=True):
    """A node near an output of the graph, so that an activation that the graph applies is not applied again."""

    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class PlanSidecar(_Record, frozen=True, kw_only=True):
    """The whole file.

    sha256, size_bytes    of the plan
    source_sha256         of the ONNX graph and its external data that it was built from
    compute_capabilities  of the GPUs that it runs on ("9.0")
    gpu                   that it was tuned on; "" where it was built without one
    layers                of the compiled engine, as the builder named them
    """

    format: Literal[1] = 1
    sha256: str
    size_bytes: int
    library: Literal["tensorrt", "tensorrt_rtx"]
    library_version: str
    cuda_major: int
    compute_capabilities: tuple[str, ...]
    gpu: str = ""
    precision: str
    tf32: bool = False
    version_compatible: bool = False
    source: str
    source_sha256: str
    inputs: tuple[PlanTensor, ...]
    outputs: tuple[PlanTensor, ...]
    profiles: tuple[PlanProfile, ...]
    metadata: dict[str, str] = {}
    ends: tuple[PlanNode, ...] = ()
    layers: tuple[str, ...] = ()

    @property
    def header(self) -> OnnxHeader:
        """What the graph's own header would say of tensors, metadata, precision and the nodes near its outputs."""
        weights = Counter({_ELEMENTS[self.precision]: 1}) if self.precision in _ELEMENTS else Counter[str]()
        return OnnxHeader(
            producer=f"{self.library} {self.library_version}",
            inputs=[_value(tensor) for tensor in self.inputs],
            outputs=[_value(tensor) for tensor in self.outputs],
            metadata=dict(self.metadata),
            nodes=[GraphNode(node.op_type, "", node.inputs, node.outputs) for node in self.ends],
            weight_elements=weights,
        )

    def encode(self) -> bytes:
        """The file's content: the same of the same sidecar."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1) + b"\n"


resolve_types(PlanSidecar)


def is_plan(name: str | PurePath) -> bool:
    """Whether a file of this name is taken for a TensorRT plan."""
    return PurePath(name).suffix.lower() in _PLAN_SUFFIXES


def parse_sidecar(content: bytes, name: str) -> PlanSidecar:
    """The sidecar in `content`. Raises ServingError MODEL_INVALID naming what is wrong and how to make one."""
    try:
        return msgspec.json.decode(content, type=PlanSidecar)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        cure = "build the plan again with `headrace tensorrt build`"
        raise ServingError(Reason.MODEL_INVALID, f"{name}: not a plan's sidecar ({error}); {cure}") from None


def output_ends(header: OnnxHeader) -> tuple[PlanNode, ...]:
    """The nodes that each output of the graph is traced back through."""
    found: dict[str, GraphNode] = {}
    for output in header.outputs:
        node = header.producer_of(output.name)
        for _ in range(_MAX_TRACE):
            if node is None or not node.inputs:
                break
            found[node.outputs[0]] = node
            node = header.producer_of(node.inputs[0])
    return tuple(
        PlanNode(op_type=node.op_type, inputs=node.inputs[:1], outputs=node.outputs) for node in found.values()
    )


def leading_names(header: OnnxHeader) -> Mapping[str, str]:
    """What the graph calls axis 0, by tensor."""
    return {value.name: value.leading for value in (*header.inputs, *header.outputs)}


def _value(tensor: PlanTensor) -> GraphValue:
    spec = TensorSpec(tensor.name, tensor.dtype, tensor.shape)
    return GraphValue(tensor.name, "tensor", spec, type_name=f"tensor({tensor.dtype})", leading=tensor.leading)
