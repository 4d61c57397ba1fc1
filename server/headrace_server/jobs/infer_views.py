"""A model as it is asked by tensors: what it says of them, and what cuts or checks them; made once a model."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace_server.jobs.infer_group import InferShape
from headrace_server.jobs.infer_rows import GraphRows
from headrace_server.jobs.signatures import Signature, signature_of
from headrace_server.models.model import Model, Task

__all__ = ["InferView", "infer_view"]


@dataclass(frozen=True, slots=True)
class InferView:
    """A model asked in one way.

    cutter   where the tensors are the graph's own
    orders   by shape of a request that was looked at: the inputs' names in the graph's order; (): it does not fit
    """

    signature: Signature
    cutter: GraphRows | None
    orders: dict[InferShape, tuple[str, ...]] = field(default_factory=dict)


def infer_view(model: Model, task: Task | None) -> InferView:
    """Made once a model."""
    key = "infer" if task is None else f"infer.{task.value}"
    view: InferView | None = model.derived.get(key)
    if view is None:
        signature = signature_of(model, task)
        view = model.derived[key] = InferView(signature, None if signature.reads else GraphRows(signature))
    return view
