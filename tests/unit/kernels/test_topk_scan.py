"""Scans for the best rows: the answer is the reference's, bit for bit, whatever way found it."""

from __future__ import annotations

import os
import threading
import warnings

import numpy as np
import pytest
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import reference

pytestmark = pytest.mark.usefixtures("variant")

MODES = ("auto", "fp32", "int8")


def _usable_cpus(thread: int = 0) -> set[int]:
    return os.sched_getaffinity(thread) if hasattr(os, "sched_getaffinity") else set()


def assert_exact(
    vectors: NDArray[np.float32], queries: NDArray[np.float32], k: int, metric: str = "dot", **options: object
) -> kernels.ScanReport:
    """Every mode on one thread and two answers as the reference does; the report is that of all of them."""
    expected = reference.scan_topk(reference.pack_items(vectors, metric=metric), queries, k, **options)  # type: ignore[arg-type]
    items = kernels.pack_items(vectors, metric=metric)  # type: ignore[arg-type]
    report = kernels.ScanReport()
    for mode in MODES:
        for num_threads in (1, 2):
            got = kernels.scan_topk(
                items,
                queries,
                k,
                mode=mode,
                num_threads=num_threads,
                report=report,
                **options,  # type: ignore[arg-type]
            )
            assert [part.dtype for part in got] == [np.int64, np.float32, np.int64]
            for left, right in zip(got, expected, strict=True):
                np.testing.assert_array_equal(left, right, err_msg=f"{mode}, {num_threads} threads")
    return report


@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 8, 9, 16, 31, 64, 100, 130])
@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 700])
def test_any_shape_is_the_reference(n: int, d: int, rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((n, d), dtype=np.float32)
    for q in (1, 2, 8, 9, 17):
        assert_exact(vectors, rng.standard_normal((q, d), dtype=np.float32), 5)


@pytest.mark.parametrize("q", [1, 7, 16, 31, 32, 33, 70])
@pytest.mark.parametrize("metric", ["dot", "cosine"])
def test_batches_of_any_size_answer_as_single_queries_do(q: int, metric: str, rng: np.random.Generator) -> None:
    assert_exact(
        rng.standard_normal((3000, 24), dtype=np.float32), rng.standard_normal((q, 24), dtype=np.float32), 10, metric
    )


@pytest.mark.parametrize("k", [1, 2, 100, 999, 1000, 5000])
def test_any_k_up_to_all_and_past_it(k: int, rng: np.random.Generator) -> None:
    vectors, queries = rng.standard_normal((1000, 20), dtype=np.float32), rng.standard_normal((3, 20), dtype=np.float32)
    assert_exact(vectors, queries, k)
    assert_exact(vectors, queries[:1], k)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "two values", "blocks", "nearly equal"])
def test_adversarial_orders_of_rows_change_nothing(order: str, rng: np.random.Generator) -> None:
    n, d = 20_000, 8
    query = rng.standard_normal((1, d), dtype=np.float32)
    vectors = rng.standard_normal((n, d), dtype=np.float32)
    if order == "equal":
        vectors[:] = vectors[0]
    elif order == "two values":
        vectors = vectors[rng.integers(0, 2, n)]
    elif order == "nearly equal":
        vectors = vectors[0] + vectors * np.float32(1e-6)
    else:
        by_score = np.argsort(vectors @ query[0])
        vectors = vectors[by_score if order == "ascending" else by_score[::-1]]
        if order == "blocks":
            vectors = vectors.reshape(20, 1000, d)[rng.permutation(20)].reshape(n, d)
    assert_exact(vectors, query, 10)
    assert_exact(vectors, np.repeat(query, 9, axis=0), 10)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
def test_rows_sampled_for_a_threshold_are_answered_once(order: str, rng: np.random.Generator) -> None:
    """A thread's share of so many rows is sampled before it is scanned."""
    vectors, query = rng.standard_normal((70_000, 4), dtype=np.float32), rng.standard_normal((1, 4), dtype=np.float32)
    by_score = np.argsort(vectors @ query[0], kind="stable")
    rows = np.repeat(vectors[:7], 10_000, axis=0) if order == "equal" else vectors[by_score]
    rows = np.ascontiguousarray(rows[::-1] if order == "descending" else rows)
    assert_exact(rows, query, 12)
    assert_exact(rows, np.repeat(query, 3, axis=0), 12)


def test_candidates_past_their_buffer_fall_back_to_an_exact_scan(rng: np.random.Generator) -> None:
    vectors = np.repeat(rng.standard_normal((1, 12), dtype=np.float32), 60_000, axis=0)
    report = assert_exact(vectors, rng.standard_normal((1, 12), dtype=np.float32), 3)
    assert report.num_fallbacks > 0


