"""GgufFile: metadata and tensors of a GGUF file (versions 2 and 3), as they lie there, checked.

Everything a file says about itself is doubted until it was compared with the bytes there are: counts before a list is
made, lengths before a string, offsets and sizes before a tensor. Reading costs what the header costs; tensors are
views.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.gguf.blocks import BLOCK_TYPES, BlockType, dequantize
from headrace_server.prepare.gguf.cursor import Cursor, GgufFault

__all__ = ["GgufFile", "GgufTensor", "gguf_error"]

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
_MAX_NAME_LENGTH = 256
_MAX_ALIGNMENT = 1 << 16
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL = 8, 9, 7
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_SIZES = {"B": 1, "b": 1, "H": 2, "h": 2, "I": 4, "i": 4, "f": 4, "Q": 8, "q": 8, "d": 8}
_SMALLEST_ENTRY = 8 + 4 + 1  # a key's length, a type, a value of a byte
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One entry of the tensor table. `shape` is as NumPy has it: the last axis is contiguous."""

    name: str
    shape: tuple[int, ...]
    block: BlockType
    content: memoryview

    def values(self) -> npt.NDArray[np.float32]:
        """f32[shape], dequantized now; nothing is kept."""
        return dequantize(self.content, self.block).reshape(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufFile:
    """What a file holds. Values of `metadata` are numbers, bools, strings, lists of strings and NumPy arrays."""

    name: str
    version: int
    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @classmethod
    def open(cls, path: Path) -> Self:
        """The file at `path`, mapped: tensors are read from disk when they are asked for.

        raises  PrepareError, one line, for what is no GGUF file or is damaged; OSError where it cannot be opened
        """
        with path.open("rb") as file:
            try:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError:
                raise gguf_error(path.name, "the file is empty") from None
        return cls.parse(content, name=path.name)

    @classmethod
    def parse(cls, content: bytes | mmap.mmap, *, name: str) -> Self:
        """What `content` holds; `name` is how errors call it. Raises PrepareError, one line."""
        try:
            return cls._parse(memoryview(content), name)
        except GgufFault as fault:
            raise gguf_error(name, str(fault)) from None

    @classmethod
    def _parse(cls, buffer: memoryview, name: str) -> Self:
        cursor = Cursor(buffer)
        if bytes(cursor.take(4, "magic")) != b"GGUF":
            raise GgufFault("it does not begin with GGUF")
        version = cursor.number("I", "version")
        if version not in _VERSIONS:
            raise GgufFault(f"version {version}, versions {_VERSIONS[0]} and {_VERSIONS[1]} are read")
        num_tensors = cursor.count("number of tensors", each_bytes=_SMALLEST_TENSOR)
        num_entries = cursor.count("number of metadata entries", each_bytes=_SMALLEST_ENTRY)
        metadata = {}
        for _ in range(num_entries):
            key = _name(cursor, "a metadata key")
            if key in metadata:
                raise GgufFault(f"metadata {key}: stands there twice")
            metadata[key] = _value(cursor, cursor.number("I", f"metadata {key}, type"), f"metadata {key}")
        return cls(
            name=name, version=version, metadata=metadata, tensors=_tensors(cursor, num_tensors, buffer, metadata)
        )


def gguf_error(name: str, fault: str) -> PrepareError:
    """The file `name` cannot be used, and why."""
    return PrepareError(f"{name}: not a usable GGUF file: {fault}", cure="download or make it again")


def _name(cursor: Cursor, what: str) -> str:
    name = cursor.text(what)
    if not 0 < len(name) <= _MAX_NAME_LENGTH or not name.isprintable():
        raise GgufFault(f"{what} before offset {cursor.at}: {len(name)} characters that are no name")
    return name


def _value(cursor: Cursor, kind: int, what: str) -> Any:
    if kind == _STRING:
        return cursor.text(what)
    if kind == _BOOL:
        return bool(cursor.number("B", what))
    if kind == _ARRAY:
        return _array(cursor, what)
    if kind not in _NUMBERS:
        raise GgufFault(f"{what}: type {kind} is not one of GGUF's")
    return cursor.number(_NUMBERS[kind], what)


def _array(cursor: Cursor, what: str) -> Any:
    kind = cursor.number("I", f"{what}, type of its elements")
    if kind == _STRING:
        return [cursor.text(what) for _ in range(cursor.count(f"{what}, length", each_bytes=8))]
    code = "B" if kind == _BOOL else _NUMBERS.get(kind)
    if code is None:
        raise GgufFault(f"{what}: an array of type {kind} is not read")
    size = _SIZES[code]
    count = cursor.count(f"{what}, length", each_bytes=size)
    return np.frombuffer(cursor.take(count * size, what), np.dtype(code).newbyteorder("<"))


def _tensors(
    cursor: Cursor, num_tensors: int, buffer: memoryview, metadata: Mapping[str, Any]
) -> dict[str, GgufTensor]:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 1 <= alignment <= _MAX_ALIGNMENT or alignment & (alignment - 1):
        raise GgufFault(f"metadata general.alignment: {alignment!r:.40} is no power of two up to {_MAX_ALIGNMENT}")
    entries = [_entry(cursor) for _ in range(num_tensors)]
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GgufTensor] = {}
    for name, shape, block, offset in entries:
        if name in tensors:
            raise GgufFault(f"tensor {name}: stands there twice")
        if offset % alignment:
            raise GgufFault(f"tensor {name}: offset {offset} is no multiple of the alignment {alignment}")
        size = math.prod(shape) // block.size * block.size_bytes
        tensors[name] = GgufTensor(name, shape, block, Cursor(buffer, start + offset).take(size, f"tensor {name}"))
    _refuse_overlap(entries)
    return tensors


_Entry = tuple[str, tuple[int, ...], BlockType, int]


def _entry(cursor: Cursor) -> _Entry:
    name = _name(cursor, "a tensor's name")
    num_dimensions = cursor.number("I", f"tensor {name}, number of dimensions")
    if not 1 <= num_dimensions <= _MAX_DIMENSIONS:
        raise GgufFault(f"tensor {name}: {num_dimensions} dimensions, 1 to {_MAX_DIMENSIONS} are read")
    dimensions = [cursor.number("Q", f"tensor {name}, a dimension") for _ in range(num_dimensions)]
    kind = cursor.number("I", f"tensor {name}, type")
    if kind not in BLOCK_TYPES:
        known = ", ".join(block.name for block in BLOCK_TYPES.values())
        raise GgufFault(f"tensor {name}: type {kind} is not one of {known}")
    block = BLOCK_TYPES[kind]
    if 0 in dimensions or dimensions[0] % block.size:
        raise GgufFault(f"tensor {name}: {dimensions[0]} numbers a row, {block.name} needs multiples of {block.size}")
    return name, tuple(reversed(dimensions)), block, cursor.number("Q", f"tensor {name}, offset")


def _refuse_overlap(entries: list[_Entry]) -> None:
    end, before = 0, ""
    for name, shape, block, offset in sorted(entries, key=lambda entry: entry[3]):
        if offset < end:
            raise GgufFault(f"tensor {name}: begins inside tensor {before}")
        end, before = offset + math.prod(shape) // block.size * block.size_bytes, name
