"""Runs of graphs that take or give bfloat16, a type that the runtime's NumPy interface does not know.

Arrays go in and come out as the runtime's own values, over the same bytes: nothing is rounded or converted.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace_server.engines.base import Array
from headrace_server.engines.onnx.session import load_runtime
from headrace_server.models.signature import BFLOAT16

__all__ = ["Bfloat16Runs"]

_BFLOAT16_ELEMENT = 16  # TensorProto.BFLOAT16


class Bfloat16Runs:
    """A session asked with `OrtValue`s. Feeds and outputs may be of any other type too, but for sequences."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self._value = load_runtime().OrtValue

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], options: Any) -> list[Any]:
        """As `SessionRuns.run`; outputs of bfloat16 are copied once, out of the runtime's memory."""
        values = {name: self._given(feed) for name, feed in feeds.items()}
        return [_taken(value) for value in self._session.run_with_ort_values(list(names), values, options)]

    def _given(self, feed: Array) -> Any:
        if feed.dtype == BFLOAT16:
            bits = np.ascontiguousarray(feed).view(np.uint16)
            return self._value.ortvalue_from_numpy_with_onnx_type(bits, _BFLOAT16_ELEMENT)
        return self._value.ortvalue_from_numpy(feed)


def _taken(value: Any) -> Array:
    if value.element_type() != _BFLOAT16_ELEMENT:
        array: Array = value.numpy()
        return array
    shape = value.shape()
    size = math.prod(shape)
    if not size:
        return np.empty(shape, BFLOAT16)
    bits = np.frombuffer((ctypes.c_uint16 * size).from_address(value.data_ptr()), np.uint16)
    return bits.copy().view(BFLOAT16).reshape(shape)
