"""Who else answers a top-k, each as fast as it can be asked to: a call without arguments that gives row numbers.

A peer that is not installed is not there. Settings that matter: faiss takes batches without its blocked BLAS
(`distance_compute_blas_threshold=20`, several times faster than the default); NumPy takes one query as a matrix-vector
product; scikit-learn takes unit rows by Euclidean distance, its fused path, which ranks as cosines do; numkong packs
its rows beforehand and has one thread.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Answer", "Matrix", "Rows", "allowing_peers", "excluding_peers", "optional", "peers", "versions"]

Answer = Callable[[], Any]
Matrix = NDArray[np.float32]
Rows = NDArray[np.int64]
NAMES = ("numpy", "faiss", "implicit", "torch", "usearch", "numkong", "sklearn")


def optional(name: str) -> Any:
    """The module, or None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def versions() -> str:
    """Name and version of each peer that is installed."""
    found = ((name, optional(name)) for name in NAMES)
    return ", ".join(f"{name} {getattr(module, '__version__', '?')}" for name, module in found if module)


def best_columns(scores: Any, k: int) -> Any:
    """Places of the k largest in each row, in any order."""
    table = np.asarray(scores)
    return np.argpartition(table, table.shape[1] - k, axis=1)[:, -k:]


def numpy_scores(vectors: Matrix, queries: Matrix) -> Matrix:
    """f32[q, n]."""
    return (vectors @ queries[0])[None] if len(queries) == 1 else queries @ vectors.T


def tuned_faiss(num_threads: int) -> Any:
    """faiss at its best for few queries, or None."""
    if faiss := optional("faiss"):
        faiss.cvar.distance_compute_blas_threshold = 20
        faiss.omp_set_num_threads(num_threads)
    return faiss


def peers(vectors: Matrix, queries: Matrix, k: int, num_threads: int) -> Iterator[tuple[str, Answer]]:
    """Everybody's largest inner products."""
    batch = len(queries)
    yield "numpy", lambda: best_columns(numpy_scores(vectors, queries), k)
    if faiss := tuned_faiss(num_threads):
        metric = faiss.METRIC_INNER_PRODUCT
        yield "faiss.knn", lambda: faiss.knn(queries, vectors, k, metric=metric)[1]
        if batch == 1:
            coded = faiss.IndexScalarQuantizer(vectors.shape[1], faiss.ScalarQuantizer.QT_8bit, metric)
            coded.train(vectors[:100_000])
            coded.add(vectors)
            yield "faiss SQ8", lambda: coded.search(queries, k)[1]
    if topk := optional("implicit.cpu.topk"):
        yield "implicit", lambda: topk.topk(vectors, queries, k, num_threads=num_threads)[0]
    if torch := optional("torch"):
        torch.set_num_threads(num_threads)
        there, asked = torch.from_numpy(vectors), torch.from_numpy(queries)
        yield "torch", lambda: torch.topk(asked @ there.T, k, sorted=False).indices.numpy()
    if batch == 1 and (usearch := optional("usearch.index")):
        search = partial(usearch.search, vectors, queries, k, usearch.MetricKind.IP, exact=True, threads=num_threads)
        yield "usearch", lambda: search().keys
    if num_threads == 1 and (numkong := optional("numkong")) and hasattr(numkong, "dots_packed"):
        packed = numkong.dots_pack(vectors)
        yield "numkong", lambda: best_columns(numkong.dots_packed(queries, packed), k)
    if batch > 1 and (neighbors := optional("sklearn.neighbors")):
        rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        units = queries / np.linalg.norm(queries, axis=1, keepdims=True)
        fitted = neighbors.NearestNeighbors(n_neighbors=k, algorithm="brute", metric="euclidean").fit(rows)
        yield "scikit-learn", lambda: fitted.kneighbors(units, return_distance=False)


def excluding_peers(
    vectors: Matrix, query: Matrix, k: int, num_threads: int, excluded: Rows
) -> Iterator[tuple[str, Answer]]:
    """The same without the rows given."""

    def by_numpy() -> Any:
        scores = numpy_scores(vectors, query)
        scores[0, excluded] = -np.inf
        return best_columns(scores, k)

    yield "numpy", by_numpy
    if faiss := tuned_faiss(num_threads):
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorNot(faiss.IDSelectorBatch(excluded)))
        yield "faiss selector", lambda: index.search(query, k, params=parameters)[1]
    if topk := optional("implicit.cpu.topk"):
        few = excluded.astype(np.int32)
        yield "implicit", lambda: topk.topk(vectors, query, k, filter_items=few, num_threads=num_threads)[0]


def allowing_peers(
    vectors: Matrix, query: Matrix, k: int, num_threads: int, allowed: Rows
) -> Iterator[tuple[str, Answer]]:
    """The same of the rows given alone."""
    yield "numpy gather", lambda: allowed[best_columns(numpy_scores(vectors[allowed], query), k)]
    if faiss := tuned_faiss(num_threads):
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        parameters = faiss.SearchParameters(sel=faiss.IDSelectorArray(allowed))
        yield "faiss selector", lambda: index.search(query, k, params=parameters)[1]
