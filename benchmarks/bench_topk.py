"""Exact top-k beside every peer that is installed, in one run: time, ratio to the peer and to the read limit, recall.

    python benchmarks/bench_topk.py [--cases 1m64 1m64-b32 ...] [--threads 1 2] [--k 10 100] [--states warm cold]

Contestants take turns within a round, 5 ms apart so that no thread pool still spins; a ratio is taken within a round,
and the median round is printed with the least and the most. Above 1 the peer is slower than the first line, the kernel
as a caller has it. What other programs took of the machine meanwhile is printed: a table is worth little where that is
not near 0. Warm: a turn repeats its call, and the first is not counted. Cold: 256 MB are read before the call
that is counted. The read limit is how long memory takes to deliver the f32 rows, or the int8 codes, by four near
streams (read_limit.c; needs gcc). Recall is the share of the answer in f64 that was found. The case `recall` asks
single queries and batches by codes and without, and fails unless all answers have the same bits.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import headrace_kernels as kernels
from headrace_kernels import _dispatch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from topk_peers import Answer, Matrix, Rows, allowing_peers, excluding_peers, optional, peers, versions

__all__ = ["main"]

PAUSE_S = 0.005
TURN_S = 0.02
EVICT_BYTES = 256 << 20
CODE_VARIANTS = ("avx512_vnni", "amx")
Contestants = dict[str, Answer]


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one table measures."""

    batch: int
    k: int
    num_threads: int
    state: str


class ReadLimit:
    """How long memory takes to deliver bytes; also what empties the caches."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "read_limit.so"
            source = Path(__file__).with_name("read_limit.c")
            command = ["gcc", "-O3", "-shared", "-fPIC", "-pthread", "-o", str(library), str(source)]
            subprocess.run(command, check=True, capture_output=True)
            self._read = ctypes.CDLL(str(library)).read_limit
        self._read.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._read.restype = ctypes.c_float
        self._other = np.ones(EVICT_BYTES, dtype=np.uint8)

    def of(self, rows: Matrix, size_bytes: int, num_threads: int) -> Answer:
        """Reads the first bytes of an array."""
        return partial(self._read, rows.ctypes.data, size_bytes, num_threads)

    def evict(self) -> None:
        """Fills the caches with something else."""
        self._read(self._other.ctypes.data, EVICT_BYTES, 1)


def blas_threads(num_threads: int) -> AbstractContextManager[object]:
    """Sets the threads of NumPy's BLAS and of OpenMP pools where that can be done."""
    control = optional("threadpoolctl")
    return control.threadpool_limits(num_threads) if control else nullcontext()


def take_turn(answer: Answer, evict: Callable[[], None] | None) -> float:
    """Milliseconds of a call."""
    time.sleep(PAUSE_S)
    answer()
    if evict:
        evict()
        start = time.perf_counter()
        answer()
        return (time.perf_counter() - start) * 1e3
    spent: list[float] = []
    while len(spent) < 3 or (sum(spent) < TURN_S * 1e3 and len(spent) < 50):
        start = time.perf_counter()
        answer()
        spent.append((time.perf_counter() - start) * 1e3)
        if spent[0] > 100:
            break
    return statistics.median(spent)


