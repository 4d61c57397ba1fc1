"""Which nodes of a graph TensorRT does not take, and why; in its parser's words, with what to do about it in ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_header import OnnxHeader

__all__ = ["NodeFault", "Support", "check_support", "node_faults", "refusal"]

_SHOWN = 5
_DYNAMIC = (
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "DynamicQuantizeMatMul",
    "QLinearMatMul",
    "QLinearConv",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFault:
    """One node that is not taken: its place in the file, name, operator, the parser's reason, and a cure ("": none)."""

    index: int
    name: str
    op_type: str
    reason: str
    cure: str = ""

    def __str__(self) -> str:
        if self.index < 0:
            return f"the graph: {self.reason}"
        return f"node {self.index} {self.name or '(no name)'} ({self.op_type}): {self.reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Support:
    """What the parser says of a whole graph.

    parts  node numbers of the connected parts that are left when the faulty nodes are taken out
    """

    supported: bool
    num_nodes: int
    faults: tuple[NodeFault, ...]
    parts: tuple[tuple[int, ...], ...]


def check_support(module: Any, graph: Path, header: OnnxHeader, logger: Any) -> Support:
    """Every node asked about, without building. `module` is tensorrt or tensorrt_rtx; needs no GPU with the latter."""
    builder = module.Builder(logger)
    network = builder.create_network(0)  # kept: the parser writes into it and does not own it
    parser = module.OnnxParser(network, logger)
    supported = bool(parser.supports_model_v2(graph.read_bytes(), str(graph)))
    parts = tuple(tuple(parser.get_subgraph_nodes(index)) for index in range(parser.num_subgraphs))
    return Support(supported=supported, num_nodes=len(header.nodes), faults=node_faults(parser, header), parts=parts)


def node_faults(parser: Any, header: OnnxHeader) -> tuple[NodeFault, ...]:
    """The parser's errors, by node. A parser that gives none has said why in its log."""
    faults = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        node = int(error.node())
        known = header.nodes[node] if 0 <= node < len(header.nodes) else None
        op_type = error.node_operator() or (known.op_type if known else "")
        reason = _reason(str(error.desc()), str(error.code().name))
        domain = known.domain if known is not None and known.op_type == op_type else ""
        faults.append(
            NodeFault(
                index=node,
                name=error.node_name(),
                op_type=f"{domain}.{op_type}" if domain else op_type,
                reason=reason,
                cure=_cure(op_type, domain, reason),
            )
        )
    return tuple(faults)


def refusal(graph: str, faults: Sequence[NodeFault], said: str) -> ServingError:
    """MODEL_INVALID with the first nodes that are not taken, and a cure where one is known."""
    if not faults:
        return ServingError(Reason.MODEL_INVALID, f"{graph}: TensorRT cannot read it", detail=said)
    shown = "; ".join(str(fault) for fault in faults[:_SHOWN])
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    cure = next((fault.cure for fault in faults if fault.cure), "serve it on another device")
    return ServingError(
        Reason.MODEL_INVALID, f"{graph}: TensorRT does not take {len(faults)} nodes: {shown}{more}; {cure}", detail=said
    )


def _reason(description: str, code: str) -> str:
    if description in ("", "false") or "Plugin not found" in description or "plugin creator" in description.lower():
        return "no such operator in TensorRT" if code == "UNSUPPORTED_NODE" else code.lower().replace("_", " ")
    # An assertion's condition is the parser's own code; the sentence follows it.
    said = description.removeprefix("Assertion failed: ")
    if said != description:
        condition, _, sentence = said.partition(": ")
        quoted = condition.partition('&& "')[2].rstrip('"')
        said = sentence or quoted or condition
    # What the parser advises next are its own flags, for other hardware.
    return said.partition(". Please set")[0].strip().rstrip(".")


def _cure(op_type: str, domain: str, reason: str) -> str:
    if op_type in _DYNAMIC:
        return "quantize it for TensorRT instead: signed symmetric int8 QuantizeLinear and DequantizeLinear"
    if op_type in ("QuantizeLinear", "DequantizeLinear") and "zero point" in reason.lower():
        return "quantize with signed, symmetric int8: zero points are 0"
    if domain == "com.microsoft":
        return "export it without ONNX Runtime's fused operators"
    return ""
