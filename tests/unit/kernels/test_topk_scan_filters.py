"""Which rows a scan may answer: exclusions, allow-lists, least scores."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from test_topk_scan import assert_exact

import headrace_kernels as kernels

pytestmark = pytest.mark.usefixtures("variant")

Matrix = NDArray[np.float32]
N, D = 5000, 12


@pytest.fixture
def vectors(rng: np.random.Generator) -> Matrix:
    return rng.standard_normal((N, D), dtype=np.float32)


@pytest.fixture
def queries(rng: np.random.Generator) -> Matrix:
    return rng.standard_normal((11, D), dtype=np.float32)


@pytest.mark.parametrize("num_excluded", [0, 1, 1000, N - 3, N])
def test_excluded_rows_are_never_answered(
    num_excluded: int, vectors: Matrix, queries: Matrix, rng: np.random.Generator
) -> None:
    exclude = rng.permutation(N)[:num_excluded]
    assert_exact(vectors, queries, 10, exclude=exclude)
    assert_exact(vectors, queries[:1], 10, exclude=exclude)


def test_best_rows_excluded_let_the_next_ones_in(vectors: Matrix, queries: Matrix) -> None:
    items = kernels.pack_items(vectors)
    first = kernels.scan_topk(items, queries[:1], 50)[0][0]
    next_ones = kernels.scan_topk(items, queries[:1], 10, exclude=np.sort(first[:40]))[0][0]
    assert next_ones.tolist() == first[40:].tolist()


def test_each_query_has_its_own_exclusions(vectors: Matrix, queries: Matrix, rng: np.random.Generator) -> None:
    lists = [None if q % 3 == 0 else rng.integers(0, N, 200 * q) for q in range(len(queries))]
    assert_exact(vectors, queries, 10, exclude=lists)
    assert_exact(vectors, queries, 10, exclude=[None] * len(queries))


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.02, 0.3, 1.0])
def test_allowed_rows_alone_are_answered(
    share: float, vectors: Matrix, queries: Matrix, rng: np.random.Generator
) -> None:
    mask = rng.random(N) < share
    for allow in (mask, rng.permutation(np.flatnonzero(mask))):
        assert_exact(vectors, queries, 10, allow=allow)
        assert_exact(vectors, queries[:1], 10, allow=allow)


def test_allowed_and_excluded_rows_meet(vectors: Matrix, queries: Matrix, rng: np.random.Generator) -> None:
    for share in (0.01, 0.5):
        assert_exact(vectors, queries, 10, allow=rng.random(N) < share, exclude=rng.integers(0, N, 2500))


@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_least_score_cuts_the_answer(metric: str, vectors: Matrix, queries: Matrix) -> None:
    for least in (-100.0, 0.0, 0.7, 5.0, 1e30, -1.0, 1.0):
        assert_exact(vectors, queries, 10, metric, min_score=least)
        assert_exact(vectors, queries[:1], 10, metric, min_score=least)


def test_least_score_keeps_the_row_that_just_reaches_it(vectors: Matrix, queries: Matrix) -> None:
    items = kernels.pack_items(vectors)
    scores = kernels.scan_topk(items, queries, 10)[1]
    for mode in ("fp32", "int8"):
        for query in range(len(queries)):
            counts = kernels.scan_topk(items, queries, 10, mode=mode, min_score=float(scores[query, 6]))[2]  # type: ignore[arg-type]
            assert counts[query] == 7


def test_rows_past_the_catalog_are_refused(vectors: Matrix, queries: Matrix) -> None:
    items = kernels.pack_items(vectors)
    with pytest.raises(IndexError, match="exclude holds row 5000, items have 5000"):
        kernels.scan_topk(items, queries, 3, exclude=np.array([2, 5000]))
    with pytest.raises(IndexError, match="allow holds row -1, items have 5000"):
        kernels.scan_topk(items, queries, 3, allow=np.array([-1]))
    with pytest.raises(kernels.ShapeError, match=r"allow has shape \(4999,\), items have 5000 rows"):
        kernels.scan_topk(items, queries, 3, allow=np.ones(4999, dtype=bool))
    with pytest.raises(kernels.ShapeError, match="exclude has 2 lists, queries has 11 rows"):
        kernels.scan_topk(items, queries, 3, exclude=[None, None])
    with pytest.raises(kernels.DtypeError, match="exclude must be an i64 array of row numbers, not int32"):
        kernels.scan_topk(items, queries, 3, exclude=np.array([1], dtype=np.int32))  # type: ignore[arg-type]
