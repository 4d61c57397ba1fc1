"""Group commit: one thread a catalog takes all changes that wait, writes them in one transaction, and answers each.

    submit ──▶ queue ──▶ one transaction, one fsync ──▶ index ──▶ each change's future

A change is answered once it is durable and searches see it. Changes of a group keep their order and each has its own
revision. Where the transaction fails, nothing of the group is applied and each of its changes is refused with the
reason. After a full disk later changes are tried again; after any other failure all are refused, for nobody knows what
is on disk until the file has been opened and checked anew.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from headrace_server.errors import Reason, ServingError
from headrace_server.items.batch import CheckedBatch
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.database import Database
from headrace_server.items.filter import Filter
from headrace_server.items.index import Change, ItemIndex
from headrace_server.items.schema import insert_statement, item_checksum, row_checksum, stored_values

__all__ = ["DeleteResult", "UpsertResult", "Writer"]

logger = logging.getLogger(__name__)

_GROUP_ITEMS = 50_000
_MAX_WAITING_ITEMS = 200_000
_RETRY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class UpsertResult:
    """The items are durable and searched, as of `revision`."""

    num_inserted: int
    num_replaced: int
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteResult:
    """The items are gone, as of `revision`; which is the old one where there were none."""

    num_deleted: int
    revision: int


@dataclass(slots=True, kw_only=True)
class _Upsert:
    batch: CheckedBatch
    vectors: list[bytes]
    stored: list[tuple[str | int | float | None, ...]]
    checksums: list[int]
    future: Future[UpsertResult] = field(default_factory=Future)

    @property
    def num_items(self) -> int:
        return len(self.batch.ids)


@dataclass(slots=True, kw_only=True)
class _Delete:
    ids: Sequence[str] = ()
    condition: Filter | None = None
    future: Future[DeleteResult] = field(default_factory=Future)

    @property
    def num_items(self) -> int:
        return len(self.ids) + 1


class Writer:
    """The thread that writes one catalog.

    on_change  called after changes are shown, on the writer's thread: somebody may want to compact the index
    """

    def __init__(
        self, database: Database, index: ItemIndex, spec: CatalogSpec, *, on_change: Callable[[], object]
    ) -> None:
        self._database = database
        self._index = index
        self.name = spec.name
        self._insert = insert_statement(spec.fields)
        self._on_change = on_change
        self._queue: deque[_Upsert | _Delete] = deque()
        self._num_waiting = 0
        self._wake = threading.Condition()
        self._closing: ServingError | None = None
        self._failed: ServingError | None = None
        self._thread = threading.Thread(target=self._run, name=f"headrace-catalog-{spec.name}", daemon=True)
        self._thread.start()

    def upsert(self, batch: CheckedBatch) -> Future[UpsertResult]:
        """The future of these items. What can be made ready outside the writer's thread is made here.

        raises  ServingError QUEUE_FULL, SHUTTING_DOWN, CATALOG_NOT_FOUND, STORAGE_FAILED; the future's beside them
                STORAGE_FULL, STORAGE_CORRUPT
        """
        size = batch.vectors.shape[1] * 4
        packed = batch.vectors.astype("<f4", copy=False).tobytes()
        vectors = [packed[start : start + size] for start in range(0, len(packed), size)]
        stored = [stored_values(values) for values in batch.values]
        columns = zip(batch.ids, vectors, batch.payloads, stored, strict=True)
        change = _Upsert(
            batch=batch, vectors=vectors, stored=stored, checksums=[item_checksum(*item) for item in columns]
        )
        self._submit(change)
        return change.future

    def delete(self, ids: Sequence[str] = (), condition: Filter | None = None) -> Future[DeleteResult]:
        """The future of removing these, or all that pass. Raises as `upsert`."""
        change = _Delete(ids=tuple(ids), condition=condition)
        self._submit(change)
        return change.future

    def close(self, error: ServingError) -> None:
        """Refuses new changes with `error`, writes those that wait, and ends the thread."""
        with self._wake:
            self._closing = error
            self._wake.notify_all()
        self._thread.join()

    def _submit(self, change: _Upsert | _Delete) -> None:
        with self._wake:
            if (refusal := self._failed or self._closing) is not None:
                raise ServingError(refusal.reason, refusal.message, resource=refusal.resource)
            if self._num_waiting and self._num_waiting + change.num_items > _MAX_WAITING_ITEMS:
                raise ServingError(
                    Reason.QUEUE_FULL,
                    f"{self._num_waiting} items wait to be written to catalog {self.name!r},"
                    f" limit {_MAX_WAITING_ITEMS}",
                    retry_after_s=_RETRY_S,
                )
            self._num_waiting += change.num_items
            self._queue.append(change)
            self._wake.notify()

    def _run(self) -> None:
        while group := self._take():
            group = [change for change in group if change.future.set_running_or_notify_cancel()]
            if not group:
                continue
            try:
                if self._failed is not None:
                    raise self._failed
                answers = self._write(group)
            except Exception as error:
                self._refuse(group, error)
                continue
            for change, answer in zip(group, answers, strict=True):
                change.future.set_result(answer)  # type: ignore[arg-type]
            self._on_change()

    def _take(self) -> list[_Upsert | _Delete]:
        """All that waits, up to a bound; a removal by filter begins a group, for it looks at the index."""
        with self._wake:
            while not self._queue:
                if self._closing is not None:
                    return []
                self._wake.wait()
            group = [self._queue.popleft()]
            num_items = group[0].num_items
            while self._queue and num_items < _GROUP_ITEMS:
                change = self._queue[0]
                if isinstance(change, _Delete) and change.condition is not None:
                    break
                group.append(self._queue.popleft())
                num_items += change.num_items
            self._num_waiting -= num_items
            return group

    def _write(self, group: Sequence[_Upsert | _Delete]) -> list[UpsertResult | DeleteResult]:
        state = self._database.state
        pending: dict[str, int | None] = {}  # what the group itself has changed so far
        changes: list[Change] = []
        answers: list[UpsertResult | DeleteResult] = []
        with self._database.transaction() as connection:
            for change in group:
                if isinstance(change, _Upsert):
                    made, num_inserted = self._put(connection, change, pending, state.next_sequence)
                    num_replaced = change.num_items - num_inserted
                    state = replace(
                        state,
                        revision=state.revision + 1,
                        num_items=state.num_items + num_inserted,
                        next_sequence=state.next_sequence + num_inserted,
                    )
                    answers.append(
                        UpsertResult(num_inserted=num_inserted, num_replaced=num_replaced, revision=state.revision)
                    )
                else:
                    made = self._remove(connection, change, pending)
                    num_deleted = len(made.sequences)
                    state = replace(
                        state, revision=state.revision + bool(num_deleted), num_items=state.num_items - num_deleted
                    )
                    answers.append(DeleteResult(num_deleted=num_deleted, revision=state.revision))
                changes.append(made)
            if state.revision != self._database.state.revision:
                state = replace(state, updated_ns=time.time_ns())
                self._database.put_state(connection, state)
        self._database.state = state
        self._index.apply(changes, state.revision)
        return answers

    def _put(
        self, connection: sqlite3.Connection, change: _Upsert, pending: dict[str, int | None], next_sequence: int
    ) -> tuple[Change, int]:
        batch = change.batch
        sequences: list[int] = []
        num_inserted = 0
        for id_ in batch.ids:
            sequence = pending[id_] if id_ in pending else self._index.sequence_of(id_)
            if sequence is None:
                sequence = next_sequence + num_inserted
                num_inserted += 1
                pending[id_] = sequence
            sequences.append(sequence)
        columns = zip(
            sequences, batch.ids, change.vectors, batch.payloads, change.stored, change.checksums, strict=True
        )
        connection.executemany(
            self._insert,
            [
                (sequence, id_, vector, payload, *stored, row_checksum(sequence, checksum))
                for sequence, id_, vector, payload, stored, checksum in columns
            ],
        )
        return Change(batch=batch, sequences=np.array(sequences, dtype=np.int64)), num_inserted

    def _remove(self, connection: sqlite3.Connection, change: _Delete, pending: dict[str, int | None]) -> Change:
        ids: Sequence[str] = change.ids
        if change.condition is not None:
            ids = self._index.snapshot.ids_where(change.condition)
        gone: dict[str, int] = {}
        for id_ in ids:
            sequence = pending[id_] if id_ in pending else self._index.sequence_of(id_)
            if sequence is not None:
                gone[id_] = sequence
                pending[id_] = None
        connection.executemany("DELETE FROM items WHERE sequence = ?", [(sequence,) for sequence in gone.values()])
        sequences: NDArray[np.int64] = np.array(list(gone.values()), dtype=np.int64)
        return Change(sequences=sequences, removed_ids=tuple(gone))

    def _refuse(self, group: Sequence[_Upsert | _Delete], error: Exception) -> None:
        known = error if isinstance(error, ServingError) else ServingError(Reason.INTERNAL, "the change failed")
        if known.reason is not Reason.STORAGE_FULL and self._failed is None:
            logger.error("catalog %s takes no more changes: %s", self.name, known.detail, exc_info=error)
            failed = ServingError(
                Reason.STORAGE_FAILED,
                f"catalog {self.name!r} takes no changes since a write failed, until the server is started again",
                detail=known.detail or repr(error),
            )
            with self._wake:
                self._failed = failed
            known = known if isinstance(error, ServingError) else failed
        for change in group:
            change.future.set_exception(known)