def measure(contestants: Contestants, rounds: int, evict: Callable[[], None] | None) -> dict[str, list[float]]:
    """Milliseconds of each in each round; the slow sit out the later rounds."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, answer in contestants.items():
            if turn < 3 or statistics.median(times[name]) < 150:
                times[name].append(take_turn(answer, evict))
    return times


def answer_in_f64(vectors: Matrix, queries: Matrix, k: int) -> Rows:
    """i64[q, k]: the k largest inner products of each query, in any order."""
    scores = np.empty((len(queries), len(vectors)))
    for first in range(0, len(vectors), 65536):
        part = vectors[first : first + 65536].astype(np.float64)
        scores[:, first : first + 65536] = queries.astype(np.float64) @ part.T
    found: Rows = np.argpartition(scores, len(vectors) - k, axis=1)[:, -k:]
    return found


def recall(found: Any, exact: Rows) -> float:
    """Share of the exact answer among what was found."""
    rows = np.asarray(found).reshape(len(exact), -1)
    return float(np.mean([np.isin(right, left).mean() for left, right in zip(rows, exact, strict=True)]))


def print_table(title: str, contestants: Contestants, run: Run, exact: Rows, rounds: int, limit: ReadLimit) -> None:
    """One markdown table; ratios are to the first contestant."""
    began, busy, own = time.perf_counter(), busy_s(), sum(os.times()[:2])
    with blas_threads(run.num_threads):
        times = measure(contestants, rounds, limit.evict if run.state == "cold" else None)
        answers = {name: answer() for name, answer in contestants.items()}
    others = (busy_s() - busy - (sum(os.times()[:2]) - own)) / (time.perf_counter() - began)
    first = next(iter(times.values()))
    print(f"\n### {title}, {run.num_threads} threads, k {run.k}, {run.state} (others took {others:.2f} of a core)\n")
    print("| | ms (least-most) | ratio (least-most) | recall |\n|---|---|---|---|")
    for name, spent in times.items():
        ratios = [theirs / ours for theirs, ours in zip(spent, first, strict=False)]
        is_limit = name.startswith("read limit")
        found = "" if is_limit or name == "scikit-learn" else f"{recall(answers[name], exact):.4f}"
        print(
            f"| {name} | {statistics.median(spent):.3f} ({min(spent):.3f}-{max(spent):.3f}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f}) | {found} |",
            flush=True,
        )


def busy_s() -> float:
    """Seconds that the cores have spent on programs since the machine started; 0 where nobody counts."""
    lines = _lines("/proc/stat")
    return sum(map(int, lines[0].split()[1:3])) / os.sysconf("SC_CLK_TCK") if lines else 0.0


def forced(isa: str, answer: Answer) -> Answer:
    """The answer by one variant."""

    def run() -> Any:
        with _dispatch.force(isa):
            return answer()

    return run


def ours(items: kernels.PackedItems, queries: Matrix, run: Run, **filters: Any) -> Iterator[tuple[str, Answer]]:
    """The kernel as a caller has it, and its ways by name."""

    def scan(mode: Any) -> Any:
        return kernels.scan_topk(items, queries, run.k, mode=mode, num_threads=run.num_threads, **filters)[0]

    yield "headrace", partial(scan, "auto")
    yield "headrace fp32", partial(scan, "fp32")
    if run.batch > 1:
        for isa in CODE_VARIANTS:
            if isa in kernels.variants():
                yield f"headrace int8 {isa}", forced(isa, partial(scan, "int8"))


def limits(items: kernels.PackedItems, run: Run, limit: ReadLimit) -> Iterator[tuple[str, Answer]]:
    """The rows, and the codes, read and nothing else."""
    n, d = items.num_rows, items.dimension
    yield "read limit f32", limit.of(items.vectors, 4 * n * d, run.num_threads)
    yield "read limit int8", limit.of(items.vectors, n * (d + 4), run.num_threads)


Case = Callable[[list[Run], int, ReadLimit], None]


def plain(n: int, d: int, batch: int) -> Case:
    """All rows may be answered."""

    def measure_case(runs: list[Run], rounds: int, limit: ReadLimit) -> None:
        rng = np.random.default_rng(1)
        vectors = rng.standard_normal((n, d), dtype=np.float32)
        queries = rng.standard_normal((batch, d), dtype=np.float32)
        items = kernels.pack_items(vectors)
        for run in runs:
            contestants = dict(ours(items, queries, run)) | dict(limits(items, run, limit))
            contestants |= dict(peers(vectors, queries, run.k, run.num_threads))
            exact = answer_in_f64(vectors, queries, run.k)
            print_table(f"{n:,} x {d}, batch {batch}", contestants, run, exact, rounds, limit)

    return measure_case


def excluded(runs: list[Run], rounds: int, limit: ReadLimit) -> None:
    """1,000 rows may not be answered: any ones, then the best ones, as a user's history would be."""
    rng = np.random.default_rng(2)
    vectors, query = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1_000_000, 128), (1, 128)))
    items = kernels.pack_items(vectors)
    order = np.argsort(-(vectors @ query[0]), kind="stable")
    for what, rows in (("any", np.sort(rng.choice(1_000_000, 1000, replace=False))), ("best", np.sort(order[:1000]))):
        for run in runs:
            exact = order[~np.isin(order, rows)][None, : run.k]
            contestants = dict(ours(items, query, run, exclude=rows))
            contestants |= {f"{name} unfiltered": answer for name, answer in ours(items, query, run)}
            contestants |= dict(limits(items, run, limit))
            contestants |= dict(excluding_peers(vectors, query, run.k, run.num_threads, rows))
            print_table(f"1,000,000 x 128 without {what} 1,000", contestants, run, exact, rounds, limit)


def allowed(runs: list[Run], rounds: int, limit: ReadLimit) -> None:
    """One row in a hundred may be answered."""
    rng = np.random.default_rng(3)
    vectors, query = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1_000_000, 128), (1, 128)))
    items = kernels.pack_items(vectors)
    rows = np.sort(rng.choice(1_000_000, 10_000, replace=False))
    for run in runs:
        exact = rows[answer_in_f64(vectors[rows], query, run.k)]
        contestants = dict(ours(items, query, run, allow=rows))
        contestants |= dict(allowing_peers(vectors, query, run.k, run.num_threads, rows))
        print_table("10,000 of 1,000,000 x 128", contestants, run, exact, rounds, limit)


