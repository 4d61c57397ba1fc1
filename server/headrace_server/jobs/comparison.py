"""Comparison: how far the answers of two versions to one request agree.

classify         an answer an input     the same best label; scores of the labels that both gave, by name
embed            one an input           cosine of the two vectors ≥ 0.99; the cosine's difference from 1
similarity       one a pair of inputs   scores no further apart than 0.05 (of a dot product: 5%)
rerank           one a request          the same document first; scores of the documents that both gave
infer            one an output tensor   numbers apart by at most 1% of the largest that was served, or 0.01 where that
                                        is more; other types equal
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.jobs.infer_queries import InferResult
from headrace_server.jobs.input_vectors import EmbeddedInputs
from headrace_server.jobs.queries import ClassifyResult, EmbedResult, RerankResult, SimilarityResult, Vectors
from headrace_server.models.signature import BFLOAT16
from headrace_server.serving.statistics import Comparison

__all__ = ["compare", "num_answers"]

MIN_COSINE = 0.99
MAX_SIMILARITY_DIFFERENCE = 0.05
MAX_TENSOR_DIFFERENCE = 0.01


def num_answers(answer: object) -> int:
    """How many answers would be compared; 0 for what cannot be."""
    kind = _KINDS.get(type(answer))
    return 0 if kind is None else kind[0](answer)


def compare(served: Any, shadowed: Any) -> Comparison:
    """What was served beside what the shadow gave, of one type. Nothing of the second can fail it: what does not fit
    disagrees."""
    count, compared = _KINDS[type(served)]
    if type(shadowed) is not type(served) or count(shadowed) != count(served):
        return Comparison(count(served), 0)
    return compared(served, shadowed)


def _classified(served: ClassifyResult, shadowed: ClassifyResult) -> Comparison:
    agreeing = num_scores = 0
    difference = 0.0
    for one, other in zip(served.results, shadowed.results, strict=True):
        first = one.labels[0].label if one.labels else None
        agreeing += first == (other.labels[0].label if other.labels else None)
        scores = {each.label: each.score for each in one.labels}
        for each in other.labels:
            score = scores.get(each.label)
            if score is not None:
                difference += abs(score - each.score)
                num_scores += 1
    return Comparison(len(served.results), agreeing, difference, num_scores)


def _embedded(served: Vectors, shadowed: Vectors) -> Comparison:
    if served.shape != shadowed.shape:
        return Comparison(len(served), 0)
    one, other = served.astype(np.float64), shadowed.astype(np.float64)
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    dots = np.einsum("ij,ij->i", one, other)
    both_zero = ~one.any(axis=1) & ~other.any(axis=1)
    cosines = np.where(both_zero, 1.0, np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0))
    return Comparison(len(one), int((cosines >= MIN_COSINE).sum()), float(np.abs(1 - cosines).sum()), len(one))


def _alike(served: SimilarityResult, shadowed: SimilarityResult) -> Comparison:
    difference = np.abs(served.scores - shadowed.scores, dtype=np.float64)
    near = difference <= MAX_SIMILARITY_DIFFERENCE * np.maximum(1.0, np.abs(served.scores))
    return Comparison(near.size, int(near.sum()), float(difference.sum()), near.size)


def _ordered(served: RerankResult, shadowed: RerankResult) -> Comparison:
    first, other = (each.documents[0].index if each.documents else None for each in (served, shadowed))
    scores = {each.index: each.score for each in served.documents}
    both = [(scores[each.index], each.score) for each in shadowed.documents if each.index in scores]
    return Comparison(1, int(first == other), sum(abs(one - two) for one, two in both), len(both))


_Array = npt.NDArray[Any]


def tensors_compared(served: Mapping[str, _Array], shadowed: Mapping[str, _Array]) -> Comparison:
    """Outputs by name; the difference of one is its largest."""
    agreeing = num_scores = 0
    sum_difference = 0.0
    for name, one in served.items():
        other = shadowed.get(name)
        if other is None or other.shape != one.shape:
            continue
        if one.dtype == other.dtype == BFLOAT16:
            one, other = one.astype(np.float32), other.astype(np.float32)
        if one.dtype.kind not in "fiu" or other.dtype.kind not in "fiu":
            agreeing += bool(np.array_equal(one, other))
            continue
        if not one.size:
            agreeing += 1
            continue
        with np.errstate(invalid="ignore"):  # of infinities
            difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
        difference[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0
        largest = float(difference.max())
        bound = MAX_TENSOR_DIFFERENCE * max(1.0, float(np.abs(one[np.isfinite(one)], dtype=np.float64).max(initial=0)))
        agreeing += largest <= bound
        if np.isfinite(largest):
            sum_difference += largest
            num_scores += 1
    return Comparison(len(served), agreeing, sum_difference, num_scores)


_KINDS: dict[type, tuple[Callable[[Any], int], Callable[[Any, Any], Comparison]]] = {
    ClassifyResult: (lambda answer: len(answer.results), _classified),
    EmbedResult: (
        lambda answer: len(answer.embeddings),
        lambda served, shadowed: _embedded(served.embeddings, shadowed.embeddings),
    ),
    EmbeddedInputs: (
        lambda answer: len(answer.vectors),
        lambda served, shadowed: _embedded(served.vectors, shadowed.vectors),
    ),
    SimilarityResult: (lambda answer: answer.scores.size, _alike),
    RerankResult: (lambda answer: 1, _ordered),
    InferResult: (
        lambda answer: len(answer.outputs),
        lambda served, shadowed: tensors_compared(served.outputs, shadowed.outputs),
    ),
}
