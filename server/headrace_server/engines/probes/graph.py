"""A graph of one product, written byte by byte, so that asking an engine to run needs no model and no ONNX library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["NUM_COLUMNS", "probe_feed", "write_probe_graph"]

NUM_COLUMNS = 64
_FLOAT = 1  # TensorProto.FLOAT


def probe_feed() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """x f32[8, 64], and what the graph should answer, y f64[8, 64]; each about as large as 1."""
    x = np.random.default_rng(7).standard_normal((8, NUM_COLUMNS)).astype(np.float32)
    return x, x.astype(np.float64) @ _weights().astype(np.float64)


def write_probe_graph(folder: Path) -> Path:
    """model.onnx: y f32[n, 64] = x f32[n, 64] × weights f32[64, 64]."""
    operator = _text(1, "x") + _text(1, "w") + _text(2, "y") + _text(3, "product") + _text(4, "MatMul")
    weights = (
        _number(1, NUM_COLUMNS) * 2 + _number(2, _FLOAT) + _text(8, "w") + _bytes(9, _weights().astype("<f4").tobytes())
    )
    graph = (
        _bytes(1, operator) + _text(2, "probe") + _bytes(5, weights) + _bytes(11, _value("x")) + _bytes(12, _value("y"))
    )
    model = _number(1, 8) + _bytes(7, graph) + _bytes(8, _text(1, "") + _number(2, 17))
    path = folder / "model.onnx"
    path.write_bytes(model)
    return path


def _weights() -> npt.NDArray[np.float32]:
    values = np.random.default_rng(11).standard_normal((NUM_COLUMNS, NUM_COLUMNS)) / np.sqrt(NUM_COLUMNS)
    return np.asarray(values, np.float32)


def _value(name: str) -> bytes:
    shape = _bytes(1, _text(2, "n")) + _bytes(1, _number(1, NUM_COLUMNS))
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, _FLOAT) + _bytes(2, shape)))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _varint(value: int) -> bytes:
    groups = []
    while value > 127:
        groups.append(value & 127 | 128)
        value >>= 7
    return bytes([*groups, value])
