"""Parquet and Arrow IPC files by their endings, read and written batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from headrace_client.arrow.faults import FileFault

__all__ = ["Reader", "Writer", "open_reader", "open_writer"]

_IPC_ENDINGS = (".arrow", ".feather", ".ipc")
_PARQUET_ENDING = ".parquet"


class Reader(Protocol):
    """A file's rows."""

    @property
    def schema(self) -> pa.Schema: ...
    @property
    def num_rows(self) -> int: ...

    def batches(self, first_row: int, max_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Each batch with the number of its first row, from `first_row` on."""
        ...


class Writer(Protocol):
    """Takes batches of one schema."""

    def write_batch(self, batch: pa.RecordBatch) -> object: ...


@contextmanager
def open_reader(path: str | os.PathLike[str]) -> Iterator[Reader]:
    """The file's rows. Raises FileFault for a file that is not what its ending says; OSError."""
    path = Path(path)
    parquet = _is_parquet(path)
    with pa.memory_map(os.fspath(path)) if path.stat().st_size else path.open("rb") as source:
        with _readable("not a readable Parquet file" if parquet else "not a readable Arrow IPC file"):
            reader: Reader = _Parquet(source) if parquet else _Ipc(source)
        yield reader


@contextmanager
def open_writer(path: str | os.PathLike[str], schema: pa.Schema, *, plain: tuple[str, ...] = ()) -> Iterator[Writer]:
    """Takes the rows of a file that appears whole, and on disk, at the end; or not at all.

    plain  columns of which no two values are alike: no dictionary is tried
    """
    path = Path(path)
    parquet = _is_parquet(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as sink:
            with _parquet_writer(sink, schema, plain) if parquet else pa.ipc.new_file(sink, schema) as writer:
                yield writer
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            fresh.unlink()
        raise


def _parquet_writer(sink: Any, schema: pa.Schema, plain: tuple[str, ...]) -> AbstractContextManager[Writer]:
    columns: Any = [name for name in schema.names if name not in plain]
    writer: AbstractContextManager[Writer] = pq.ParquetWriter(
        sink, schema, compression="zstd", use_dictionary=columns, write_statistics=columns
    )
    return writer


def _is_parquet(path: Path) -> bool:
    ending = path.suffix.lower()
    if ending != _PARQUET_ENDING and ending not in _IPC_ENDINGS:
        known = ", ".join((_PARQUET_ENDING, *_IPC_ENDINGS))
        raise FileFault(f"a file's ending says its format: {ending or 'none'!r}, one of {known}")
    return ending == _PARQUET_ENDING


class _Parquet:
    """A row group in memory at a time."""

    def __init__(self, source: Any) -> None:
        self._file = pq.ParquetFile(source)
        self.schema: pa.Schema = self._file.schema_arrow
        self.num_rows: int = self._file.metadata.num_rows

    def batches(self, first_row: int, max_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        start, groups = 0, list(range(self._file.num_row_groups))
        while groups and start + (num_rows := self._file.metadata.row_group(groups[0]).num_rows) <= first_row:
            start += num_rows
            groups.pop(0)
        if not groups:
            return
        with _readable():
            for batch in self._file.iter_batches(max_rows, row_groups=groups):
                skipped = min(batch.num_rows, max(0, first_row - start))
                if skipped < batch.num_rows:
                    yield start + skipped, batch.slice(skipped)
                start += batch.num_rows


class _Ipc:
    """Mapped into memory, and never copied whole; a compressed one has one of its own batches in memory at a time."""

    def __init__(self, source: Any) -> None:
        self._file = pa.ipc.open_file(source)
        self.schema: pa.Schema = self._file.schema
        with _readable():
            self._sizes = [self._file.get_batch(index).num_rows for index in range(self._file.num_record_batches)]
        self.num_rows = sum(self._sizes)

    def batches(self, first_row: int, max_rows: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        start = 0
        for index, size in enumerate(self._sizes):
            if start + size > first_row:
                with _readable():
                    batch = self._file.get_batch(index)
                for offset in range(max(0, first_row - start), size, max_rows):
                    yield start + offset, batch.slice(offset, max_rows)
            start += size


@contextmanager
def _readable(otherwise: str = "damaged") -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the system; Arrow's own have none
            raise
        raise FileFault(f"{otherwise}: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
