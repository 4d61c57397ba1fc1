"""Exact top-k beside every peer that is installed, in one run: time, ratio to the kernel, recall.

    python benchmarks/bench_topk.py [--sizes 1000000x64 100000x384] [--batches 1 32] [--threads 1 2] [--rounds 7]

Contestants take turns within a round, so that all meet the same machine; the median round is printed with the fastest
one beside it. The read limit is how long memory takes to deliver the f32 rows, or the int8 codes, by four near streams
(benchmarks/read_limit.c; needs gcc). Ratios are of medians: above 1 the peer is slower than the kernel's `auto`.
faiss runs with distance_compute_blas_threshold=20, several times faster for batches than its default. NumPy's BLAS
keeps its threads unless threadpoolctl is there to set them. Recall is the share of the exact answer that was found.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import _dispatch

Answer = Callable[[], Any]
Matrix = NDArray[np.float32]
K = 10


def optional(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def read_limit() -> Callable[[Matrix, int, int], object] | None:
    """Reads the first bytes of an array as fast as can be, or None without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "read_limit.so"
        source = Path(__file__).with_name("read_limit.c")
        command = ["gcc", "-O3", "-shared", "-fPIC", "-pthread", "-o", str(library), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True)
            function = ctypes.CDLL(str(library)).read_limit
        except (OSError, subprocess.CalledProcessError):
            return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_float

    def read(rows: Matrix, size_bytes: int, num_threads: int) -> object:
        return function(rows.ctypes.data, size_bytes, num_threads)

    return read


def numpy_topk(vectors: Matrix, queries: Matrix) -> NDArray[np.int64]:
    """One product and a partition; the product of a single query is a matrix-vector one."""
    scores = (vectors @ queries[0])[None] if len(queries) == 1 else queries @ vectors.T
    found: NDArray[np.int64] = np.argpartition(scores, scores.shape[1] - K, axis=1)[:, -K:]
    return found


def forced(isa: str, answer: Answer) -> Answer:
    """The answer by one variant."""

    def run() -> Any:
        with _dispatch.force(isa):
            return answer()

    return run


def kernels_at(items: kernels.PackedItems, queries: Matrix, num_threads: int) -> Iterator[tuple[str, Answer]]:
    """The kernel as a caller has it, and its ways by name."""

    def scan(mode: Any) -> Any:
        return kernels.scan_topk(items, queries, K, mode=mode, num_threads=num_threads)[0]

    yield "headrace auto", partial(scan, "auto")
    yield "headrace fp32", partial(scan, "fp32")
    for isa in kernels.variants():
        if isa != "portable":
            yield f"headrace int8 {isa}", forced(isa, partial(scan, "int8"))


def peers_at(vectors: Matrix, queries: Matrix, num_threads: int) -> Iterator[tuple[str, Answer]]:
    """Whoever is installed, at its best settings."""
    yield "numpy", partial(numpy_topk, vectors, queries)
    if faiss := optional("faiss"):
        faiss.cvar.distance_compute_blas_threshold = 20
        faiss.omp_set_num_threads(num_threads)
        metric = faiss.METRIC_INNER_PRODUCT
        yield "faiss knn", lambda: faiss.knn(queries, vectors, K, metric=metric)[1]
        coded = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, metric)
        coded.train(vectors[:100_000])
        coded.add(vectors)
        yield "faiss SQ8", lambda: coded.search(queries, K)[1]
    if topk := optional("implicit.cpu.topk"):
        yield "implicit", lambda: topk.topk(vectors, queries, K, num_threads=num_threads)[0]
    if torch := optional("torch"):
        torch.set_num_threads(num_threads)
        there, asked = torch.from_numpy(vectors), torch.from_numpy(queries)
        yield "torch", lambda: torch.topk(asked @ there.T, K, sorted=False).indices.numpy()
    if len(queries) == 1 and (usearch := optional("usearch.index")):
        search = partial(usearch.search, vectors, queries, K, usearch.MetricKind.IP, exact=True, threads=num_threads)
        yield "usearch", lambda: search().keys
    if len(queries) == 1 and (numkong := optional("numkong")) and hasattr(numkong, "cdist"):
        yield "numkong", lambda: np.argpartition(np.asarray(numkong.cdist(queries, vectors, "dot")), -K)[:, -K:]
    if len(queries) > 1 and (neighbors := optional("sklearn.neighbors")):
        units = neighbors.NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(vectors)
        yield "sklearn (cosine)", lambda: units.kneighbors(queries, return_distance=False)


