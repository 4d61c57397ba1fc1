"""The index after any changes answers what an oracle built anew answers, and the two scanners answer alike."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from headrace_kernels import reference
from headrace_server.items import index as index_module
from headrace_server.items.batch import CheckedBatch
from headrace_server.items.catalog import CatalogSpec, FieldSpec, FieldType, Metric
from headrace_server.items.diversity import maximal_marginal_relevance
from headrace_server.items.filter import Equals, Not
from headrace_server.items.index import Change, ItemIndex
from headrace_server.items.kernel_scanner import KernelScanner
from headrace_server.items.scanner import Mask, Packed, Ranking, Rows, Vectors

FIELDS = (FieldSpec(name="kind", type=FieldType.STRING), FieldSpec(name="tags", type=FieldType.STRING_LIST))
DIMENSION = 3


class ReferenceScanner:
    """Scores by the kernels' reference in NumPy."""

    def pack(self, vectors: Vectors, metric: Metric) -> Packed:
        return ReferencePacked(vectors, metric)


class ReferencePacked:
    size_bytes = 0
    vectors = None

    def __init__(self, vectors: Vectors, metric: Metric) -> None:
        self._items = reference.pack_items(vectors, metric=metric)

    def topk(
        self,
        queries: Vectors,
        k: int,
        *,
        allowed: Mask | None = None,
        exclude: Sequence[Rows] | None = None,
        min_score: float | None = None,
    ) -> Ranking:
        return reference.scan_topk(self._items, queries, k, allow=allowed, exclude=exclude, min_score=min_score)


SCANNERS = {"reference": ReferenceScanner(), "kernels": KernelScanner()}


class Oracle:
    """Items in a plain dict, in the order of their first insertion."""

    def __init__(self) -> None:
        self.items: dict[str, tuple[int, list[float], str | None]] = {}
        self.next = 0

    def put(self, ids: Iterable[str], rng: np.random.Generator) -> Change:
        ids = tuple(ids)
        vectors = rng.integers(-2, 3, (len(ids), DIMENSION)).astype(np.float32)  # small and whole: ties, exact sums
        kinds = [None if n == 0 else f"k{n}" for n in rng.integers(0, 3, len(ids))]
        sequences = []
        for id_, vector, kind in zip(ids, vectors.tolist(), kinds, strict=True):
            sequence = self.items[id_][0] if id_ in self.items else self.next
            self.next += id_ not in self.items
            self.items[id_] = (sequence, vector, kind)
            sequences.append(sequence)
        fields = (kinds, [None if kind is None else (kind, "all") for kind in kinds])
        batch = CheckedBatch(ids=ids, vectors=vectors, payloads=(None,) * len(ids), fields=fields)
        return Change(batch=batch, sequences=np.array(sequences, dtype=np.int64))

    def remove(self, ids: Iterable[str]) -> Change:
        gone = {id_: self.items.pop(id_)[0] for id_ in ids if id_ in self.items}
        return Change(sequences=np.array(list(gone.values()), dtype=np.int64), removed_ids=tuple(gone))

    def best(self, query: list[float], k: int, out: set[str]) -> list[tuple[str, float]]:
        scored = [
            (-sum(a * b for a, b in zip(query, vector, strict=True)), sequence, id_)
            for id_, (sequence, vector, kind) in self.items.items()
            if kind != "k1" and id_ not in out
        ]
        return [(id_, -score) for score, _, id_ in sorted(scored)[:k]]


STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "remove", "compact"]), st.sets(st.integers(0, 14), max_size=8)),
    max_size=14,
)


