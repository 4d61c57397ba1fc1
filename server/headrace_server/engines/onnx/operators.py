"""add_operators: the kernels' own graph operators in a session of ONNX Runtime, once they have shown that they work.

Graphs that name them say as functions what they mean (docs/generation-models.md), so that a session without them runs
too, only slower. Before the first session is given them, one product of known numbers is computed by this runtime.
"""

from __future__ import annotations

import functools
import logging
from pathlib import Path
from typing import Any

import numpy as np

from headrace_kernels import graph_operators

__all__ = ["add_operators"]

_log = logging.getLogger(__name__)

_FLOAT, _INT8 = 1, 3  # TensorProto.DataType
_SHAPES = {"x": (_FLOAT, (2, 32)), "weights": (_INT8, (1, 8, 16, 4)), "scales": (_FLOAT, (16,)), "y": (_FLOAT, (2, 16))}
_OPSET = 21


def add_operators(runtime: Any, options: Any) -> None:
    """Registers the operators with a session's options, where this machine and this runtime have them."""
    library = graph_operators.library()
    if library is not None and _works(runtime, library):
        options.register_custom_ops_library(str(library))


@functools.cache
def _works(runtime: Any, library: Path) -> bool:
    """Whether the operators give the right answer in this runtime; why not is logged once."""
    try:
        options = runtime.SessionOptions()
        options.log_severity_level = 4
        options.register_custom_ops_library(str(library))
        session = runtime.InferenceSession(_probe(), options, providers=["CPUExecutionProvider"])
        # Whole numbers with a largest of 127: quantization changes nothing, and every sum is exact.
        x = (np.arange(64, dtype=np.float32) * 37 % 255 - 127).reshape(2, 32)
        x[:, 0] = 127
        weights = (np.arange(512) * 53 % 255 - 127).astype(np.int8)
        matrix = weights.reshape(8, 16, 4).swapaxes(0, 1).reshape(16, 32).astype(np.float32)
        answer = session.run(None, {"x": x, "weights": weights.reshape(1, 8, 16, 4), "scales": np.ones(16, np.float32)})
        problem = "" if np.array_equal(answer[0], x @ matrix.T) else "they give a wrong answer"
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem:
        _log.warning("the kernels' graph operators are left out, decoders run slower: %s", problem)
    return not problem


def _probe() -> bytes:
    """A serialised ModelProto with one node, `y = RowLinear(x, weights, scales)`."""
    inputs = [name for name in _SHAPES if name != "y"]
    node = b"".join(_field(1, name.encode()) for name in inputs) + _field(2, b"y")
    node += _field(4, b"RowLinear") + _field(7, graph_operators.DOMAIN.encode())
    graph = _field(1, node) + _field(2, b"probe")
    graph += b"".join(_field(11, _value(name)) for name in inputs) + _field(12, _value("y"))
    opsets = _field(8, _number(2, _OPSET)) + _field(8, _field(1, graph_operators.DOMAIN.encode()) + _number(2, 1))
    return _number(1, 10) + _field(7, graph) + opsets


def _value(name: str) -> bytes:
    """A ValueInfoProto."""
    dtype, shape = _SHAPES[name]
    dimensions = b"".join(_field(1, _number(1, size)) for size in shape)
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, dtype) + _field(2, dimensions)))


def _field(number: int, payload: bytes) -> bytes:
    """A field of protobuf with a length, below 16 KiB."""
    size = len(payload)
    return bytes((number << 3 | 2, *((size,) if size < 128 else (size & 127 | 128, size >> 7)))) + payload


def _number(number: int, value: int) -> bytes:
    return bytes((number << 3, value))
