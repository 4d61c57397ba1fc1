"""Images: what a catalog's index holds, in one file beside the catalog's, so that opening need not read row by row.

    MAGIC │ sequences │ vectors │ ids │ texts │ of each field: present, values, lengths of lists │ head │ end

    ids, texts   MessagePack arrays of texts, at most 65536 in one        lengths, values, sequences   little-endian
    head         MessagePack: token, revision, shape, and of each section its bytes and CRC-32
    end          length of the head, its CRC-32, MAGIC

An image is written under another name, synced and renamed; then the catalog's state takes its random token, in a
transaction. It is read only where the token is the state's and every checksum is right: a torn, stale or foreign image
is no worse than none. From before it was begun the catalog notes what is replaced or removed, so that an image of an
older revision is still of use: `loading` reads what came, went or changed since.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO
from zlib import crc32

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace_server.items.catalog import CatalogSpec, FieldType
from headrace_server.items.columns import Column, Columns, Vocabulary
from headrace_server.items.database import NEW_IMAGE, sync_directory
from headrace_server.items.segment import Part, Rows
from headrace_server.items.snapshot import Snapshot
from headrace_server.models.struct_types import resolve_types

__all__ = ["Image", "ImageError", "read_image", "write_image"]

_MAGIC = b"HDRCIMG1"
_CHUNK_ROWS = 65_536
_SYNC_BYTES = 16 << 20  # what other writers of the disk may have to wait for
_ROOM = 2  # so many times an image's bytes must be free: it is not to be what fills the disk
_DTYPES: Mapping[FieldType, np.dtype[Any]] = {
    FieldType.STRING: np.dtype("<i4"),
    FieldType.INTEGER: np.dtype("<i8"),
    FieldType.NUMBER: np.dtype("<f8"),
    FieldType.BOOLEAN: np.dtype("i1"),
    FieldType.STRING_LIST: np.dtype("<i4"),
}


class ImageError(Exception):
    """There is no image to be used, or no room for one; the text says why, for the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A catalog's items as of `revision`. Items of `next_sequence` and later ones came behind it."""

    rows: Rows
    revision: int
    next_sequence: int


class _Section(msgspec.Struct, array_like=True):
    num_bytes: int
    checksum: int


class _Head(msgspec.Struct):
    token: int
    revision: int
    num_items: int
    dimension: int
    fields: list[list[str]]
    id_blocks: list[int]  # bytes of each MessagePack array
    text_blocks: list[int]
    sections: list[_Section]


resolve_types(_Head)


def write_image(path: Path, snapshot: Snapshot, token: int, *, stop: Callable[[], bool]) -> bool:
    """Makes the image of a snapshot, durable on return; False where `stop` said so meanwhile.

    raises  ImageError where there is not enough room, OSError; then the image that was there before is there still
    """
    needed = snapshot.num_items * (4 * snapshot.spec.dimension + 64)
    if shutil.disk_usage(path.parent).free < _ROOM * needed:
        raise ImageError(f"less than {_ROOM} times the {needed} bytes of an image are free")
    new = path.with_suffix(NEW_IMAGE)
    try:
        with new.open("wb", buffering=1 << 20) as file:
            whole = _Writer(file, stop).write(snapshot, token)
            file.flush()
            os.fsync(file.fileno())
        if whole:
            new.replace(path)
            sync_directory(path.parent)
    finally:
        new.unlink(missing_ok=True)
    return whole


def read_image(path: Path, spec: CatalogSpec, token: int, revision: int, vocabulary: Vocabulary) -> Image:
    """The image of that token, every byte of it compared with its checksum; its texts go to `vocabulary`.

    raises  ImageError, OSError
    """
    with path.open("rb") as file:
        head = _read_head(file)
        fields = [[field.name, field.type.value] for field in spec.fields]
        if (head.token, head.revision) != (token, revision):
            raise ImageError("it is of another moment or another catalog")
        if (head.dimension, head.fields) != (spec.dimension, fields):
            raise ImageError("it has another shape than the catalog")
        return _Reader(file, head).read(spec, vocabulary)


