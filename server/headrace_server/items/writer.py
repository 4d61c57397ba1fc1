"""Group commit: one thread a catalog takes all changes that wait, writes them in one transaction, and answers each.

    submit ──▶ queue ──▶ one transaction, one fsync ──▶ index ──▶ each change's future

A change is answered once it is durable and searches see it. Changes of a group keep their order and each has its own
revision. Where the transaction fails, nothing of the group is applied and each of its changes is refused with the
reason. After a full disk later changes are tried again; after any other failure all are refused, for nobody knows what
is on disk until the file has been opened and checked anew.
"""

from __future__ import annotations

import json
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace_server.errors import Reason, ServingError
from headrace_server.items.batch import CheckedBatch
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.database import Database, State
from headrace_server.items.filter import Filter
from headrace_server.items.index import Change, ItemIndex
from headrace_server.items.schema import (
    ROWS_A_STATEMENT,
    insert_statement,
    item_checksums,
    row_checksums,
    stored_column,
)

__all__ = ["DeleteResult", "UpsertResult", "Writer"]

logger = logging.getLogger(__name__)

_GROUP_ITEMS = 50_000
_MAX_WAITING_ITEMS = 200_000
_RETRY_S = 0.1
_DELETED_AT_ONCE = 1000


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
    parameters: list[Any]  # of all rows, one after the other; sequences and checksums open
    checksums: NDArray[np.int64]
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


@dataclass(slots=True, kw_only=True)
class _ImageNote:
    """From now on what is touched is written down; or, with a token: that image holds the catalog as of `revision`."""

    token: int = 0
    revision: int = 0
    num_changed: int = 0
    num_items: int = 0  # to be written: none
    future: Future[None] = field(default_factory=Future)


_Waiting = _Upsert | _Delete | _ImageNote


