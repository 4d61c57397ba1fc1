"""Catalogs: what changes and reads items, where new ones may come as inputs that the catalog's model embeds.

vectors ──────────────────────▶ checked ─▶ the catalog's writer ─▶ durable and searched: the future is done
inputs  ─▶ the engine's worker ──┘
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from headrace_server.errors import Reason, ServingError, as_serving_error, invalid_input
from headrace_server.items.batch import ItemBatch, ItemFault
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.store import CatalogStore
from headrace_server.items.writer import UpsertResult
from headrace_server.jobs.input_vectors import EmbeddedInputs, InputVectors
from headrace_server.jobs.queries import ModelRef, Vectors
from headrace_server.models.inputs import Input
from headrace_server.serving.context import RequestContext

__all__ = ["Catalogs", "NewItems", "StreamUpserted", "UpsertStream", "model_of"]

_RETRY_S = 0.02
_INPUTS = "items.inputs.inputs"

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewItems:
    """Items as sent: with vectors f32[n, d], or with inputs; JSON payloads for none or one an id."""

    ids: Sequence[str]
    vectors: Vectors | None = None
    inputs: Sequence[Input | ServingError] | None = None  # errors stand only where items that are wrong are skipped
    payloads: Sequence[str | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamUpserted:
    """One batch of a stream is durable, but for its faults."""

    result: UpsertResult
    faults: tuple[ItemFault, ...]


class Catalogs:
    """The catalogs of a store, and the models that embed for them. Thread-safe."""

    def __init__(self, store: CatalogStore, embedder: InputVectors) -> None:
        self.store = store
        self._embedder = embedder

    def upsert(self, catalog: str, items: NewItems, context: RequestContext) -> Future[UpsertResult]:
        """Adds items or replaces those of the same id, all or none; done once durable and searched.

        raises  ServingError as of CatalogStore.upsert, or in the future; INVALID_INPUT for inputs where the catalog
                names no model, or one of another dimension
        """
        if items.vectors is not None:
            return self.store.upsert(catalog, _batch(items, items.vectors))
        embedded = self.embed(catalog, items, context)
        spec = self.store.index(catalog).spec

        def upsert(result: EmbeddedInputs) -> Future[UpsertResult]:
            _require_dimension(result.vectors, spec)
            return self.store.upsert(catalog, _batch(items, result.vectors))

        return _then(embedded, upsert)

    def upsert_stream(self, catalog: str) -> UpsertStream:
        """Takes batches one after the other for one catalog, and applies them in that order."""
        return UpsertStream(self, catalog)

    def embed(
        self, catalog: str, items: NewItems, context: RequestContext, *, skip_invalid: bool = False
    ) -> Future[EmbeddedInputs]:
        """Vectors of the items' inputs, by the catalog's own model."""
        spec = self.store.index(catalog).spec
        if spec.embedding_model is None:
            raise invalid_input("items.inputs", f"catalog {catalog!r} names no embedding model: send vectors")
        inputs = items.inputs or ()
        if skip_invalid:
            return self._embedder.submit_valid(model_of(spec), inputs, context, _INPUTS)
        sound = [each for each in inputs if not isinstance(each, ServingError)]
        return self._embedder.submit(model_of(spec), sound, context, _INPUTS)


class UpsertStream:
    """One caller's batches for a catalog, applied in the order of `submit` however long each takes to embed.

    What is durable of a stream is always a beginning of it: after a batch that is refused or that could not be written
    no later one is applied, those that wait with the catalog's writer are taken back. Where the catalog's queue is full
    a batch waits here for its turn: who submits bounds how many.
    """

    def __init__(self, catalogs: Catalogs, catalog: str) -> None:
        self.catalog = catalog
        self._catalogs = catalogs
        self._lock = threading.Lock()
        # Held while a batch goes to the writer, and by the writer's thread when one failed: what comes after it is
        # either among those that are taken back or not handed over any more. A future that is done already calls back
        # on the thread that holds it.
        self._writing = threading.RLock()
        self._written: deque[Future[UpsertResult]] = deque()  # with the writer, oldest first
        self._order: deque[_Pending] = deque()  # not handed to the catalog yet
        self._applied: deque[tuple[_Pending, Future[StreamUpserted]]] = deque()  # not told yet
        self._telling = False
        self._handing_over = False
        self._failed = False

    def submit(self, items: NewItems, context: RequestContext, *, skip_invalid: bool) -> Future[StreamUpserted]:
        """Done once the batch is durable and searched. After a batch that is refused, those behind it are too."""
        pending = _Pending(items, context, skip_invalid)
        if items.vectors is not None:
            pending.vectors = items.vectors
        else:
            embedded = self._catalogs.embed(self.catalog, items, context, skip_invalid=skip_invalid)
        with self._lock:
            self._order.append(pending)
        if items.vectors is None:
            embedded.add_done_callback(partial(self._on_embedded, pending))
        self._hand_over()
        return pending.future

    def _on_embedded(self, pending: _Pending, future: Future[EmbeddedInputs]) -> None:
        try:
            result = future.result()
            if len(result.vectors):
                _require_dimension(result.vectors, self._catalogs.store.index(self.catalog).spec)
            pending.faults = {
                index: ItemFault(index=index, id=pending.items.ids[index], error=error)
                for index, error in sorted(result.faults.items())
            }
            pending.vectors = result.vectors
        except BaseException as error:
            pending.error = as_serving_error(error)
        self._hand_over()

    def _hand_over(self) -> None:
        """Gives the catalog what is ready, oldest first; one thread at a time."""
        while True:
            with self._lock:
                if self._handing_over or not self._order or not self._order[0].ready:
                    return
                self._handing_over = True
                pending = self._order[0]
            full = False
            applied: Future[StreamUpserted] = Future()
            try:
                applied = self._apply(pending)
            except BaseException as error:
                told = as_serving_error(error)
                full = told.reason is Reason.QUEUE_FULL and not pending.context.cancelled
                if not full:
                    self._failed = True
                    applied.set_exception(told)
            with self._lock:
                self._handing_over = False
                if not full:
                    self._order.popleft()
                    self._applied.append((pending, applied))
            if not full:
                applied.add_done_callback(lambda done: self._tell())
            else:
                timer = threading.Timer(_RETRY_S, self._hand_over)
                timer.daemon = True
                timer.start()
                return

    def _tell(self) -> None:
        """Resolves the futures of what is done, in the order of `submit`; one thread at a time."""
        while True:
            with self._lock:
                if self._telling or not self._applied or not self._applied[0][1].done():
                    return
                self._telling = True
                pending, applied = self._applied.popleft()
            _settle(pending.future, lambda result: result, applied)
            with self._lock:
                self._telling = False

    def _apply(self, pending: _Pending) -> Future[StreamUpserted]:
        if pending.error is not None:
            raise pending.error
        if self._failed or pending.context.cancelled:
            raise ServingError(Reason.CANCELLED, "the request was cancelled")
        if pending.context.expired:
            raise ServingError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the items were written")
        assert pending.vectors is not None
        store, early = self._catalogs.store, pending.faults
        faults: tuple[ItemFault, ...] = ()
        answer: Future[StreamUpserted] = Future()
        if early and len(early) == len(pending.items.ids):  # nothing is left of it
            nothing = UpsertResult(num_inserted=0, num_replaced=0, revision=store.describe(self.catalog).revision)
            answer.set_result(StreamUpserted(result=nothing, faults=tuple(early.values())))
            return answer
        with self._writing:
            if self._failed:
                raise ServingError(Reason.CANCELLED, "an earlier batch was refused")
            if pending.skip_invalid:
                batch = ItemBatch(ids=pending.items.ids, vectors=_spread(pending), payloads=pending.items.payloads)
                written, found = store.upsert_valid(self.catalog, batch)
                faults = tuple(early.get(fault.index, fault) for fault in found)
            else:
                written = store.upsert(self.catalog, _batch(pending.items, pending.vectors))
            while self._written and self._written[0].done():
                self._written.popleft()
            self._written.append(written)
            written.add_done_callback(self._on_written)
        written.add_done_callback(partial(_settle, answer, lambda r: StreamUpserted(result=r, faults=faults)))
        return answer

    def _on_written(self, done: Future[UpsertResult]) -> None:
        """On the writer's thread, before it takes what waits: where a batch failed, later ones are taken back."""
        if not done.cancelled() and done.exception() is None:
            return
        with self._writing:
            self._failed = True
            later = list(self._written)
        for future in reversed(later):
            future.cancel()  # of no effect on those that are done