def ascending(runs: list[Run], rounds: int, limit: ReadLimit) -> None:
    """Rows in the order that is worst for a scan: each a better one, beside the same rows shuffled."""
    rng = np.random.default_rng(4)
    vectors, query = (rng.standard_normal(shape, dtype=np.float32) for shape in ((1_000_000, 64), (1, 64)))
    order = np.argsort(vectors @ query[0], kind="stable")
    sorted_vectors = np.ascontiguousarray(vectors[order])
    items, sorted_items = kernels.pack_items(vectors), kernels.pack_items(sorted_vectors)
    back = np.argsort(order)

    def sorted_rows(answer: Answer) -> Answer:
        """Its row numbers among the sorted rows."""
        return lambda: back[answer()]

    for run in runs:
        exact = np.arange(1_000_000 - run.k, 1_000_000)[None]
        shuffled, worst = (
            dict(ours(packed, query, run)) | dict(peers(rows, query, run.k, run.num_threads))
            for packed, rows in ((items, vectors), (sorted_items, sorted_vectors))
        )
        contestants: Contestants = {}
        for name in [name for name in worst if name.startswith("headrace") or name == "faiss.knn"]:
            contestants[f"{name} shuffled"] = sorted_rows(shuffled[name])
            contestants[f"{name} ascending"] = worst[name]
        print_table("1,000,000 x 64, ascending by score", contestants, run, exact, rounds, limit)


def same_bits(runs: list[Run], rounds: int, limit: ReadLimit) -> None:
    """1,024 queries by codes, alone and in batches, and by f32: the same rows, order and scores."""
    rng = np.random.default_rng(5)
    for n, d, metric in ((1_000_000, 64, "dot"), (100_000, 384, "cosine")):
        items = kernels.pack_items(rng.standard_normal((n, d), dtype=np.float32), metric=metric)
        queries = rng.standard_normal((1024, d), dtype=np.float32)
        for k in sorted({run.k for run in runs}):
            ask = partial(kernels.scan_topk, items, k=k, num_threads=2)
            expected = [ask(query[None], mode="fp32")[:2] for query in queries[:256]]
            by_rows = ask(queries, mode="fp32")[:2]
            report = kernels.ScanReport()
            by_codes = [ask(query[None], mode="int8", report=report)[:2] for query in queries]
            batches = {
                isa: forced(isa, partial(ask, queries, mode="int8"))()[:2]
                for isa in CODE_VARIANTS
                if isa in kernels.variants()
            }
            for part in (0, 1):
                np.testing.assert_array_equal(np.concatenate([one[part] for one in expected]), by_rows[part][:256])
                np.testing.assert_array_equal(np.concatenate([one[part] for one in by_codes]), by_rows[part])
                for found in batches.values():
                    np.testing.assert_array_equal(found[part], by_rows[part])
            share = recall(by_rows[0][:64], answer_in_f64(np.asarray(items.vectors), queries[:64], k))
            print(
                f"\n{n:,} x {d} {metric}, k {k}: 1,024 queries by codes have the rows, order and bits of the f32 scan "
                f"(recall 1.0); of 64 in f64 {share:.4f} were found; {report.num_candidates / 1024:.1f} candidates a "
                f"query, {report.num_fallbacks} fallbacks",
                flush=True,
            )


CASES: dict[str, Case] = {
    "1m64": plain(1_000_000, 64, 1),
    "1m64-b32": plain(1_000_000, 64, 32),
    "100k384": plain(100_000, 384, 1),
    "100k384-b32": plain(100_000, 384, 32),
    "10k384": plain(10_000, 384, 1),
    "10k384-b32": plain(10_000, 384, 32),
    "excluded": excluded,
    "allowed": allowed,
    "sorted": ascending,
    "recall": same_bits,
}


def machine() -> str:
    """What this was measured on."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cpu = names[0] if names else platform.processor()
    load = f"{os.getloadavg()[0]:.1f}"
    return (
        f"{cpu}, {os.cpu_count()} cores, load {load}; isa {kernels.isa()}; "
        f"Python {platform.python_version()}, {versions()}"
    )


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def main() -> None:
    """Runs the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--k", nargs="+", type=int, default=[10])
    parser.add_argument("--states", nargs="+", choices=("warm", "cold"), default=["warm"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(machine())
    limit = ReadLimit()
    for name in options.cases:
        batch = 32 if name.endswith("b32") else 1
        runs = [
            Run(batch=batch, k=k, num_threads=num_threads, state=state)
            for num_threads in options.threads
            for k in options.k
            for state in options.states
        ]
        CASES[name](runs, options.rounds, limit)


if __name__ == "__main__":
    main()
