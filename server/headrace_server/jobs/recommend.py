"""Recommend: the best items of a catalog for vectors, items, a history, a user, or inputs that a model embeds.

calling thread   checks ─▶ the catalog as it stands ─▶ plan (filter, inclusion) ─▶ query vectors, or inputs' model
scan's worker    └─▶ the scan, shared with other callers
finisher         └─▶ unlike items chosen, payloads read; where neither is asked for, no such step
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter_ns

import numpy as np

from headrace_server.errors import Reason, Resource, ServingError, as_serving_error, invalid_input
from headrace_server.items.batch import Item, check_ids
from headrace_server.items.catalog import require_name
from headrace_server.items.diversity import maximal_marginal_relevance
from headrace_server.items.open_catalog import OpenCatalog
from headrace_server.items.snapshot import Hits, Snapshot
from headrace_server.items.store import CatalogStore
from headrace_server.jobs.catalogs import model_of
from headrace_server.jobs.checks import require_count, require_model
from headrace_server.jobs.input_vectors import EmbeddedInputs, InputVectors
from headrace_server.jobs.queries import ModelRef, Vectors
from headrace_server.jobs.recommend_query import (
    ByHistory,
    ByInputs,
    ByItems,
    ByUser,
    ByVectors,
    Diversity,
    RecommendationList,
    RecommendedItem,
    RecommendQuery,
    RecommendResult,
)
from headrace_server.jobs.scans import MAX_WAITING_QUERIES, Plan, Scans
from headrace_server.jobs.submission import refused
from headrace_server.serving.batch import BatchObserver
from headrace_server.serving.context import RequestContext

__all__ = [
    "MAX_DIVERSITY_OPERATIONS",
    "MAX_EVENTS",
    "MAX_FILTER_IDS",
    "MAX_K",
    "MAX_QUERIES",
    "MAX_RESULT_ITEMS",
    "Recommend",
]

MAX_K = 10_000
MAX_QUERIES = 256
MAX_EVENTS = 10_000
MAX_FILTER_IDS = 100_000
MAX_RESULT_ITEMS = 250_000  # queries × k
MAX_DIVERSITY_OPERATIONS = 4_000_000_000  # queries × k × candidates × dimension
_CANDIDATES_A_RESULT = 10
_MAX_OWN_EXCLUSIONS = 200  # more are taken out once for all queries, instead of query by query
_INPUTS = "query.inputs.inputs"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A request on its way: what it searches, and what is left to do with the hits."""

    query: RecommendQuery
    catalog: OpenCatalog
    snapshot: Snapshot
    plan: Plan
    k: int  # hits to search for each query
    exclude: tuple[str, ...]  # of every query


