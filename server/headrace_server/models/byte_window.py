"""Raw bytes as a window of numbers, for models that read a file's own bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.errors import invalid_input
from headrace_server.models.inputs import BytesInput, Input
from headrace_server.models.model import PrepareOptions, Row
from headrace_server.models.rows import refuse_kind, stack
from headrace_server.models.signature import TensorSpec

__all__ = ["ByteWindow", "WindowReader"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteWindow:
    """The first `head` and the last `tail` bytes, each filled up with `padding_value`: the head after, the tail before.

    strip  white space is dropped from the start of the head and the end of the tail first, of the first and last
           `block` bytes at most
    """

    head: int
    tail: int
    block: int
    padding_value: int
    strip: bool

    def values(self, data: bytes) -> npt.NDArray[np.int32]:
        """i32[head + tail]"""
        first, last = data[: max(self.block, self.head)], data[-max(self.block, self.tail) :]
        if self.strip:
            first, last = first.lstrip(), last.rstrip()
        first = first[: self.head]
        last = last[-self.tail :] if self.tail else b""
        window = np.full(self.head + self.tail, self.padding_value, dtype=np.int32)
        window[: len(first)] = np.frombuffer(first, dtype=np.uint8)
        window[len(window) - len(last) :] = np.frombuffer(last, dtype=np.uint8)
        return window


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowReader:
    """Raw bytes for one graph input. Empty input is allowed: it is a window of padding."""

    spec: TensorSpec
    window: ByteWindow

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset({"bytes"})

    def prepare(
        self, inputs: Sequence[Input], options: PrepareOptions, *, field: str = "inputs", first: int = 0
    ) -> list[Row]:
        """One row an input; `truncated` where bytes in the middle are not read.

        raises  INVALID_INPUT for another kind of input, or, where `options.truncate` is False, one over the window
        """
        rows = []
        size = self.window.head + self.window.tail
        for index, given in enumerate(inputs, first):
            where = f"{field}[{index}]"
            if not isinstance(given, BytesInput):
                raise refuse_kind(where, given, self.kinds)
            length = len(given.data)
            if length > size and not options.truncate:
                raise invalid_input(f"{where}.raw", f"{length} bytes, limit {size}", limit=size)
            values = self.window.values(bytes(given.data)).astype(self.spec.dtype)
            rows.append(Row({self.spec.name: values}, truncated=length > size, num_units=length))
        return rows

    def collate(self, rows: Sequence[Row]) -> dict[str, npt.NDArray[Any]]:
        return stack(rows)
