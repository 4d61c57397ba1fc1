"""Choosing items that are good and unlike each other: maximal marginal relevance."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace_server.items.catalog import Metric

__all__ = ["maximal_marginal_relevance"]


def maximal_marginal_relevance(
    relevance: NDArray[np.float32],
    vectors: NDArray[np.float32],
    k: int,
    *,
    relevance_weight: float = 0.5,
    metric: Metric = "cosine",
) -> NDArray[np.int64]:
    """i64[min(k, n)]: the candidates chosen, in the order of choice; ties go to the earlier candidate.

    relevance  f32[n], scores of the candidates, best first as a search answers them
    vectors    f32[n, d] of the candidates
    chosen     each time the candidate with the largest
                   weight × relevance − (1 − weight) × largest similarity to those chosen before,
               similarity under the catalog's metric; the first has nothing before it
    raises     ValueError for a weight outside 0 … 1, k < 1, or sizes that disagree
    limits     exact greedy in f64; k × n × d operations
    source     Carbonell and Goldstein, The use of MMR, diversity-based reranking, SIGIR 1998
    """
    num_candidates = len(vectors)
    if not 0 <= relevance_weight <= 1:
        raise ValueError(f"relevance_weight is {relevance_weight}, from 0 to 1")
    if k < 1 or relevance.shape != (num_candidates,):
        raise ValueError(f"k is {k}, at least 1; {relevance.shape} scores for {num_candidates} vectors")
    rows = vectors.astype(np.float64)
    if metric == "cosine":
        lengths = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
        rows = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    wanted = relevance_weight * relevance.astype(np.float64)
    likeness = np.zeros(num_candidates)
    left = np.ones(num_candidates, dtype=np.bool_)
    chosen = np.empty(min(k, num_candidates), dtype=np.int64)
    for step in range(len(chosen)):
        marginal = np.where(left, wanted - (1 - relevance_weight) * likeness, -np.inf)
        best = int(np.argmax(marginal))
        if not left[best]:  # all that is left is infinitely bad
            best = int(np.argmax(left))
        chosen[step] = best
        left[best] = False
        similarity = (rows * rows[best]).sum(axis=1)
        likeness = similarity if step == 0 else np.maximum(likeness, similarity)
    return chosen
