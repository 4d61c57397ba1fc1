"""A file into a catalog: streamed, taken up again after a lost connection, and idempotent."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

import numpy as np

from headrace_client.arrow.faults import FileFault, ImportStopped
from headrace_client.arrow.files import Reader, open_reader
from headrace_client.arrow.reading import RowReader, vector_length
from headrace_client.arrow.schema import ID, PAYLOAD, VECTOR, spec_of_schema
from headrace_client.catalogs import CatalogInfo, CatalogOptions, CatalogSpec
from headrace_client.client import Client
from headrace_client.errors import HeadraceError, InvalidArgument, NotFound, Overloaded, Unavailable
from headrace_client.items import ItemBatch

__all__ = ["ImportProgress", "ImportReport", "import_catalog"]

_STAGING = ".import"  # added to the name of a catalog that is to be replaced
_BATCH_ITEMS = 1000
_BATCH_BYTES = 4 * 1024 * 1024
_MAX_RETRIES = 8  # one after the other, without a row between them: some 20 s, in which a server may start again
_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.25, 5.0
_PLACE = re.compile(r"items\.(ids|payloads)\[(\d+)\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportProgress:
    """Rows before `next_row` are durable, of `num_rows` in the file."""

    next_row: int
    num_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What the import made: the catalog as it stands, rows that were taken, and whether it was made by the import."""

    catalog: CatalogInfo
    num_rows: int
    created: bool


def import_catalog(
    client: Client,
    path: str | os.PathLike[str],
    name: str = "",
    *,
    options: CatalogOptions | None = None,
    replace_all: bool = False,
    from_row: int = 0,
    id_column: str = ID,
    vector_column: str = VECTOR,
    skip_columns: Collection[str] = (),
    cast_vectors: bool = False,
    on_progress: Callable[[ImportProgress], object] | None = None,
) -> ImportReport:
    """Adds a file's rows to a catalog, or replaces its items of the same id; makes the catalog where it is missing.

    Importing a file again changes nothing but the revision. After a lost connection it goes on with the first row that
    is not known to be durable; one that stopped can be taken up at `ImportStopped.next_row`. Some 4 MiB of rows are
    held, beside what the reader needs for one group of the file's rows. Of rows of one id the last one stays, or they
    are refused where they travel together.

    name         of the catalog; default: what the file says
    options      for a catalog that is made, beside or instead of what the file says
    replace_all  the rows go to a catalog `NAME.import` beside it, which takes the catalog's place at the end, from one
                 request to the next: a snapshot for a replica. Items that are not in the file are gone then
    from_row     rows before it are passed over

    raises  FileFault naming column and row before anything is sent; ImportStopped after that, with its cause;
            HeadraceError for what is not of the rows; OSError
    """
    with open_reader(path) as reader:
        said = spec_of_schema(reader.schema)
        name = name or (said.name if said is not None else "")
        if not name:
            raise FileFault("the file does not say its catalog's name: give one")
        if not 0 <= from_row <= reader.num_rows:
            raise FileFault(f"from_row: {from_row}, the file has {reader.num_rows} rows")
        existing = _find(client, name)
        spec = _wanted(reader, name, said, existing, options or {}, vector_column)
        if existing is not None:
            _require_alike(spec, existing.spec)
        rows = RowReader(
            reader.schema,
            spec.dimension,
            spec.fields,
            id_column=id_column,
            vector_column=vector_column,
            skip_columns=skip_columns,
            cast_vectors=cast_vectors,
        )
        target = _prepare(client, spec, existing, replace_all=replace_all, resumed=from_row > 0)
        _send(client, target, reader, rows, from_row, on_progress)
    if replace_all:
        if existing is None:
            _create(client, spec)
        client.swap_catalogs(name, target)
        client.drop_catalog(target)
    return ImportReport(catalog=client.catalog(name), num_rows=reader.num_rows - from_row, created=existing is None)


def _find(client: Client, name: str) -> CatalogInfo | None:
    try:
        return client.catalog(name)
    except NotFound:
        return None


def _create(client: Client, spec: CatalogSpec) -> None:
    client.create_catalog(spec.name, spec.dimension, **spec.options)


