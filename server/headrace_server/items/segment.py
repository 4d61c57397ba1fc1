"""Segments: runs of items, packed to be scanned; and parts: segments less what has been removed since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headrace_server.items.catalog import Metric
from headrace_server.items.columns import Columns
from headrace_server.items.scanner import Packed, Scanner, Vectors

__all__ = ["Part", "Rows", "Segment", "merged"]

_BYTES_AN_ID = 200  # an id's text, its place in an array and in the table of ids: about this much


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Items as columns, in the order in which they were first inserted.

    sequences  i64[n], ascending      ids  object[n] of str
    vectors    f32[n, d], as they were sent      columns  declared fields
    """

    sequences: NDArray[np.int64]
    ids: NDArray[np.object_]
    vectors: Vectors
    columns: Columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Rows, ready to be scanned. Immutable."""

    rows: Rows
    packed: Packed

    @staticmethod
    def of(rows: Rows, metric: Metric, scanner: Scanner) -> Segment:
        packed = scanner.pack(rows.vectors, metric)
        if packed.vectors is not None:
            rows = replace(rows, vectors=packed.vectors)
        return Segment(rows=rows, packed=packed)

    @property
    def size_bytes(self) -> int:
        rows = self.rows
        plain = rows.sequences.nbytes + rows.vectors.nbytes + rows.columns.size_bytes
        return plain + self.packed.size_bytes + _BYTES_AN_ID * len(rows.ids)


@dataclass(frozen=True, slots=True)
class Part:
    """A segment and which of its rows are still there: alive bool[n], None for all. Immutable."""

    segment: Segment
    alive: NDArray[np.bool_] | None = None
    num_alive: int = -1  # -1: all

    def __post_init__(self) -> None:
        if self.num_alive < 0:
            object.__setattr__(self, "num_alive", len(self.segment.rows.ids))

    @property
    def num_rows(self) -> int:
        return len(self.segment.rows.ids)

    def find(self, sequences: NDArray[np.int64]) -> NDArray[np.int64]:
        """i64[m]: the row of each sequence, -1 where it is not here or no longer."""
        own = self.segment.rows.sequences
        rows = np.searchsorted(own, sequences)
        rows[rows == len(own)] = 0
        found = own[rows] == sequences
        if self.alive is not None:
            found &= self.alive[rows]
        return np.where(found, rows, -1)

    def without(self, sequences: NDArray[np.int64]) -> Part:
        """The part less these."""
        rows = self.find(sequences)
        rows = rows[rows >= 0]
        if not len(rows):
            return self
        alive = np.ones(self.num_rows, dtype=np.bool_) if self.alive is None else self.alive.copy()
        alive[rows] = False
        return Part(self.segment, alive, int(np.count_nonzero(alive)))


def merged(parts: Sequence[Part]) -> Rows:
    """What is left of the parts, as rows."""
    kept = [np.flatnonzero(part.alive) if part.alive is not None else None for part in parts]
    pairs = [(part.segment.rows, rows) for part, rows in zip(parts, kept, strict=True)]
    sequences = np.concatenate([r.sequences if k is None else r.sequences[k] for r, k in pairs])
    ids = np.concatenate([r.ids if k is None else r.ids[k] for r, k in pairs])
    vectors = np.concatenate([r.vectors if k is None else r.vectors[k] for r, k in pairs])
    columns = Columns.concatenate([r.columns if k is None else r.columns.take(k) for r, k in pairs])
    if len(sequences) > 1 and not (np.diff(sequences) > 0).all():  # replaced items stand behind their neighbours
        order = np.argsort(sequences)
        sequences, ids, vectors, columns = sequences[order], ids[order], vectors[order], columns.take(order)
    return Rows(sequences=sequences, ids=ids, vectors=vectors, columns=columns)
