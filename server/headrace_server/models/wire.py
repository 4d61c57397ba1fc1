"""The fields of a protobuf message, read straight from its bytes: bounded, and without copying what is skipped.

Every offset is checked against the end of the message that holds it. Anything malformed raises `WireError`; nothing
else is raised whatever the bytes are.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import NamedTuple

__all__ = ["Buffer", "Field", "WireError", "WireReader", "signed"]

Buffer = bytes | memoryview | mmap.mmap

_MAX_FIELDS = 20_000_000  # fields read from one file: bounds the time a hostile file can take


class WireError(ValueError):
    """The bytes are not a well-formed message; the text says where and why."""


class Field(NamedTuple):
    """One field: `value` of a number, or the span [start, stop) of a length-delimited one (start ≥ 0)."""

    number: int
    value: int
    start: int
    stop: int


def signed(value: int) -> int:
    """The int64 that a varint of 64 bits stands for."""
    return value - (1 << 64) if value >= 1 << 63 else value


class WireReader:
    """Reads messages inside one buffer. Not thread-safe: it counts what it has read."""

    __slots__ = ("buffer", "num_fields", "size")

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self.size = len(buffer)
        self.num_fields = 0

    def fields(self, start: int, stop: int) -> Iterator[Field]:
        """The fields of the message at [start, stop), in file order. Raises WireError."""
        if not 0 <= start <= stop <= self.size:
            raise WireError(f"message at {start}..{stop} is outside the file")
        position = start
        while position < stop:
            self.num_fields += 1
            if self.num_fields > _MAX_FIELDS:
                raise WireError(f"more than {_MAX_FIELDS} fields")
            tag, position = self._varint(position, stop)
            number, wire_type = tag >> 3, tag & 7
            if not 1 <= number < 1 << 29:
                raise WireError(f"field number {number} at byte {position}")
            if wire_type == 0:
                value, position = self._varint(position, stop)
                yield Field(number, value, -1, -1)
            elif wire_type == 2:
                length, position = self._varint(position, stop)
                if length > stop - position:
                    raise WireError(
                        f"field {number} at byte {position} is {length} bytes long, {stop - position} are left"
                    )
                yield Field(number, 0, position, position + length)
                position += length
            elif wire_type in (1, 5):
                width = 8 if wire_type == 1 else 4
                if width > stop - position:
                    raise WireError(f"field {number} at byte {position} is cut off")
                yield Field(number, int.from_bytes(self.buffer[position : position + width], "little"), -1, -1)
                position += width
            else:
                raise WireError(f"wire type {wire_type} at byte {position}")

    def integers(self, field: Field) -> Iterator[int]:
        """The int64 values of a repeated field's one occurrence, packed or not."""
        if field.start < 0:
            yield signed(field.value)
            return
        position = field.start
        while position < field.stop:
            value, position = self._varint(position, field.stop)
            yield signed(value)

    def text(self, field: Field) -> str:
        """The field's UTF-8 text."""
        try:
            return self.content(field).decode()
        except UnicodeDecodeError:
            raise WireError(f"text at byte {field.start} is not UTF-8") from None

    def content(self, field: Field) -> bytes:
        """The field's bytes, copied."""
        if field.start < 0:
            raise WireError(f"field {field.number} is a number where bytes are expected")
        return bytes(self.buffer[field.start : field.stop])

    def message(self, field: Field) -> Iterator[Field]:
        """The fields of the message that this field holds."""
        if field.start < 0:
            raise WireError(f"field {field.number} is a number where a message is expected")
        return self.fields(field.start, field.stop)

    def _varint(self, position: int, stop: int) -> tuple[int, int]:
        value = shift = 0
        buffer = self.buffer
        while position < stop:
            byte = buffer[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, position
            shift += 7
            if shift >= 70:
                raise WireError(f"number at byte {position} is over 10 bytes long")
        raise WireError(f"number at byte {position} is cut off")
