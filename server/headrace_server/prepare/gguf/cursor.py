"""Cursor: reads little-endian values from bytes that may be wrong anywhere. Nothing is read beyond what is there."""

from __future__ import annotations

import struct
from typing import Any

__all__ = ["Cursor", "GgufFault"]

_NUMBERS = {code: struct.Struct(f"<{code}") for code in "BbHhIifQqd"}


class GgufFault(Exception):
    """The file is not what it should be; the text says where and how, in one line."""


class Cursor:
    """A place in `buffer`; each read moves it on. Raises GgufFault naming `what` where the bytes end too early."""

    def __init__(self, buffer: memoryview, at: int = 0) -> None:
        self._buffer = buffer
        self.at = at

    @property
    def left(self) -> int:
        """Bytes that have not been read."""
        return len(self._buffer) - self.at

    def take(self, size_bytes: int, what: str) -> memoryview:
        """The next bytes, not copied."""
        if size_bytes > self.left:
            raise GgufFault(f"{what}: needs {size_bytes} bytes at offset {self.at}, the file has {self.left} left")
        taken = self._buffer[self.at : self.at + size_bytes]
        self.at += size_bytes
        return taken

    def number(self, code: str, what: str) -> Any:
        """The next number, by its `struct` code."""
        layout = _NUMBERS[code]
        return layout.unpack(self.take(layout.size, what))[0]

    def count(self, what: str, *, each_bytes: int) -> int:
        """The next u64, a number of things of at least `each_bytes`: never more than the rest of the file can hold."""
        count: int = self.number("Q", what)
        if count > self.left // each_bytes:
            raise GgufFault(f"{what}: {count} at offset {self.at - 8}, the file has {self.left} bytes left")
        return count

    def text(self, what: str) -> str:
        """The next string: a u64 length, then UTF-8."""
        raw = self.take(self.count(f"{what}, length", each_bytes=1), what)
        try:
            return str(raw, "utf-8")
        except UnicodeDecodeError:
            raise GgufFault(f"{what}: not UTF-8 at offset {self.at - len(raw)}") from None