class _Pending:
    """A batch on its way to the catalog."""

    __slots__ = ("context", "error", "faults", "future", "items", "skip_invalid", "vectors")

    def __init__(self, items: NewItems, context: RequestContext, skip_invalid: bool) -> None:
        self.items = items
        self.context = context
        self.skip_invalid = skip_invalid
        self.vectors: Vectors | None = None
        self.faults: dict[int, ItemFault] = {}  # of inputs, by index
        self.error: ServingError | None = None
        self.future: Future[StreamUpserted] = Future()
        self.future.set_running_or_notify_cancel()

    @property
    def ready(self) -> bool:
        return self.vectors is not None or self.error is not None


def model_of(spec: CatalogSpec) -> ModelRef:
    """The catalog's embedding model, as jobs ask it."""
    model = spec.embedding_model
    assert model is not None
    return ModelRef(model.name, version=model.version, label=model.label)


def _batch(items: NewItems, vectors: Vectors) -> ItemBatch:
    return ItemBatch(ids=items.ids, vectors=vectors, payloads=items.payloads)


def _spread(pending: _Pending) -> Vectors:
    """A row for each of the caller's items, so that whatever is said of one names its own index; NaN, which is left
    out, for those whose input could not be embedded."""
    assert pending.vectors is not None
    if not pending.faults:
        return pending.vectors
    num_items = len(pending.items.ids)
    rows = np.full((num_items, pending.vectors.shape[1]), np.nan, dtype=np.float32)
    rows[[index for index in range(num_items) if index not in pending.faults]] = pending.vectors
    return rows


def _require_dimension(vectors: Vectors, spec: CatalogSpec) -> None:
    if vectors.shape[1] != spec.dimension:
        raise invalid_input(
            "items.inputs",
            f"the model's vectors have {vectors.shape[1]} elements, the catalog's {spec.dimension}",
        )


def _then(first: Future[A], second: Callable[[A], Future[B]]) -> Future[B]:
    """The future of what `second` makes of what `first` gives, begun on the thread that gives it."""
    answer: Future[B] = Future()
    answer.set_running_or_notify_cancel()

    def begin(done: Future[A]) -> None:
        try:
            second(done.result()).add_done_callback(partial(_settle, answer, lambda result: result))
        except BaseException as error:
            answer.set_exception(as_serving_error(error))

    first.add_done_callback(begin)
    return answer


def _settle(answer: Future[B], change: Callable[[A], B], done: Future[A]) -> None:
    try:
        result = change(done.result())
    except CancelledError:
        answer.set_exception(ServingError(Reason.CANCELLED, "an earlier batch was refused"))
    except BaseException as error:
        answer.set_exception(as_serving_error(error))
    else:
        answer.set_result(result)