def test_equal_rows_go_to_the_lower_index(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((500, 10), dtype=np.float32)
    vectors[[499, 17, 230, 18]] = vectors[300] * 10
    query = vectors[300:301]
    got = kernels.scan_topk(kernels.pack_items(vectors), query, 4)[0]
    assert got.tolist() == [[17, 18, 230, 499]]


def test_zero_query_ties_with_all_rows(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((5000, 10), dtype=np.float32)
    for metric in ("dot", "cosine"):
        assert_exact(vectors, np.zeros((2, 10), dtype=np.float32), 4, metric)
        assert_exact(vectors, np.zeros((1, 10), dtype=np.float32), 4, metric)


def test_cosines_of_parallel_rows_are_one_and_ties(rng: np.random.Generator) -> None:
    row = rng.standard_normal(30).astype(np.float32)
    vectors = np.stack([row * np.float32(scale) for scale in (3, 1e-3, 1e10, -1, 0, 0.7)])
    assert_exact(vectors, row[None], 6, "cosine")
    indices, scores, _ = kernels.scan_topk(kernels.pack_items(vectors, metric="cosine"), row[None], 6)
    assert indices[0, -2:].tolist() == [4, 3]
    np.testing.assert_allclose(scores[0], [1, 1, 1, 1, 0, -1], atol=1e-6)
    assert np.abs(scores).max() <= 1


@pytest.mark.parametrize("magnitude", [1e-45, 1e-40, 1e-30, 1e-20, 1e10, 1e18])
def test_rows_of_any_magnitude(magnitude: float, rng: np.random.Generator) -> None:
    vectors = (rng.standard_normal((400, 12)) * magnitude).astype(np.float32)
    for q in (1, 9):
        assert_exact(vectors, rng.standard_normal((q, 12), dtype=np.float32), 5)
        assert_exact(vectors, (rng.standard_normal((q, 12)) * magnitude).astype(np.float32), 5)
        assert_exact(vectors, rng.standard_normal((q, 12), dtype=np.float32), 5, "cosine")


def test_rows_whose_magnitudes_differ_wildly(rng: np.random.Generator) -> None:
    vectors = (rng.standard_normal((600, 16)) * 10.0 ** rng.integers(-42, 15, (600, 1))).astype(np.float32)
    for q in (1, 20):
        assert_exact(vectors, rng.standard_normal((q, 16), dtype=np.float32), 30)
        assert_exact(vectors, rng.standard_normal((q, 16), dtype=np.float32), 30, "cosine")


def test_long_rows(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((70, 40_000), dtype=np.float32)
    assert not kernels.pack_items(vectors).has_codes
    assert_exact(vectors, vectors[:3] + 1, 5)
    assert_exact(vectors[:, :32_768].copy(), vectors[:3, :32_768] + 1, 5)


def test_codes_at_their_largest_do_not_overflow() -> None:
    vectors = np.full((64, 32_768), 1.0, dtype=np.float32)
    vectors[1::2] = -1
    vectors[:, 0] = np.linspace(0.1, 1, 64)
    assert kernels.pack_items(vectors).has_codes
    for q in (1, 17):
        assert_exact(vectors, np.repeat(vectors[:1], q, axis=0), 5)
        assert_exact(vectors, np.repeat(vectors[1:2], q, axis=0), 5)


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_answers_do_not_depend_on_the_number_of_threads(num_threads: int, rng: np.random.Generator) -> None:
    items = kernels.pack_items(rng.standard_normal((150_000, 16), dtype=np.float32))
    queries = rng.standard_normal((3, 16), dtype=np.float32)
    expected = kernels.scan_topk(items, queries, 10)
    got = kernels.scan_topk(items, queries, 10, num_threads=num_threads)
    assert [part.tobytes() for part in got] == [part.tobytes() for part in expected]


def test_threads_that_scan_at_once_do_not_mix_their_answers(rng: np.random.Generator) -> None:
    items = kernels.pack_items(rng.standard_normal((80_000, 16), dtype=np.float32))
    queries = rng.standard_normal((8, 16), dtype=np.float32)
    expected = [kernels.scan_topk(items, query[None], 10)[0].tolist() for query in queries]
    wrong: list[int] = []

    def ask(mine: int) -> None:
        for turn in range(40):
            at = (mine + turn) % len(queries)
            if kernels.scan_topk(items, queries[at : at + 1], 10, num_threads=2)[0].tolist() != expected[at]:
                wrong.append(at)

    callers = [threading.Thread(target=ask, args=(mine,)) for mine in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert wrong == []


@pytest.mark.skipif(not 2 <= len(_usable_cpus()) <= 8, reason="needs Linux with two to eight CPUs")
def test_workers_leave_the_cpu_that_their_caller_is_on(rng: np.random.Generator) -> None:
    items = kernels.pack_items(rng.standard_normal((150_000, 16), dtype=np.float32))
    kernels.scan_topk(items, rng.standard_normal((1, 16), dtype=np.float32), 10, num_threads=2)
    fewer = [cpus for cpus in map(_usable_cpus, map(int, os.listdir("/proc/self/task"))) if cpus < _usable_cpus()]
    assert {len(cpus) for cpus in fewer} == {len(_usable_cpus()) - 1}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_child_of_a_fork_scans_with_threads_of_its_own(rng: np.random.Generator) -> None:
    items = kernels.pack_items(rng.standard_normal((100_000, 16), dtype=np.float32))
    query = rng.standard_normal((1, 16), dtype=np.float32)
    expected = kernels.scan_topk(items, query, 10, num_threads=3)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        same = all((kernels.scan_topk(items, query, 10, num_threads=3)[0] == expected).all() for _ in range(20))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (kernels.scan_topk(items, query, 10, num_threads=3)[0] == expected).all()


def test_codes_rule_out_all_but_few_rows(rng: np.random.Generator) -> None:
    items = kernels.pack_items(rng.standard_normal((20_000, 32), dtype=np.float32))
    for q in (1, 8, 16, 32):
        report = kernels.ScanReport()
        queries = rng.standard_normal((q, 32), dtype=np.float32)
        kernels.scan_topk(items, queries, 10, mode="int8", report=report)
        assert 10 * q <= report.num_candidates < 40 * q
        assert report.num_fallbacks == 0