class Writer:
    """The thread that writes one catalog.

    num_changed  items that changed since the catalog's image was made
    on_change    called after changes are shown, on the writer's thread: somebody may want to compact the index
    """

    def __init__(
        self,
        database: Database,
        index: ItemIndex,
        spec: CatalogSpec,
        *,
        num_changed: int = 0,
        on_change: Callable[[], object],
    ) -> None:
        self._database = database
        self._index = index
        self.name = spec.name
        self._fields = spec.fields
        self._insert = insert_statement(spec.fields)
        self._insert_many = insert_statement(spec.fields, ROWS_A_STATEMENT)
        self._notes_touched = database.state.image_token != 0
        self.num_changed = num_changed  # items since the image was made; one that changes again counts again
        self._on_change = on_change
        self._queue: deque[_Waiting] = deque()
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
        stored = [stored_column(spec, values) for spec, values in zip(self._fields, batch.fields, strict=True)]
        width = len(stored) + 5
        parameters: list[Any] = [None] * (width * len(batch.ids))
        for place, column in enumerate((batch.ids, vectors, batch.payloads, *stored), 1):
            parameters[place::width] = column
        change = _Upsert(
            batch=batch,
            parameters=parameters,
            checksums=item_checksums(batch.ids, vectors, batch.payloads, stored),
        )
        self._submit(change)
        return change.future

    def delete(self, ids: Sequence[str] = (), condition: Filter | None = None) -> Future[DeleteResult]:
        """The future of removing these, or all that pass. Raises as `upsert`."""
        change = _Delete(ids=tuple(ids), condition=condition)
        self._submit(change)
        return change.future

    def note_touched(self) -> Future[None]:
        """Once done, what is replaced or removed later is written down: an image may be begun. Raises as `upsert`."""
        note = _ImageNote()
        self._submit(note)
        return note.future

    def note_image(self, token: int, revision: int, num_changed: int) -> Future[None]:
        """Once done, the image of this token stands for the catalog as of `revision`, `num_changed` items ago."""
        note = _ImageNote(token=token, revision=revision, num_changed=num_changed)
        self._submit(note)
        return note.future

    @property
    def has_failed(self) -> bool:
        """Whether nobody knows what is on disk."""
        return self._failed is not None

    def close(self, error: ServingError) -> None:
        """Refuses new changes with `error`, writes those that wait, and ends the thread."""
        with self._wake:
            self._closing = error
            self._wake.notify_all()
        self._thread.join()

    def _submit(self, change: _Waiting) -> None:
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

    def _take(self) -> list[_Waiting]:
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

    def _write(self, group: Sequence[_Waiting]) -> list[UpsertResult | DeleteResult | None]:
        state = self._database.state
        pending: dict[str, int | None] = {}  # what the group itself has changed so far
        changes: list[Change] = []
        answers: list[UpsertResult | DeleteResult | None] = []
        with self._database.transaction() as connection:
            for change in group:
                if isinstance(change, _ImageNote):
                    state = self._note(connection, change, state)
                    answers.append(None)
                    continue
                if isinstance(change, _Upsert):
                    made, num_inserted = self._put(connection, change, pending, state.next_sequence)
                    num_replaced = change.num_items - num_inserted
                    touched = made.sequences[made.sequences < state.next_sequence]
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
                    touched = made.sequences
                    num_deleted = len(touched)
                    state = replace(
                        state, revision=state.revision + bool(num_deleted), num_items=state.num_items - num_deleted
                    )
                    answers.append(DeleteResult(num_deleted=num_deleted, revision=state.revision))
                if self._notes_touched and len(touched):
                    self._database.put_touched(connection, state.revision, touched)
                changes.append(made)
            if state != self._database.state:
                if changes:
                    state = replace(state, updated_ns=time.time_ns())
                self._database.put_state(connection, state)
        self._database.state = state
        self.num_changed += sum(len(change.sequences) for change in changes)
        if changes:
            self._index.apply(changes, state.revision)
        return answers

    def _note(self, connection: sqlite3.Connection, note: _ImageNote, state: State) -> State:
        self._notes_touched = True
        if not note.token:
            return state
        self.num_changed -= note.num_changed
        return self._database.put_image(connection, state, note.token, note.revision)

    def _put(
        self, connection: sqlite3.Connection, change: _Upsert, pending: dict[str, int | None], next_sequence: int
    ) -> tuple[Change, int]:
        batch, num_items = change.batch, change.num_items
        held = self._index.sequences_of(batch.ids)
        if pending and not pending.keys().isdisjoint(batch.ids):
            held = [pending.get(id_, sequence) for id_, sequence in zip(batch.ids, held, strict=True)]
        sequences = np.array([-1 if sequence is None else sequence for sequence in held], dtype=np.int64)
        new = sequences < 0
        num_inserted = int(np.count_nonzero(new))
        sequences[new] = np.arange(next_sequence, next_sequence + num_inserted)
        numbers = sequences.tolist()
        pending.update(zip(batch.ids, numbers, strict=True))
        parameters = change.parameters
        width = len(parameters) // num_items
        parameters[::width] = numbers
        parameters[width - 1 :: width] = row_checksums(sequences, change.checksums).tolist()
        step = width * ROWS_A_STATEMENT
        whole = len(parameters) // step * step
        for start in range(0, whole, step):
            connection.execute(self._insert_many, parameters[start : start + step])
        connection.executemany(self._insert, zip(*[iter(parameters[whole:])] * width, strict=True))
        return Change(batch=batch, sequences=sequences), num_inserted

    def _remove(self, connection: sqlite3.Connection, change: _Delete, pending: dict[str, int | None]) -> Change:
        ids: Sequence[str] = change.ids
        if change.condition is not None:
            ids = self._index.snapshot.ids_where(change.condition)
        gone: dict[str, int] = {}
        for id_, held in zip(ids, self._index.sequences_of(ids), strict=True):
            sequence = pending.get(id_, held)
            if sequence is not None:
                gone[id_] = sequence
                pending[id_] = None
        sequences: NDArray[np.int64] = np.array(list(gone.values()), dtype=np.int64)
        for start in range(0, len(sequences), _DELETED_AT_ONCE):
            connection.execute(
                "DELETE FROM items WHERE sequence IN (SELECT value FROM json_each(?))",
                (json.dumps(sequences[start : start + _DELETED_AT_ONCE].tolist()),),
            )
        return Change(sequences=sequences, removed_ids=tuple(gone))

    def _refuse(self, group: Sequence[_Waiting], error: Exception) -> None:
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
