"""ONNX Runtime's names for types, as the server's; and what is checked and converted at that border.

Nothing here imports the runtime, which speaks of types in strings: "tensor(float)", "seq(map(int64,tensor(float)))".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headrace_server.engines.base import Array
from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.models.signature import DataType, TensorSpec, array_dtype

__all__ = ["GraphTensor", "check_feeds", "check_outputs", "graph_tensor", "map_matrix", "shapes_disagree"]

_DATA_TYPES: dict[str, DataType] = {
    "bool": "bool", "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
    "float16": "float16", "bfloat16": "bfloat16", "float": "float32", "double": "float64", "string": "string",
}  # fmt: skip
_TENSOR = re.compile(r"tensor\((\w+)\)")
_MAPS = re.compile(r"seq\(map\((?:string|int64),tensor\(float\)\)\)")


@dataclass(frozen=True, slots=True)
class GraphTensor:
    """One input or output as the runtime declares it."""

    spec: TensorSpec
    is_map_sequence: bool  # given as one dictionary a row; the engine makes a matrix of it
    numpy_dtype: np.dtype[Any] | None  # None: strings, as objects or as NumPy has them
    symbols: tuple[str | None, ...]  # by axis, the name of a size that varies


def graph_tensor(name: str, type_name: str, shape: Sequence[int | str | None]) -> GraphTensor | None:
    """The runtime's declaration read; None for types that no caller can be given (optionals, sequences of tensors)."""
    if _MAPS.fullmatch(type_name):
        return GraphTensor(TensorSpec(name, "float32", (-1, -1)), True, np.dtype(np.float32), (None, None))
    found = _TENSOR.fullmatch(type_name)
    dtype = _DATA_TYPES.get(found[1]) if found else None
    if dtype is None:
        return None
    axes = tuple(axis if isinstance(axis, int) and axis >= 0 else -1 for axis in shape)
    symbols = tuple(axis if isinstance(axis, str) else None for axis in shape)
    numpy_dtype = None if dtype == "string" else array_dtype(dtype)
    return GraphTensor(TensorSpec(name, dtype, axes), False, numpy_dtype, symbols)


def check_feeds(feeds: Mapping[str, Array], inputs: Mapping[str, GraphTensor]) -> None:
    """Raises ServingError INVALID_INPUT naming every feed that is missing, unknown, or of a wrong dtype or shape."""
    if feeds.keys() == inputs.keys() and all(_fits(feed, inputs[name]) for name, feed in feeds.items()):
        return
    violations = [Violation(f"tensors.{name}", "missing") for name in inputs if name not in feeds]
    known = ", ".join(inputs)
    for name, feed in feeds.items():
        declared = inputs.get(name)
        if declared is None:
            violations.append(Violation(f"tensors.{name}", f"unknown, the model reads {known}"))
        elif not _fits(feed, declared):
            given = TensorSpec(name, str(feed.dtype), feed.shape)  # type: ignore[arg-type]  # only to be printed
            violations.append(Violation(f"tensors.{name}", f"{given}, the model reads {declared.spec}"))
    raise ServingError(
        Reason.INVALID_INPUT, "; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations
    )


def check_outputs(names: Sequence[str], outputs: Mapping[str, GraphTensor]) -> None:
    """Raises ServingError INVALID_INPUT naming the first output that the graph does not give."""
    for name in names:
        if name not in outputs:
            known = ", ".join(outputs)
            raise ServingError(Reason.INVALID_INPUT, f"outputs: {name!r} is unknown, the model gives {known}")


def _fits(feed: Array, declared: GraphTensor) -> bool:
    if declared.numpy_dtype is None:
        if feed.dtype.kind not in "OU":
            return False
        if feed.dtype.kind == "O" and not all(isinstance(value, str) for value in feed.flat):
            return False
    elif feed.dtype != declared.numpy_dtype:
        return False
    shape = declared.spec.shape
    if not shape:  # a scalar, or a graph that does not say how many axes there are
        return True
    return len(shape) == feed.ndim and all(
        axis < 0 or axis == size for axis, size in zip(shape, feed.shape, strict=True)
    )


def shapes_disagree(feeds: Mapping[str, Array], inputs: Mapping[str, GraphTensor]) -> str:
    """One sentence on the first axis that two feeds should share and do not; "" where all agree.

    Asked only once a run has failed: some exporters give one name to sizes that do differ.
    """
    seen: dict[str, tuple[str, int]] = {}
    for name, declared in inputs.items():
        for symbol, size in zip(declared.symbols, feeds[name].shape, strict=False):
            if symbol is None:
                continue
            other, expected = seen.setdefault(symbol, (name, size))
            if size != expected:
                return f"axis {symbol!r} is {expected} in {other} and {size} in {name}"
    return ""


def map_matrix(maps: Sequence[Mapping[Any, float]], keys: Sequence[Any]) -> Array:
    """f32[b, c] of a sequence of maps; columns in the order of `keys`, or the maps' own where `keys` are not theirs."""
    if not maps:
        return np.zeros((0, len(keys)), np.float32)
    columns = list(keys) if set(keys) == maps[0].keys() else list(maps[0])
    return np.array([[row[key] for key in columns] for row in maps], np.float32)