@pytest.mark.parametrize("scanner", SCANNERS)
@settings(max_examples=60, deadline=None)
@given(steps=STEPS, seed=st.integers(0, 2**16), k=st.integers(1, 20))
def test_index_answers_as_one_built_anew(scanner: str, steps: list[tuple[str, set[int]]], seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    spec = CatalogSpec(name="c", dimension=DIMENSION, metric="dot", fields=FIELDS)
    tried, oracle = ItemIndex(spec, SCANNERS[scanner]), Oracle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_MERGE_ROWS", 3)
        patch.setattr(index_module, "_MIN_GRAVES", 2)
        for revision, (step, numbers) in enumerate(steps, 1):
            ids = [f"i{number}" for number in numbers]
            if step == "compact":
                tried.compact()
            elif ids:
                tried.apply([oracle.put(ids, rng) if step == "put" else oracle.remove(ids)], revision)
            snapshot = tried.snapshot
            assert snapshot.num_items == len(oracle.items)
            queries = rng.integers(-2, 3, (2, DIMENSION)).astype(np.float32)
            selection = snapshot.select(Not(Equals("kind", "k1")), exclude_ids=["i3"])
            hits = snapshot.search(queries, k, selection=selection, exclude=[["i1", "i2"], []])
            for query, found, out in zip(queries.tolist(), hits, ({"i1", "i2", "i3"}, {"i3"}), strict=True):
                assert list(zip(found.ids, found.scores.tolist(), strict=True)) == oracle.best(query, k, out)
                assert snapshot.vectors_at(found.places).tolist() == [oracle.items[id_][1] for id_ in found.ids]
            every = [f"i{n}" for n in range(15)]
            assert tried.sequences_of(every) == [oracle.items[id_][0] if id_ in oracle.items else None for id_ in every]


def test_readers_see_whole_changes_while_the_index_is_changed_and_compacted() -> None:
    spec = CatalogSpec(name="c", dimension=1, metric="dot")
    tried = ItemIndex(spec, KernelScanner())
    num_items, stop, errors = 600, threading.Event(), []

    def batch(ids: tuple[str, ...], value: int) -> CheckedBatch:
        vectors = np.full((len(ids), 1), value, dtype=np.float32)
        return CheckedBatch(ids=ids, vectors=vectors, payloads=(None,) * len(ids), fields=())

    ids = tuple(f"i{n}" for n in range(num_items))
    sequences = np.arange(num_items)
    tried.apply([Change(batch=batch(ids, 0), sequences=sequences)], 0)

    def read() -> None:
        while not stop.is_set():
            snapshot = tried.snapshot
            (hits,) = snapshot.search(np.ones((1, 1), dtype=np.float32), 1000)
            if len(hits.ids) != num_items or set(hits.scores.tolist()) != {float(snapshot.revision)}:
                errors.append((snapshot.revision, len(hits.ids), set(hits.scores.tolist())))

    def compact() -> None:
        while not stop.is_set():
            tried.compact()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_module, "_MERGE_ROWS", 100)
        threads = [threading.Thread(target=read), threading.Thread(target=read), threading.Thread(target=compact)]
        for thread in threads:
            thread.start()
        for revision in range(1, 150):
            halves = [slice(0, num_items // 2), slice(num_items // 2, num_items)]
            tried.apply(
                [Change(batch=batch(ids[half], revision), sequences=sequences[half]) for half in halves], revision
            )
        stop.set()
        for thread in threads:
            thread.join()
    assert errors == []


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(1, 300), st.integers(1, 40)),
    metric=st.sampled_from(["dot", "cosine"]),
    scale=st.sampled_from([1e-30, 1.0, 1e15]),
    k=st.integers(1, 400),
    share=st.sampled_from([0.0, 0.05, 0.5, 1.0]),
)
def test_scanners_answer_the_best_rows(
    seed: int, shape: tuple[int, int], metric: Metric, scale: float, k: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    vectors = (rng.standard_normal(shape) * scale).astype(np.float32)
    vectors[rng.random(shape[0]) < 0.2] = vectors[0]  # ties
    vectors[rng.random(shape[0]) < 0.05] = 0
    queries = rng.standard_normal((3, shape[1])).astype(np.float32)
    allowed = rng.random(shape[0]) < share
    exclude = [np.array([0], dtype=np.int64), np.arange(0, shape[0], 2), np.empty(0, dtype=np.int64)]
    for scanner in SCANNERS.values():
        rows, scores, counts = scanner.pack(vectors, metric).topk(queries, k, allowed=allowed, exclude=exclude)
        near = 3e-6 * (scale if metric == "dot" else 1)
        for query, out, row, score, count in zip(queries, exclude, rows, scores, counts, strict=True):
            expected = plain_scores(query, vectors, metric)
            open_rows = np.setdiff1d(np.flatnonzero(allowed), out)
            order = open_rows[np.lexsort((open_rows, -expected[open_rows]))][:k]
            assert count == len(order)
            np.testing.assert_allclose(score[:count], expected[order], rtol=3e-6, atol=near)
            np.testing.assert_allclose(score[:count], expected[row[:count]], rtol=3e-6, atol=near)
            assert len(set(row[:count].tolist())) == count
            assert allowed[row[:count]].all()
            assert not np.isin(row[:count], out).any()
            tied = np.diff(score[:count]) == 0
            assert (np.diff(row[:count])[tied] > 0).all()


def plain_scores(query: Vectors, vectors: Vectors, metric: Metric) -> Vectors:
    """f32[n]: scores summed in f64; 0 where cosine meets a zero vector."""
    wide, rows = query.astype(np.float64), vectors.astype(np.float64)
    dots = rows @ wide
    if metric == "cosine":
        lengths = np.sqrt((rows * rows).sum(axis=1)) * np.sqrt((wide * wide).sum())
        dots = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0).clip(-1, 1)
    return dots.astype(np.float32)


def brute_force(
    relevance: NDArray[np.float32], vectors: NDArray[np.float32], k: int, weight: float, metric: Metric
) -> list[int]:
    rows = vectors.astype(np.float64)
    if metric == "cosine":
        rows = np.array([row / np.linalg.norm(row) if row.any() else row for row in rows])
    chosen: list[int] = []
    while len(chosen) < min(k, len(rows)):

        def marginal(i: int) -> float:
            likeness = max((float(rows[i] @ rows[j]) for j in chosen), default=0.0)
            return weight * float(relevance[i]) - (1 - weight) * likeness

        left = [i for i in range(len(rows)) if i not in chosen]
        chosen.append(max(left, key=lambda i: (marginal(i), -i)))
    return chosen


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    n=st.integers(0, 12),
    k=st.integers(1, 14),
    weight=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_diversity_chooses_what_trying_every_candidate_chooses(seed: int, n: int, k: int, weight: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-3, 4, (n, 4)).astype(np.float32)
    relevance = np.sort(rng.integers(-5, 6, n).astype(np.float32))[::-1].copy()
    chosen = maximal_marginal_relevance(relevance, vectors, k, relevance_weight=weight, metric="dot")
    assert chosen.tolist() == brute_force(relevance, vectors, k, weight, "dot")


def test_diversity_takes_relevance_alone_at_one_and_passes_over_doubles_below() -> None:
    vectors = np.array([[1, 0], [1, 0], [0.9, 0.1], [0, 1]], dtype=np.float32)
    relevance = np.array([1.0, 1.0, 0.95, 0.5], dtype=np.float32)
    assert maximal_marginal_relevance(relevance, vectors, 3, relevance_weight=1).tolist() == [0, 1, 2]
    assert maximal_marginal_relevance(relevance, vectors, 2, relevance_weight=0.5).tolist() == [0, 3]
    for wrong in ({"k": 0}, {"k": 1, "relevance_weight": 1.5}):
        with pytest.raises(ValueError, match=r"from 0 to 1|at least 1"):
            maximal_marginal_relevance(relevance, vectors, **wrong)  # type: ignore[arg-type]
