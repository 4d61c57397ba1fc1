"""ItemIndex: takes a catalog's durable changes and offers, at any moment, a snapshot to search.

    change ──▶ parts, largest and oldest first ──▶ Snapshot
               new items are a small segment of their own; removed and replaced rows are struck from a copy of a mask

The writer's thread applies a change right after its commit and before it is acknowledged, so that whoever was
acknowledged finds it in the next search. It merges small neighbours at once; larger ones wait for `compact`, which runs
beside searches and changes and holds the lock only to put its result in place.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from headrace_server.items.batch import CheckedBatch
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.columns import Columns, Vocabulary
from headrace_server.items.scanner import Scanner
from headrace_server.items.segment import Part, Rows, Segment, merged
from headrace_server.items.snapshot import Snapshot

__all__ = ["Change", "ItemIndex"]

_MERGE_ROWS = 16_384  # up to here neighbours are merged by the writer, a few milliseconds
_MAX_DEAD = 0.25  # of a segment's rows
_MIN_GRAVES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One durable change: items under their sequences, or sequences and ids that are gone."""

    batch: CheckedBatch | None = None
    sequences: NDArray[np.int64]  # of the batch's items in its order, else of those that are gone
    removed_ids: Sequence[str] = ()


class ItemIndex:
    """The searchable side of one catalog. `apply` and `load` belong to one thread; `snapshot` to all."""

    def __init__(self, spec: CatalogSpec, scanner: Scanner) -> None:
        self._spec = spec
        self._scanner = scanner
        self._lock = threading.Lock()
        self._vocabulary = Vocabulary()
        self._known: dict[str, int | tuple[int, ...]] = {}
        self._dead: set[str] = set()  # ids in `_known` that are gone
        self._num_compacting = 0  # of the snapshot's parts: these keep their place
        self.snapshot = self._snapshot((), 0)

    @property
    def vocabulary(self) -> Vocabulary:
        """The numbers of the texts of this catalog's fields; for the thread that loads it."""
        return self._vocabulary

    def load(
        self, rows: Rows, revision: int, *, gone: NDArray[np.int64] | None = None, later: Rows | None = None
    ) -> None:
        """Starts from these items, less those that are `gone`, and with `later` ones.

        raises  ValueError where an id stands twice
        """
        given = [each for each in (rows, later) if each is not None and len(each.ids)]
        parts = [Part(Segment.of(each, self._spec.metric, self._scanner)) for each in given]
        if gone is not None and len(gone) and len(rows.ids):
            parts[0] = parts[0].without(gone)
        known: dict[str, int | tuple[int, ...]] = {}
        for part in parts:
            held = part.segment.rows
            ids, sequences = held.ids, held.sequences
            if part.alive is not None:
                ids, sequences = ids[part.alive], sequences[part.alive]
            known.update(zip(ids.tolist(), sequences.tolist(), strict=True))
        if len(known) != sum(part.num_alive for part in parts):
            raise ValueError("an id stands twice")
        self._known = known
        self.snapshot = self._snapshot(tuple(part for part in parts if part.num_alive), revision)

    def rename(self, name: str) -> None:
        """The name that the catalog has from now on; snapshots that were taken keep the one they had."""
        with self._lock:
            self._spec = replace(self._spec, name=name)
            self.snapshot = replace(self.snapshot, spec=self._spec)

    def sequences_of(self, ids: Sequence[str]) -> list[int | None]:
        """Of each id the sequence of its item, None where there is none; for the writer."""
        found = list(map(self._known.get, ids))
        if tuple in set(map(type, found)):
            found = [held[-1] if isinstance(held, tuple) else held for held in found]
        dead = self._dead
        if dead and not dead.isdisjoint(ids):
            found = [None if id_ in dead else held for id_, held in zip(ids, found, strict=True)]
        return found  # type: ignore[return-value]

    def apply(self, changes: Sequence[Change], revision: int) -> None:
        """Shows the changes, all at once, as of `revision`."""
        made = [self._take(change) for change in changes]
        with self._lock:
            parts = list(self.snapshot.parts)
            for change, segment in zip(changes, made, strict=True):
                parts = [part.without(change.sequences) for part in parts]
                if segment is not None:
                    parts.append(Part(segment))
            fixed = self._num_compacting
            parts[fixed:] = self._merge_small([part for part in parts[fixed:] if part.num_alive])
            self.snapshot = self._snapshot(tuple(parts), revision)

    @property
    def needs_compaction(self) -> bool:
        """Whether `compact` would do something."""
        return _first_to_merge(self.snapshot.parts) is not None

    def compact(self) -> bool:
        """Merges segments that have become many or full of gaps; False where there was nothing to do. One at a time."""
        with self._lock:
            before = self.snapshot.parts
            first = _first_to_merge(before)
            if first is None:
                return False
            self._num_compacting = len(before)
        try:
            rows = merged(before[first:])
            segment = Segment.of(rows, self._spec.metric, self._scanner) if len(rows.ids) else None
            with self._lock:
                now = self.snapshot.parts
                result = []
                if segment is not None:
                    gone = [
                        _struck(old, new) for old, new in zip(before[first:], now[first : len(before)], strict=True)
                    ]
                    result.append(Part(segment).without(np.concatenate(gone)))
                parts = (*now[:first], *(part for part in result if part.num_alive), *now[len(before) :])
                self._forget()
                self._num_compacting = 0
                self.snapshot = self._snapshot(parts, self.snapshot.revision)
        finally:
            self._num_compacting = 0
        return True

    def _take(self, change: Change) -> Segment | None:
        if change.batch is None:
            self._dead.update(change.removed_ids)
            return None
        batch, known = change.batch, self._known
        # Before the snapshot that shows them: a reader finds each id by a sequence that its own snapshot has, or none.
        numbers = change.sequences.tolist()
        if known.keys().isdisjoint(batch.ids):
            known.update(zip(batch.ids, numbers, strict=True))
        else:
            for id_, sequence in zip(batch.ids, numbers, strict=True):
                held = known.setdefault(id_, sequence)
                if held != sequence and (not isinstance(held, tuple) or held[-1] != sequence):
                    known[id_] = (*held, sequence) if isinstance(held, tuple) else (held, sequence)
        if self._dead:
            self._dead.difference_update(batch.ids)
        columns = Columns.of(self._spec.fields, batch.fields, len(batch.ids), self._vocabulary)
        ids = np.array(batch.ids, dtype=np.object_)
        rows = Rows(sequences=change.sequences, ids=ids, vectors=batch.vectors, columns=columns)
        if len(ids) > 1 and not (np.diff(change.sequences) > 0).all():
            order = np.argsort(change.sequences)
            rows = Rows(
                sequences=change.sequences[order],
                ids=ids[order],
                vectors=batch.vectors[order],
                columns=columns.take(order),
            )
        return Segment.of(rows, self._spec.metric, self._scanner)

    def _merge_small(self, parts: list[Part]) -> list[Part]:
        """Merges from the end while a part is no more than twice what follows it."""
        start = len(parts)
        total = 0
        while (
            start > 0
            and parts[start - 1].num_alive <= max(2 * total, 1)
            and (total + parts[start - 1].num_alive <= _MERGE_ROWS or total == 0)
        ):
            start -= 1
            total += parts[start].num_alive
        if len(parts) - start < 2:
            return parts
        return [*parts[:start], Part(Segment.of(merged(parts[start:]), self._spec.metric, self._scanner))]

    def _forget(self) -> None:
        """Drops ids that are gone, once they are many. Snapshots that were taken keep the table they had."""
        if len(self._dead) > max(_MIN_GRAVES, len(self._known) // 10):
            known = dict(self._known)
            for id_ in self._dead:
                known.pop(id_, None)
            self._known = known
            self._dead = set()

    def _snapshot(self, parts: tuple[Part, ...], revision: int) -> Snapshot:
        return Snapshot(
            spec=self._spec,
            revision=revision,
            num_items=sum(part.num_alive for part in parts),
            parts=parts,
            known=self._known,
            vocabulary=self._vocabulary,
        )


def _first_to_merge(parts: Sequence[Part]) -> int | None:
    """The first part that has shrunk, or that is at most three times what follows it and worth the work."""
    behind = sum(part.num_alive for part in parts)
    for index, part in enumerate(parts):
        behind -= part.num_alive
        if part.num_rows - part.num_alive > max(_MERGE_ROWS, _MAX_DEAD * part.num_rows):
            return index
        if behind >= _MERGE_ROWS and part.num_alive <= 3 * behind:
            return index
    return None


def _struck(old: Part, new: Part) -> NDArray[np.int64]:
    """Sequences that were in `old` and are no longer in `new`, of the same segment."""
    if new.alive is None:
        return np.empty(0, dtype=np.int64)
    gone = ~new.alive if old.alive is None else old.alive & ~new.alive
    return old.segment.rows.sequences[gone]