def _wanted(
    reader: Reader,
    name: str,
    said: CatalogSpec | None,
    existing: CatalogInfo | None,
    options: CatalogOptions,
    vector_column: str,
) -> CatalogSpec:
    """What the file's catalog holds: as the file says, else as the one that is there, else as the options say."""
    if said is not None:
        return replace(said, name=name, **options)
    if existing is not None:
        return replace(existing.spec, **options)
    dimension = vector_length(reader.schema, vector_column)
    if dimension is None:
        first = next((batch for _, batch in reader.batches(0, 1)), None)
        if first is None:
            raise FileFault("no row to tell the dimension by", column=vector_column)
        vector = first.column(vector_column)[0].as_py()
        if vector is None:
            raise FileFault("null", column=vector_column, row=0)
        dimension = len(vector)
    return CatalogSpec(name=name, dimension=dimension, **options)


def _require_alike(wanted: CatalogSpec, there: CatalogSpec) -> None:
    for said in ("dimension", "metric", "fields"):
        ours, its = getattr(wanted, said), getattr(there, said)
        if ours != its:
            raise FileFault(f"{said} of the file's catalog: {ours}, of catalog {there.name!r}: {its}")


def _prepare(
    client: Client, spec: CatalogSpec, existing: CatalogInfo | None, *, replace_all: bool, resumed: bool
) -> str:
    """The name of the catalog that takes the rows, which is there then."""
    if not replace_all:
        if existing is None:
            _create(client, spec)
        return spec.name
    staging = spec.name + _STAGING
    if resumed:
        client.catalog(staging)
    else:
        client.drop_catalog(staging, allow_missing=True)
        _create(client, replace(spec, name=staging))
    return staging


def _send(
    client: Client,
    name: str,
    reader: Reader,
    rows: RowReader,
    from_row: int,
    on_progress: Callable[[ImportProgress], object] | None,
) -> None:
    next_row, num_retries = from_row, 0
    while True:
        starts: list[int] = []  # of each batch of this stream, its first row
        ends: list[int] = []
        began = next_row
        try:
            for progress in client.upsert_stream(name, _batches(reader, rows, began, starts, ends)):
                next_row = ends[progress.num_batches - 1]
                if on_progress is not None:
                    on_progress(ImportProgress(next_row=next_row, num_rows=reader.num_rows))
            return
        except (Unavailable, Overloaded) as error:
            num_retries = 1 if next_row > began else num_retries + 1
            if num_retries > _MAX_RETRIES or (isinstance(error, Overloaded) and error.retry_after_s is None):
                raise ImportStopped(error.message, next_row=next_row) from error
            pause_s = min(_FIRST_PAUSE_S * 2 ** (num_retries - 1), _MAX_PAUSE_S)
            time.sleep(max(pause_s, error.retry_after_s or 0))
        except InvalidArgument as error:
            raise ImportStopped(_of_row(error, starts, next_row), next_row=next_row) from error
        except (FileFault, HeadraceError) as error:
            message = error.message if isinstance(error, HeadraceError) else str(error)
            raise ImportStopped(message, next_row=next_row) from error


def _batches(
    reader: Reader, rows: RowReader, first_row: int, starts: list[int], ends: list[int]
) -> Iterator[ItemBatch]:
    for start, batch in reader.batches(first_row, _BATCH_ITEMS):
        for offset, items in _sized(rows.items(batch, start)):
            starts.append(start + offset)
            ends.append(start + offset + len(items.ids))
            yield items


def _sized(items: ItemBatch) -> Iterator[tuple[int, ItemBatch]]:
    """The batch in parts of about _BATCH_BYTES, each with the index of its first item."""
    vectors = np.asarray(items.vectors)
    payloads = items.payloads
    sizes = np.full(len(items.ids), vectors.itemsize * vectors.shape[1])
    if payloads is not None:
        sizes += [len(payload.encode()) if isinstance(payload, str) else 0 for payload in payloads]
    start = size = 0
    for index in range(len(items.ids)):
        if index > start and size + sizes[index] > _BATCH_BYTES:
            yield start, _part(items, start, index)
            start, size = index, 0
        size += int(sizes[index])
    yield start, items if start == 0 else _part(items, start, len(items.ids))


def _part(items: ItemBatch, start: int, stop: int) -> ItemBatch:
    return ItemBatch(
        ids=items.ids[start:stop],
        vectors=np.asarray(items.vectors)[start:stop],
        payloads=None if items.payloads is None else items.payloads[start:stop],
    )


def _of_row(error: InvalidArgument, starts: list[int], next_row: int) -> str:
    """The server's refusal, told of the file's column and row."""
    index = int(error.facts.get("message_index", -1))
    for violation in error.violations:
        place = _PLACE.fullmatch(violation.field)
        if place is not None and 0 <= index < len(starts):
            column = ID if place[1] == "ids" else PAYLOAD
            return str(FileFault(violation.description, column=column, row=starts[index] + int(place[2])))
    return error.message
