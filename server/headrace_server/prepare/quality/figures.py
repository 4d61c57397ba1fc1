"""Figures of how far two versions' answers to the same rows are apart, and of how right each is. Pure NumPy.

A row that is not finite in either is no neighbour, cosine 0, and no answer: it never passes for a good one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_kernels import pack_items, scan_topk

__all__ = [
    "calibration_error",
    "cosines",
    "finite_rows",
    "macro_f1",
    "neighbour_agreement",
    "order_agreement",
    "recall_at",
]

Floats = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]

_BINS = 15


def cosines(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """f64[n]: the cosine of each row of f[n, d] with the other's; 1 where both are zero, 0 where one is not finite.

    Single numbers have no direction: of d = 1 the rows together are one vector, and the answer is f64[1].
    """
    if ours.shape[1] == 1:
        ours, theirs = ours.T, theirs.T
    one, other = ours.astype(np.float64), theirs.astype(np.float64)
    finite = finite_rows(one) & finite_rows(other)
    one, other = np.where(finite[:, None], one, 0), np.where(finite[:, None], other, 0)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    dots = np.einsum("ij,ij->i", one, other)
    both_zero = finite & ~one.any(axis=1) & ~other.any(axis=1)
    found = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0)
    return np.asarray(np.where(both_zero, 1.0, np.clip(found, -1, 1)))


def finite_rows(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """bool[n]: whether every number of the row is finite."""
    return np.asarray(np.isfinite(values).all(axis=1), np.bool_)


def neighbour_agreement(ours: Floats, theirs: Floats) -> float:
    """Share of rows whose nearest other row, by cosine, is the same among `ours` as among `theirs`."""
    if len(ours) < 2:
        return 1.0
    return float((_nearest(ours) == _nearest(theirs)).mean())


def recall_at(k: int, ours: Floats, theirs: Floats, items: Floats | None = None) -> float:
    """Share of the first k items that `theirs` asks for, best first, which are among the first k that `ours` does.

    items  f32[m, d], asked by both; None: the rows of `theirs` themselves, each but the one that asks
    """
    packed = pack_items(np.ascontiguousarray(theirs if items is None else items), metric="cosine")
    exclude = None if items is not None else [np.array([at], np.int64) for at in range(len(theirs))]
    lists = []
    for queries in (ours, theirs):
        safe = np.where(np.isfinite(queries).all(axis=1, keepdims=True), queries, np.float32(0))
        found, _, counts = scan_topk(packed, np.ascontiguousarray(safe), k, exclude=exclude)
        lists.append([set(row[:count].tolist()) for row, count in zip(found, counts, strict=True)])
    shares = [len(mine & right) / len(right) for mine, right in zip(*lists, strict=True) if right]
    return float(np.mean(shares)) if shares else 1.0


def macro_f1(labels: Classes, predicted: Classes) -> float:
    """The mean over classes that are a label or a prediction of each class's harmonic mean of precision and recall."""
    scores = []
    for one in np.union1d(labels, predicted):
        right = int(((labels == one) & (predicted == one)).sum())
        scores.append(2 * right / (int((labels == one).sum()) + int((predicted == one).sum())))
    return float(np.mean(scores))


def calibration_error(scores: Floats, labels: Classes) -> float:
    """How far the best score is from the share that it is right, over 15 equal bins of scores, weighted by rows."""
    best = scores.max(axis=1)
    right = scores.argmax(axis=1) == labels
    bins = np.minimum((best * _BINS).astype(np.int64).clip(0), _BINS - 1)
    total = 0.0
    for one in np.unique(bins):
        inside = bins == one
        total += inside.mean() * abs(float(best[inside].mean()) - float(right[inside].mean()))
    return float(total)


def order_agreement(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> float:
    """Share of pairs of rows that both put in the same order; pairs that `theirs` finds equal do not count."""
    first, second = np.triu_indices(len(theirs), 1)
    wanted = np.sign(theirs[first].astype(np.float64) - theirs[second])
    found = np.sign(ours[first].astype(np.float64) - ours[second])
    told = wanted != 0
    return float((wanted == found)[told].mean()) if told.any() else 1.0


def _nearest(vectors: Floats) -> Classes:
    safe = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, np.float32(0)).astype(np.float64)
    units = safe / np.maximum(np.linalg.norm(safe, axis=1, keepdims=True), 1e-30)
    alike = units @ units.T
    np.fill_diagonal(alike, -np.inf)
    return np.asarray(alike.argmax(axis=1), np.int64)
