"""A catalog into a file, streamed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from headrace_client.arrow.faults import FileFault
from headrace_client.arrow.files import open_writer
from headrace_client.arrow.schema import ID, PAYLOAD, VECTOR, file_schema
from headrace_client.arrow.writing import record_batch
from headrace_client.client import Client
from headrace_client.filters import Filter
from headrace_client.items import ScanPage

__all__ = ["ExportReport", "export_catalog"]

_GROUP_BYTES = 8 * 1024 * 1024  # of vectors and payloads that are held, and written as one group of rows
_GROUP_ITEMS = 65_536


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What a file holds: items of revisions from `revision` to `last_revision`, which are one where nobody wrote."""

    num_items: int
    revision: int
    last_revision: int


def export_catalog(
    client: Client,
    name: str,
    path: str | os.PathLike[str],
    *,
    filter: Filter | None = None,
    one_revision: bool = False,
    on_progress: Callable[[int], object] | None = None,
) -> ExportReport:
    """Writes a catalog, or those of its items that pass, to a Parquet or Arrow file, in order of id.

    Some 8 MiB of them are held at a time. The file appears whole at the end, or not at all: a lost connection is an
    error, never half a file. Of a catalog that is written meanwhile, each page of the scan is as of a revision of its
    own: an item that was there all the while is in the file once, as it was or as it became.

    one_revision  a change amid the export is an error instead: a file that is made is of one revision
    on_progress   called with the number of items that have come

    raises  HeadraceError; FileFault for an ending that is not known, a catalog that was swapped meanwhile, or one that
            was written where one revision was asked for; OSError
    """
    before = client.catalog(name)
    pages = client.scan_pages(name, filter=filter, vector=True)
    first = next(pages, None)
    now = client.catalog(name)
    if (now.spec, now.create_time) != (before.spec, before.create_time):
        raise FileFault(f"catalog {name!r} was swapped or made anew while it was exported: export it again")
    revision = last_revision = before.revision if first is None else first.revision
    schema = file_schema(before.spec, revision)
    num_items = 0
    with open_writer(path, schema, plain=(ID, VECTOR, PAYLOAD)) as writer:
        for group in _groups(chain([] if first is None else [first], pages)):
            writer.write_batch(
                record_batch(
                    schema,
                    before.spec.fields,
                    [id_ for page in group for id_ in page.ids],
                    np.concatenate([page.vectors for page in group if page.vectors is not None]),
                    [payload for page in group for payload in page.payloads or ()],
                )
            )
            last_revision = group[-1].revision
            if one_revision and last_revision != revision:
                raise FileFault(f"catalog {name!r} was written while it was exported, at {num_items} items")
            num_items += sum(len(page.ids) for page in group)
            if on_progress is not None:
                on_progress(num_items)
    return ExportReport(num_items=num_items, revision=revision, last_revision=last_revision)


def _groups(pages: Iterator[ScanPage]) -> Iterator[list[ScanPage]]:
    group: list[ScanPage] = []
    num_items = num_bytes = 0
    for page in pages:
        group.append(page)
        num_items += len(page.ids)
        num_bytes += 0 if page.vectors is None else page.vectors.nbytes
        num_bytes += sum(len(payload) for payload in page.payloads or () if payload is not None)
        if num_items >= _GROUP_ITEMS or num_bytes >= _GROUP_BYTES:
            yield group
            group, num_items, num_bytes = [], 0, 0
    if group:
        yield group
