"""When the answers of two versions agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headrace_server.jobs.comparison import compare, num_answers, tensors_compared
from headrace_server.jobs.queries import (
    Classification,
    ClassifyResult,
    EmbedResult,
    InputUsage,
    LabelScore,
    ModelRef,
    RankedDocument,
    RerankResult,
    SimilarityResult,
    TokenizeResult,
)

ONE, TWO = ModelRef("m", "1"), ModelRef("m", "2")


def classified(*rankings: dict[str, float], model: ModelRef = ONE) -> ClassifyResult:
    results = tuple(
        Classification(
            tuple(LabelScore(label, index, score) for index, (label, score) in enumerate(ranking.items())), InputUsage()
        )
        for ranking in rankings
    )
    return ClassifyResult(results, model)


def embedded(*vectors: list[float], model: ModelRef = ONE) -> EmbedResult:
    return EmbedResult(np.array(vectors, dtype=np.float32), (), model)


def alike(*rows: list[float], model: ModelRef = ONE) -> SimilarityResult:
    return SimilarityResult(np.array(rows, dtype=np.float32), model)


def reranked(*documents: tuple[int, float], model: ModelRef = ONE) -> RerankResult:
    return RerankResult(
        tuple(RankedDocument(index, score, InputUsage()) for index, score in documents), "embedding", model
    )


def test_labels_agree_by_the_best_and_are_told_apart_by_name() -> None:
    seen = compare(
        classified({"good": 0.9, "bad": 0.1}, {"good": 0.6, "bad": 0.4}, {}),
        classified({"good": 0.7, "fine": 0.2}, {"bad": 0.8, "good": 0.2}, {}, model=TWO),
    )
    assert (seen.num_answers, seen.num_agreeing, seen.num_scores) == (3, 2, 3)
    assert seen.sum_difference == pytest.approx(0.2 + 0.4 + 0.4)


def test_vectors_agree_by_their_angle() -> None:
    tilted = float(np.cos(0.2))
    seen = compare(
        embedded([1, 0], [2, 0], [0, 0], [1, 0], [0, 0]),
        embedded([3, 0], [tilted, float(np.sin(0.2))], [0, 0], [0, 1], [1, 0], model=TWO),
    )
    assert (seen.num_answers, seen.num_agreeing, seen.num_scores) == (5, 2, 5)
    assert seen.sum_difference == pytest.approx(1 - tilted + 2, abs=1e-6)


def test_scores_agree_where_they_are_near() -> None:
    seen = compare(alike([0.5, 0.5], [100.0, 0.5]), alike([0.54, 0.56], [104.0, 0.5], model=TWO))
    assert (seen.num_answers, seen.num_agreeing) == (4, 3)
    assert seen.sum_difference == pytest.approx(4.1, abs=1e-4)


def test_an_order_agrees_by_its_first() -> None:
    served = reranked((2, 0.9), (0, 0.5), (1, 0.1))
    seen = compare(served, reranked((2, 0.8), (1, 0.3), model=TWO))
    assert (seen.num_answers, seen.num_agreeing, seen.num_scores) == (1, 1, 2)
    assert seen.sum_difference == pytest.approx(0.3)
    assert compare(served, reranked((0, 0.8), (2, 0.3), model=TWO)).num_agreeing == 0


def test_tensors_agree_within_a_hundredth() -> None:
    seen = tensors_compared(
        {
            "near": np.array([1.0, 200.0], np.float32),
            "far": np.array([1.0]),
            "text": np.array([b"a", b"b"], dtype=object),
            "whole": np.array([1, 2], np.uint8),
            "nan": np.array([np.nan, np.inf, 1.0]),
            "gone": np.zeros(1),
            "flags": np.array([True]),
            "longer": np.zeros(2),
        },
        {
            "near": np.array([1.5, 201.5], np.float32),
            "far": np.array([1.02]),
            "text": np.array([b"a", b"b"], dtype=object),
            "whole": np.array([2, 2], np.uint8),
            "nan": np.array([np.nan, np.inf, 1.0]),
            "flags": np.array([True]),
            "longer": np.zeros(3),
        },
    )
    assert (seen.num_answers, seen.num_agreeing) == (8, 4)
    assert (seen.num_scores, seen.sum_difference) == (4, pytest.approx(1.5 + 0.02 + 1))


@pytest.mark.parametrize(
    ("served", "shadowed", "count"),
    [
        (embedded([1, 0], [0, 1]), embedded([1, 0, 0], [0, 1, 0]), 2),
        (embedded([1, 0], [0, 1]), embedded([1, 0]), 2),
        (alike([0.5]), embedded([0.5]), 1),
    ],
)
def test_what_does_not_fit_disagrees(served: Any, shadowed: Any, count: int) -> None:
    seen = compare(served, shadowed)
    assert (seen.num_answers, seen.num_agreeing, seen.num_scores) == (count, 0, 0)


def test_what_cannot_be_compared_has_no_answers() -> None:
    assert num_answers(TokenizeResult((), ONE)) == 0
    assert num_answers(classified({}, {})) == 2
