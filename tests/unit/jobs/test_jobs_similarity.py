from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from unit.jobs.asking import answer, refused

from headrace_server.config import InputLimits
from headrace_server.errors import Reason
from headrace_server.jobs.embed import Embed
from headrace_server.jobs.queries import EmbedQuery, ModelRef, SimilarityQuery, SimilarityResult
from headrace_server.jobs.similarity import Similarity
from headrace_server.models.inputs import ImageInput, TextInput
from headrace_server.models.model import PrepareOptions
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository

SENTENCE = ModelRef("sentence")
TEXTS = [TextInput("the cat sat"), TextInput("good film"), TextInput("bad bank")]


@pytest.fixture
def similarity(repository: Repository, limits: InputLimits) -> Similarity:
    return Similarity(repository, limits)


@pytest.fixture
def vectors(repository: Repository, limits: InputLimits) -> np.ndarray:
    query = EmbedQuery(model=SENTENCE, inputs=TEXTS)
    return answer(Embed(repository, limits).submit(query, RequestContext())).embeddings


def ask(similarity: Similarity, left: Any, right: Any = None, **wishes: Any) -> SimilarityResult:
    return answer(similarity.submit(SimilarityQuery(left=left, right=right, **wishes), RequestContext()))


def test_texts_and_their_own_vectors_score_alike(similarity: Similarity, vectors: np.ndarray) -> None:
    by_text = ask(similarity, TEXTS[:1], TEXTS[1:], model=SENTENCE)
    mixed = ask(similarity, vectors[:1], TEXTS[1:], model=SENTENCE)
    other_way = ask(similarity, TEXTS[:1], vectors[1:], model=SENTENCE)
    by_vector = ask(similarity, vectors[:1], vectors[1:])
    expected = vectors[:1] @ vectors[1:].T
    for result in (by_text, mixed, other_way, by_vector):
        assert result.scores.shape == (1, 2)
        np.testing.assert_allclose(result.scores, expected, atol=1e-5)
    assert by_text.model == ModelRef("sentence", "2")
    assert by_vector.model is None


def test_no_right_side_compares_the_left_with_itself(similarity: Similarity, vectors: np.ndarray) -> None:
    result = ask(similarity, TEXTS, model=SENTENCE)
    np.testing.assert_allclose(result.scores, vectors @ vectors.T, atol=1e-5)
    np.testing.assert_allclose(ask(similarity, vectors).scores, result.scores, atol=1e-5)


def test_pairs_are_the_diagonal_of_the_matrix(similarity: Similarity, vectors: np.ndarray) -> None:
    turned = vectors[::-1].copy()
    matrix = ask(similarity, vectors, turned).scores
    pairs = ask(similarity, vectors, turned, mode="pairs").scores
    assert pairs.shape == (3, 1)
    np.testing.assert_allclose(pairs[:, 0], np.diagonal(matrix), atol=1e-6)


def test_both_sides_are_embedded_in_one_submission(similarity: Similarity) -> None:
    context = RequestContext()
    query = SimilarityQuery(left=TEXTS[:1] * 2, right=TEXTS[:1] * 2, model=SENTENCE)
    answer(similarity.submit(query, context))
    assert context.timings.batch_size == 4


def test_metrics_are_cosine_and_dot(similarity: Similarity) -> None:
    left, right = np.array([[3.0, 4.0]]), np.array([[6.0, 8.0], [0.0, 0.0]])
    np.testing.assert_allclose(ask(similarity, left, right).scores, [[1, 0]], atol=1e-6)
    np.testing.assert_allclose(ask(similarity, left, right, metric="dot").scores, [[50, 0]], atol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_a_number_that_is_none_in_float32_is_refused_with_its_place(similarity: Similarity, bad: float) -> None:
    right = np.ones((2, 3))
    right[1, 2] = bad
    with refused(Reason.INVALID_INPUT, field="right.vectors", words=("element 2 of vector 1",)):
        ask(similarity, np.ones((1, 3)), right)


def test_a_dot_product_past_float32_is_refused(similarity: Similarity) -> None:
    huge = np.full((1, 4), 3e38, np.float32)
    with refused(Reason.INVALID_INPUT, field="left", words=("3.4e38",)):
        ask(similarity, huge, huge, metric="dot")
    np.testing.assert_allclose(ask(similarity, huge, huge).scores, [[1]], atol=1e-6)


@pytest.mark.parametrize(
    ("left", "right", "wishes", "field", "words"),
    [
        (np.ones((1, 3)), np.ones((1, 4)), {}, "right.vectors", ("4", "3")),
        (TEXTS, np.ones((1, 4)), {"model": SENTENCE}, "right.vectors", ("4", "model", "8")),
        (np.ones((2, 3)), np.ones((3, 3)), {"mode": "pairs"}, "right", ("3 vectors", "2")),
        (np.ones((5, 3)), np.ones((5, 3)), {}, "right", ("5 × 5", "20")),
        (np.ones((5, 3)), None, {}, "right", ("5 × 5", "20")),
        (np.ones((0, 3)), None, {}, "left.vectors", ("0×3",)),
        (np.ones((2, 0)), None, {}, "left.vectors", ("2×0",)),
        (np.ones(3), None, {}, "left.vectors", ("3",)),
        ([], None, {"model": SENTENCE}, "left.inputs.inputs", ("0 inputs",)),
        (TEXTS * 3, TEXTS[:1], {"model": SENTENCE}, "left.inputs.inputs", ("9 inputs", "8")),
        (TEXTS, None, {}, "model.name", ("required",)),
        (TEXTS, [ImageInput(b"x")], {"model": SENTENCE}, "right.inputs.inputs[0]", ("image", "text")),
    ],
)
def test_sides_that_do_not_fit_are_named(
    similarity: Similarity, left: Any, right: Any, wishes: dict[str, Any], field: str, words: tuple[str, ...]
) -> None:
    with refused(Reason.INVALID_INPUT, field=field, words=words):
        ask(similarity, left, right, **wishes)


def test_a_text_that_must_not_be_cut_is_named_by_its_side(similarity: Similarity) -> None:
    long = TextInput("cat " * 31)
    with refused(Reason.INVALID_INPUT, field="right.inputs.inputs[1].text", words=("bytes",)):
        ask(similarity, TEXTS, [TEXTS[0], long], model=SENTENCE, prepare=PrepareOptions(truncate=False))


def test_a_model_that_does_not_embed_is_the_wrong_one(similarity: Similarity) -> None:
    with refused(Reason.WRONG_TASK, words=("cannot embed", "classify")):
        ask(similarity, TEXTS, model=ModelRef("mood"))
