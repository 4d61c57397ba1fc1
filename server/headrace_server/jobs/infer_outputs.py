"""Rows' results into whole tensors by name; and a tensor's largest values as the protocol's classifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.errors import invalid_input
from headrace_server.jobs.infer_queries import WantedOutput
from headrace_server.jobs.signatures import Signature
from headrace_server.jobs.submission import RowResult
from headrace_server.models.rows import nearest

__all__ = ["check_wanted", "joined", "select"]

Array = npt.NDArray[Any]


def check_wanted(wanted: Sequence[WantedOutput], signature: Signature) -> None:
    """Raises INVALID_INPUT for an output that the model does not give, or that is wanted twice or in classes it has
    not."""
    specs = {spec.name: spec for spec in signature.outputs}
    seen = set()
    for index, output in enumerate(wanted):
        spec = specs.get(output.name)
        where = f"outputs[{index}]"
        if spec is None:
            hint = f"the nearest is {nearest(output.name, list(specs))!r}"
            raise invalid_input(f"{where}.name", f"{output.name[:128]!r} is no output of this model, {hint}")
        if output.name in seen:
            raise invalid_input(f"{where}.name", f"{output.name!r} is wanted twice")
        seen.add(output.name)
        if output.num_classes and spec.dtype in ("string", "bool"):
            raise invalid_input(f'{where}.parameters["classification"]', f"{spec.dtype} has no order")


def joined(results: Sequence[RowResult]) -> dict[str, Array]:
    """One array an output, batch axis first; the engine's own where these rows were all of its run."""
    first = results[0]
    if len(results) == 1:
        return {name: array[np.newaxis] for name, array in first.items()}
    return {name: _whole(name, results) for name in first}


def _whole(name: str, results: Sequence[RowResult]) -> Array:
    parts = [result[name] for result in results]
    shape = parts[0].shape
    base = parts[0].base
    if (
        isinstance(base, np.ndarray)
        and base.shape == (len(parts), *shape)
        and base.flags.c_contiguous
        and all(part.base is base for part in parts)
    ):
        return base
    if any(part.shape != shape for part in parts):
        raise invalid_input(
            "inputs", f"the model gives {name} of different shapes for these rows: ask for them one by one"
        )
    return np.stack(parts)


def select(outputs: Mapping[str, Array], wanted: Sequence[WantedOutput], signature: Signature) -> Mapping[str, Array]:
    """The wanted outputs, in their order; all where none is named."""
    if not wanted:
        return outputs
    return {
        output.name: _classes(outputs[output.name], output, signature) if output.num_classes else outputs[output.name]
        for output in wanted
    }


def _classes(array: Array, output: WantedOutput, signature: Signature) -> Array:
    """str[n, k] of "value:index:label", of a tensor without a batch axis str[k]; best first, NaN last."""
    rows = array.reshape(len(array), -1) if signature.max_batch_size else array.reshape(1, -1)
    labels = signature.labels if output.name == signature.labelled and rows.shape[1] == len(signature.labels) else ()
    count = min(output.num_classes, rows.shape[1])
    texts = np.empty((len(rows), count), dtype=object)
    for at, row in enumerate(rows):
        order = np.argsort(-row.astype(np.float64), kind="stable")[:count].tolist()
        for place, index in enumerate(order):
            value = row[index].item()
            shown = f"{value:f}" if isinstance(value, float) else str(value)
            texts[at, place] = f"{shown}:{index}:{labels[index]}" if labels else f"{shown}:{index}"
    return texts if signature.max_batch_size else texts[0]