class _Writer:
    def __init__(self, file: BinaryIO, stop: Callable[[], bool]) -> None:
        self._file = file
        self._stop = stop
        self._unsynced = 0
        self._sections: list[_Section] = []

    def write(self, snapshot: Snapshot, token: int) -> bool:
        spec, parts = snapshot.spec, snapshot.parts
        self._file.write(_MAGIC)
        self._section(_taken(parts, lambda rows: rows.sequences, "<i8"))
        self._section(_taken(parts, lambda rows: rows.vectors, "<f4"))
        id_blocks: list[int] = []
        self._section(_blocks(_taken(parts, lambda rows: rows.ids, "O"), id_blocks))
        codes, texts = _used_texts(snapshot)
        text_blocks: list[int] = []
        self._section(_blocks((texts[at : at + _CHUNK_ROWS] for at in range(0, len(texts), _CHUNK_ROWS)), text_blocks))
        for place, field in enumerate(spec.fields):
            columns = [_kept(part, part.segment.rows.columns.columns[place]) for part in parts]
            self._section(column.present.view(np.int8) for column in columns)
            dtype = _DTYPES[field.type]
            if field.type in (FieldType.STRING, FieldType.STRING_LIST):
                # Absent is -1, the last of `codes`.
                self._section(codes[column.values.astype(np.intp)].astype(dtype) for column in columns)
            else:
                self._section(column.values.astype(dtype, copy=False) for column in columns)
            lengths = [np.diff(column.offsets).astype("<i4") for column in columns if column.offsets is not None]
            self._section(iter(lengths))
        if self._stop():
            return False
        head = msgspec.msgpack.encode(
            _Head(
                token=token,
                revision=snapshot.revision,
                num_items=snapshot.num_items,
                dimension=spec.dimension,
                fields=[[field.name, field.type.value] for field in spec.fields],
                id_blocks=id_blocks,
                text_blocks=text_blocks,
                sections=self._sections,
            )
        )
        end = len(head).to_bytes(8, "little") + crc32(head).to_bytes(4, "little") + _MAGIC
        self._file.write(head + end)
        return True

    def _section(self, pieces: Iterator[Any]) -> None:
        section = _Section(0, 0)
        for piece in pieces:
            if self._stop():
                break
            data = _bytes_of(np.ascontiguousarray(piece)) if isinstance(piece, np.ndarray) else piece
            section.num_bytes += len(data)
            section.checksum = crc32(data, section.checksum)
            self._file.write(data)
            self._unsynced += len(data)
            if self._unsynced >= _SYNC_BYTES:
                self._file.flush()
                os.fdatasync(self._file.fileno())
                self._unsynced = 0
        self._sections.append(section)