def blas_threads(num_threads: int) -> AbstractContextManager[object]:
    """Sets the threads of NumPy's BLAS where that can be done."""
    control = optional("threadpoolctl")
    return control.threadpool_limits(num_threads, "blas") if control else nullcontext()


def measure(contestants: dict[str, Answer], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each in each round, after one call that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, answer in contestants.items():
            start = time.perf_counter()
            answer()
            if turn:
                times[name].append((time.perf_counter() - start) * 1e3)
    return times


def recall(found: Any, exact: NDArray[np.int64]) -> float:
    """Share of the exact answer among what was found."""
    rows = np.asarray(found).reshape(len(exact), -1)
    return float(np.mean([np.isin(right, left).mean() for left, right in zip(rows, exact, strict=True)]))


def one_case(
    vectors: Matrix, items: kernels.PackedItems, queries: Matrix, num_threads: int, rounds: int, read: Any
) -> None:
    """Prints the lines of one size, batch and thread count."""
    exact = kernels.scan_topk(items, queries, K, mode="fp32")[0]
    with blas_threads(num_threads):
        contestants: dict[str, Answer] = {}
        if read:
            n, d = vectors.shape
            contestants["read limit f32"] = partial(read, items.vectors, 4 * n * d, num_threads)
            contestants["read limit int8"] = partial(read, items.vectors, n * (d + 4), num_threads)
        contestants |= dict(kernels_at(items, queries, num_threads)) | dict(peers_at(vectors, queries, num_threads))
        for name in list(contestants):
            try:
                contestants[name]()
            except Exception as failure:  # a peer that does not run here is left out, and says so
                print(f"  {name:24} left out: {failure}")
                del contestants[name]
        times = measure(contestants, rounds)
        ours = statistics.median(times["headrace auto"])
        print(f"\n{len(vectors):,} x {vectors.shape[1]}, batch {len(queries)}, {num_threads} threads")
        print(f"  {'':24} {'median ms':>10} {'fastest':>10} {'ratio':>7} {'recall':>7}")
        for name, spent in times.items():
            middle = statistics.median(spent)
            line = f"  {name:24} {middle:10.3f} {min(spent):10.3f} {middle / ours:7.2f}"
            limit = name.startswith("read") or "cosine" in name
            print(line if limit else f"{line} {recall(contestants[name](), exact):7.4f}", flush=True)


def main() -> None:
    """Runs the cases asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["1000000x64", "100000x384"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 32])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    found = (
        (name, optional(name)) for name in ("numpy", "faiss", "implicit", "torch", "usearch", "numkong", "sklearn")
    )
    versions = {name: getattr(module, "__version__", "?") for name, module in found if module}
    print(f"{platform.machine()}, isa {kernels.isa()}, k {K}, {versions}")
    rng = np.random.default_rng(1)
    read = read_limit()
    for size in options.sizes:
        n, d = map(int, size.split("x"))
        vectors = rng.standard_normal((n, d), dtype=np.float32)
        start = time.perf_counter()
        items = kernels.pack_items(vectors)
        print(f"\n{items!r} packed in {time.perf_counter() - start:.2f} s")
        for batch in options.batches:
            queries = rng.standard_normal((batch, d), dtype=np.float32)
            for num_threads in options.threads:
                one_case(vectors, items, queries, num_threads, options.rounds, read)


if __name__ == "__main__":
    main()