class Recommend:
    """Finds items. Thread-safe. `observer` is told of scans; more than `max_waiting` queries are refused at once."""

    def __init__(
        self,
        store: CatalogStore,
        embedder: InputVectors,
        *,
        max_waiting: int = MAX_WAITING_QUERIES,
        observer: BatchObserver | None = None,
    ) -> None:
        self._store = store
        self._embedder = embedder
        self._scans = Scans(max_waiting=max_waiting, observer=observer)
        self._finishers = ThreadPoolExecutor(2, thread_name_prefix="headrace-recommend-finish")

    def submit(self, query: RecommendQuery, context: RequestContext) -> Future[RecommendResult]:
        """Future of the items. Prepares here, blocking; answers on a scan's worker, a finisher, or here where the scan
        is small. The future's exceptions are ServingError."""
        started = perf_counter_ns()
        try:
            _check(query)
            catalog = self._store.catalog(query.catalog)
            asked = self._prepared(query, catalog, catalog.index.snapshot)
            if isinstance(query.query, ByInputs):
                return self._through_model(query.query, asked, context)
            vectors, own = self._vectors(query.query, asked.snapshot)
            context.timings.prepared(started, perf_counter_ns())
            return self._searched(asked, vectors, own, None, context)
        except ServingError as error:
            return refused(error)
        except Exception as error:
            return refused(as_serving_error(error))

    @property
    def num_waiting(self) -> int:
        """Queries that wait for a scan now."""
        return self._scans.num_waiting

    def drain(self, timeout_s: float) -> bool:
        """Refuses new scans and waits for those that wait. True: all were answered."""
        return self._scans.drain(timeout_s)

    def close(self) -> None:
        """Ends the threads; what is running is answered."""
        self._scans.close()
        self._finishers.shutdown()

    def _prepared(self, query: RecommendQuery, catalog: OpenCatalog, snapshot: Snapshot) -> _Asked:
        k = query.k if query.diversity is None else _num_candidates(query.diversity, query.k)
        many = len(query.exclude_ids) > _MAX_OWN_EXCLUSIONS
        plan = self._scans.plan(
            snapshot,
            k,
            condition=query.filter,
            include_ids=query.include_ids,
            exclude_ids=query.exclude_ids if many else (),
            min_score=query.min_score,
        )
        return _Asked(
            query=query,
            catalog=catalog,
            snapshot=snapshot,
            plan=plan,
            k=k,
            exclude=() if many else tuple(query.exclude_ids),
        )

    def _through_model(self, query: ByInputs, asked: _Asked, context: RequestContext) -> Future[RecommendResult]:
        spec = asked.snapshot.spec
        if query.model is None and spec.embedding_model is None:
            raise invalid_input("query.inputs.model", f"required: catalog {asked.query.catalog!r} names none")
        model = query.model or model_of(spec)
        require_model(model.name, "query.inputs.model.name")
        answer: Future[RecommendResult] = Future()
        answer.set_running_or_notify_cancel()

        def search(done: Future[EmbeddedInputs]) -> None:
            try:
                result = done.result()
                if result.vectors.shape[1] != spec.dimension:
                    raise invalid_input(
                        "query.inputs.model",
                        f"its vectors have {result.vectors.shape[1]} elements, the catalog's {spec.dimension}",
                    )
                self._searched(asked, result.vectors, None, result.model, context, answer)
            except BaseException as error:
                answer.set_exception(as_serving_error(error))

        self._embedder.submit(model, query.inputs, context, _INPUTS).add_done_callback(search)
        return answer

    def _vectors(
        self, query: ByVectors | ByItems | ByHistory | ByUser, snapshot: Snapshot
    ) -> tuple[Vectors, list[tuple[str, ...]] | None]:
        """The query vectors, and of each the catalog's items that it names."""
        match query:
            case ByVectors():
                if query.vectors.shape[1] != snapshot.spec.dimension:
                    raise invalid_input(
                        "query.vectors.dimension",
                        f"{query.vectors.shape[1]}, the catalog's is {snapshot.spec.dimension}",
                    )
                return query.vectors, None
            case ByItems():
                vectors = _require_items(snapshot, query.ids)
                if query.each:
                    return vectors, [(id_,) for id_ in query.ids]
                return _mean(vectors, None), [tuple(query.ids)]
            case ByHistory():
                ids = [event.id for event in query.events]
                found, vectors = snapshot.vectors(ids)
                if not found.any():
                    raise ServingError(
                        Reason.ITEM_NOT_FOUND,
                        f"none of the history's {len(ids)} items is in the catalog",
                        resource=Resource("item", ids[0]),
                    )
                weights = np.array([event.weight for event in query.events], dtype=np.float64)[found]
                return _mean(vectors, weights), [tuple(ids)]
            case ByUser():
                users = self._store.index(query.catalog)
                vectors = _require_items(users, [query.id])
                if vectors.shape[1] != snapshot.spec.dimension:
                    raise invalid_input(
                        "query.user.catalog",
                        f"{query.catalog!r} has dimension {vectors.shape[1]}, the other {snapshot.spec.dimension}",
                    )
                return vectors, None

    def _searched(
        self,
        asked: _Asked,
        vectors: Vectors,
        own: list[tuple[str, ...]] | None,
        model: ModelRef | None,
        context: RequestContext,
        answer: Future[RecommendResult] | None = None,
    ) -> Future[RecommendResult]:
        query = asked.query
        if len(vectors) * query.k > MAX_RESULT_ITEMS:
            raise invalid_input("k", f"{query.k} for {len(vectors)} queries, at most {MAX_RESULT_ITEMS} items in all")
        if query.diversity is not None:
            operations = len(vectors) * query.k * min(asked.k, asked.snapshot.num_items) * vectors.shape[1]
            if operations > MAX_DIVERSITY_OPERATIONS:
                raise invalid_input(
                    "diversity.num_candidates",
                    f"queries × k × candidates × dimension is {operations}, limit {MAX_DIVERSITY_OPERATIONS}",
                )
        if own is None or query.include_query_items:
            own = [()] * len(vectors)
        exclude = [asked.exclude + ids for ids in own]
        future: Future[RecommendResult] = Future() if answer is None else answer
        if answer is None:
            future.set_running_or_notify_cancel()
        found = self._scans.search(asked.plan, vectors, asked.k, exclude if any(exclude) else None, context)
        found.add_done_callback(partial(self._on_hits, asked, model, context, future))
        return future

    def _on_hits(
        self,
        asked: _Asked,
        model: ModelRef | None,
        context: RequestContext,
        answer: Future[RecommendResult],
        done: Future[list[Hits]],
    ) -> None:
        finish = partial(_finish, asked, model, context, answer)
        try:
            hits = done.result()
            fields = asked.query.fields
            if asked.query.diversity is None and not fields.payload and not fields.vector:
                finish(hits)
            else:  # what takes longer, or reads the disk, leaves the scan's worker to other scans
                self._finishers.submit(finish, hits)
        except RuntimeError:
            answer.set_exception(ServingError(Reason.SHUTTING_DOWN, "the server is shutting down"))
        except BaseException as error:
            answer.set_exception(as_serving_error(error))