class _Reader:
    def __init__(self, file: BufferedReader, head: _Head) -> None:
        self._file = file
        self._head = head
        self._sections = iter(head.sections)
        file.seek(len(_MAGIC))

    def read(self, spec: CatalogSpec, vocabulary: Vocabulary) -> Image:
        num_items = self._head.num_items
        sequences = self._array("<i8", (num_items,))
        vectors = self._array("<f4", (num_items, spec.dimension))
        ids = np.empty(num_items, dtype=np.object_)
        ids[:] = self._texts(self._head.id_blocks)
        codes = vocabulary.encode(self._texts(self._head.text_blocks))
        columns = tuple(self._column(field.type, codes) for field in spec.fields)
        rows = Rows(sequences=sequences, ids=ids, vectors=vectors, columns=Columns(num_items, columns))
        next_sequence = int(sequences.max(initial=-1)) + 1
        if (np.diff(sequences) <= 0).any():  # parts of a snapshot may interleave
            order = np.argsort(sequences)
            rows = Rows(
                sequences=sequences[order],
                ids=ids[order],
                vectors=vectors[order],
                columns=rows.columns.take(order),
            )
        return Image(rows=rows, revision=self._head.revision, next_sequence=next_sequence)

    def _column(self, kind: FieldType, codes: NDArray[np.int32]) -> Column:
        num_items = self._head.num_items
        present = self._array("i1", (num_items,)).view(np.bool_)
        values = self._array(_DTYPES[kind].str, None)
        lengths = self._array("<i4", None)
        if kind in (FieldType.STRING, FieldType.STRING_LIST):
            values = np.append(codes, np.int32(-1))[values]
        if kind is not FieldType.STRING_LIST:
            return Column(kind=kind, present=present, values=values)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Column(kind=kind, present=present, values=values, offsets=offsets)

    def _texts(self, blocks: Sequence[int]) -> list[str]:
        data = _bytes_of(self._array("u1", None))
        texts: list[str] = []
        start = 0
        for size in blocks:
            texts += msgspec.msgpack.decode(data[start : start + size], type=list[str])
            start += size
        return texts

    def _array(self, dtype: str, shape: tuple[int, ...] | None) -> NDArray[Any]:
        """The next section, compared with its checksum; in the machine's byte order."""
        section = next(self._sections)
        kind = np.dtype(dtype)
        array = np.empty(section.num_bytes // kind.itemsize if shape is None else shape, dtype=kind)
        if array.nbytes != section.num_bytes:
            raise ImageError("a section is of another size")
        data = _bytes_of(array)
        if self._file.readinto(data) != len(data) or crc32(data) != section.checksum:
            raise ImageError("a checksum is wrong")
        return array.astype(kind.newbyteorder("="), copy=False)


def _read_head(file: BufferedReader) -> _Head:
    tail = 12 + len(_MAGIC)
    size = file.seek(0, os.SEEK_END)
    if size < tail + len(_MAGIC):
        raise ImageError("it is cut off")
    file.seek(size - tail)
    end = file.read(tail)
    length = int.from_bytes(end[:8], "little")
    if end[12:] != _MAGIC or length > size - tail - len(_MAGIC):
        raise ImageError("it is cut off")
    file.seek(size - tail - length)
    data = file.read(length)
    if crc32(data) != int.from_bytes(end[8:12], "little"):
        raise ImageError("the checksum of its head is wrong")
    try:
        return msgspec.msgpack.decode(data, type=_Head)
    except msgspec.DecodeError as error:
        raise ImageError(f"its head is not readable: {error}") from None


def _taken(parts: Sequence[Part], of: Callable[[Rows], NDArray[Any]], dtype: str) -> Iterator[NDArray[Any]]:
    """What is left of each part's column, some rows at a time."""
    for part in parts:
        column = of(part.segment.rows)
        for start in range(0, len(column), _CHUNK_ROWS):
            piece = column[start : start + _CHUNK_ROWS]
            if part.alive is not None:
                piece = piece[part.alive[start : start + _CHUNK_ROWS]]
            yield piece.astype(dtype, copy=False)


def _kept(part: Part, column: Column) -> Column:
    return column if part.alive is None else column.take(np.flatnonzero(part.alive))


def _blocks(pieces: Iterator[Any], sizes: list[int]) -> Iterator[bytes]:
    """Each piece of texts as a MessagePack array; `sizes` takes its bytes."""
    for piece in pieces:
        block = msgspec.msgpack.encode(piece.tolist() if isinstance(piece, np.ndarray) else piece)
        sizes.append(len(block))
        yield block


def _used_texts(snapshot: Snapshot) -> tuple[NDArray[np.int32], list[str]]:
    """New numbers of the texts that items hold, by their old ones (-1 stays -1), and those texts."""
    known = snapshot.vocabulary.texts[:]  # others add to it
    used = np.zeros(len(known) + 1, dtype=np.bool_)
    for part in snapshot.parts:
        for column in part.segment.rows.columns.columns:
            if column.kind in (FieldType.STRING, FieldType.STRING_LIST):
                used[_kept(part, column).values.astype(np.intp)] = True
    used[-1] = False
    codes = (np.cumsum(used) - 1).astype(np.int32)
    codes[-1] = -1
    return codes, [known[code] for code in np.flatnonzero(used).tolist()]


def _bytes_of(array: NDArray[Any]) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