def _finish(
    asked: _Asked,
    model: ModelRef | None,
    context: RequestContext,
    answer: Future[RecommendResult],
    hits: list[Hits],
) -> None:
    started = perf_counter_ns()
    try:
        if context.cancelled:
            raise ServingError(Reason.CANCELLED, "the request was cancelled")
        result = RecommendResult(tuple(_listed(asked, each) for each in hits), asked.snapshot.revision, model)
        context.timings.finished(started, perf_counter_ns())
    except BaseException as error:
        answer.set_exception(as_serving_error(error))
    else:
        answer.set_result(result)


def _listed(asked: _Asked, hits: Hits) -> RecommendationList:
    query = asked.query
    diversity = query.diversity
    chosen: Sequence[int] = range(len(hits.ids))
    if diversity is not None and hits.ids:
        chosen = maximal_marginal_relevance(
            hits.scores,
            asked.snapshot.vectors_at(hits.places),
            query.k,
            relevance_weight=diversity.relevance_weight,
            metric=asked.snapshot.spec.metric,
        ).tolist()
    ids = [hits.ids[index] for index in chosen]
    scores = [float(hits.scores[index]) for index in chosen]
    if query.fields.payload or query.fields.vector:
        items = asked.catalog.items_at(ids, hits.sequences[list(chosen)], query.fields)
    else:
        items = [Item(id=id_) for id_ in ids]
    # An item that was removed since the search is not answered, however good it was.
    kept = tuple(RecommendedItem(item, score) for item, score in zip(items, scores, strict=True) if item is not None)
    return RecommendationList(kept, exact=diversity is None and len(kept) == len(ids))


def _check(query: RecommendQuery) -> None:
    """Raises INVALID_INPUT for what is wrong whatever the catalog holds."""
    require_name("catalog", query.catalog)
    if not 1 <= query.k <= MAX_K:
        raise invalid_input("k", f"{query.k}, from 1 to {MAX_K}", limit=MAX_K)
    if query.min_score is not None and not math.isfinite(query.min_score):
        raise invalid_input("min_score", f"{query.min_score}, must be finite")
    for name in ("exclude_ids", "include_ids"):
        ids = getattr(query, name) or ()
        if len(ids) > MAX_FILTER_IDS:
            raise invalid_input(name, f"{len(ids)} ids, at most {MAX_FILTER_IDS}", limit=MAX_FILTER_IDS)
    if query.diversity is not None:
        _check_diversity(query.diversity, query.k)
    match query.query:
        case ByVectors(vectors):
            require_count("query.vectors.num_vectors", len(vectors), MAX_QUERIES, what="vectors")
        case ByItems(ids):
            require_count("query.items.ids", len(ids), MAX_QUERIES, what="ids")
            check_ids(ids, "query.items.ids", MAX_QUERIES)
        case ByHistory(events):
            require_count("query.history.events", len(events), MAX_EVENTS, what="events")
            for index, event in enumerate(events):
                if not math.isfinite(event.weight):
                    raise invalid_input(f"query.history.events[{index}].weight", f"{event.weight}, must be finite")
        case ByUser(catalog, id_):
            require_name("query.user.catalog", catalog)
            check_ids([id_], "query.user.id", 1)
        case ByInputs(inputs):
            require_count(_INPUTS, len(inputs), MAX_QUERIES)


def _check_diversity(diversity: Diversity, k: int) -> None:
    weight = diversity.relevance_weight
    if not 0 <= weight <= 1:
        raise invalid_input("diversity.relevance_weight", f"{weight}, from 0 to 1")
    if diversity.num_candidates and not k <= diversity.num_candidates <= MAX_K:
        raise invalid_input("diversity.num_candidates", f"{diversity.num_candidates}, from k ({k}) to {MAX_K}")


def _num_candidates(diversity: Diversity, k: int) -> int:
    return diversity.num_candidates or min(_CANDIDATES_A_RESULT * k, MAX_K)


def _require_items(snapshot: Snapshot, ids: Sequence[str]) -> Vectors:
    found, vectors = snapshot.vectors(ids)
    if not found.all():
        missing = ids[int(np.argmin(found))]
        raise ServingError(
            Reason.ITEM_NOT_FOUND,
            f"no item {missing!r} in catalog {snapshot.spec.name!r}",
            resource=Resource("item", missing),
        )
    return vectors


def _mean(vectors: Vectors, weights: np.ndarray[tuple[int], np.dtype[np.float64]] | None) -> Vectors:
    """f32[1, d]: the mean, weighted by the shares of the weights' absolute values; 0 where all are 0."""
    rows = vectors.astype(np.float64)
    mean: Vectors = np.zeros((1, rows.shape[1]), dtype=np.float32)
    if weights is None:
        mean[0] = rows.mean(axis=0)
        return mean
    largest = np.abs(weights).max()
    if not largest:
        return mean
    shares = weights / largest
    mean[0] = (shares @ rows) / np.abs(shares).sum()
    return mean
