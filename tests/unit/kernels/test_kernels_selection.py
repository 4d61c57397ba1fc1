"""Top-k: order, ties, counts, and nothing past them."""

from __future__ import annotations

import numpy as np
import pytest

import headrace_kernels as kernels
from headrace_kernels import reference

pytestmark = pytest.mark.usefixtures("variant")


def assert_same(got: kernels.Ranking, expected: kernels.Ranking) -> None:
    assert [part.dtype for part in got] == [np.int64, np.float32, np.int64]
    for left, right in zip(got, expected, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("c", [1, 2, 3, 4, 5, 15, 16, 17, 33, 100, 1000])
def test_topk_is_a_stable_sort_cut_at_k(c: int, rng: np.random.Generator) -> None:
    for k in (1, 2, 3, 10, 99, 1000):
        scores = rng.standard_normal((3, c), dtype=np.float32)
        assert_same(kernels.topk(scores, k), reference.topk(scores, k))


@pytest.mark.parametrize("order", ["ascending", "descending", "equal", "two values", "sawtooth"])
@pytest.mark.parametrize("k", [1, 7, 64, 500])
def test_adversarial_orders_change_nothing(order: str, k: int, rng: np.random.Generator) -> None:
    c = 500
    row = {
        "ascending": np.arange(c),
        "descending": -np.arange(c),
        "equal": np.zeros(c),
        "two values": rng.integers(0, 2, c),
        "sawtooth": np.arange(c) % 17,
    }[order]
    scores = row.astype(np.float32)[None]
    assert_same(kernels.topk(scores, k), reference.topk(scores, k))
    by_logit, expected = kernels.softmax_topk(scores, k), reference.softmax_topk(scores, k)
    np.testing.assert_array_equal(by_logit[0], expected[0])


def test_equal_scores_go_to_the_lower_index() -> None:
    scores = np.array([[1, 3, 3, 2, 3, 2]], dtype=np.float32)
    assert kernels.topk(scores, 4)[0].tolist() == [[1, 2, 4, 3]]
    assert kernels.softmax_topk(scores, 4)[0].tolist() == [[1, 2, 4, 3]]


def test_negative_zero_ties_with_zero_and_keeps_its_sign() -> None:
    indices, scores, _ = kernels.topk(np.array([[-0.0, 0.0, -1.0]], dtype=np.float32), 3)
    assert indices.tolist() == [[0, 1, 2]]
    assert np.signbit(scores).tolist() == [[True, False, True]]


def test_denormals_are_told_apart() -> None:
    tiny = np.array([[1, 3, 2, -1, 0]], dtype=np.float32) * np.float32(1.4e-45)
    assert kernels.topk(tiny, 5)[0].tolist() == [[1, 2, 0, 4, 3]]


def test_infinite_scores_are_ranked_and_negative_infinity_comes_last() -> None:
    scores = np.array([[0.0, -np.inf, np.inf, -3e38, -np.inf]], dtype=np.float32)
    assert kernels.topk(scores, 5)[0].tolist() == [[2, 0, 3, 1, 4]]


def test_a_row_of_negative_infinities_is_still_ranked_by_topk() -> None:
    assert kernels.topk(np.full((1, 40), -np.inf, dtype=np.float32), 3)[0].tolist() == [[0, 1, 2]]


def test_k_past_the_classes_answers_what_there_is() -> None:
    indices, scores, counts = kernels.softmax_topk(np.zeros((2, 3), dtype=np.float32), 10**12)
    assert indices.shape == scores.shape == (2, 3)
    assert counts.tolist() == [3, 3]


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match=f"k is {k}, at least 1 is needed"):
        kernels.topk(np.zeros((1, 3), dtype=np.float32), k)


@pytest.mark.parametrize("k", [1.0, "3", None, True])
def test_k_that_is_no_whole_number_is_refused(k: object) -> None:
    with pytest.raises(kernels.DtypeError, match="k must be a whole number"):
        kernels.topk(np.zeros((1, 3), dtype=np.float32), k)  # type: ignore[arg-type]


def test_numpy_integers_are_whole_numbers() -> None:
    assert kernels.topk(np.zeros((1, 3), dtype=np.float32), np.int32(2))[0].tolist() == [[0, 1]]  # type: ignore[arg-type]


def test_threshold_keeps_what_reaches_it_and_marks_the_rest() -> None:
    indices, scores, counts = kernels.topk(np.array([[0.3, 0.9, 0.5], [0.1, 0.2, 0.1]], dtype=np.float32), 3, 0.5)
    assert counts.tolist() == [2, 0]
    assert indices.tolist() == [[1, 2, -1], [-1, -1, -1]]
    assert np.isnan(scores[0, 2])
    assert np.isnan(scores[1]).all()


def test_threshold_is_compared_in_the_precision_of_the_scores() -> None:
    assert kernels.topk(np.array([[0.3]], dtype=np.float32), 1, 0.3)[2].tolist() == [1]


@pytest.mark.parametrize(("threshold", "count"), [(-1e300, 2), (1e300, 0), (np.inf, 0), (-np.inf, 2)])
def test_threshold_past_f32_keeps_all_or_none(threshold: float, count: int) -> None:
    assert kernels.topk(np.array([[-3e38, 3e38]], dtype=np.float32), 2, threshold)[2].tolist() == [count]


def test_threshold_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="threshold is NaN"):
        kernels.softmax_topk(np.zeros((1, 2), dtype=np.float32), 1, threshold=float("nan"))


@pytest.mark.parametrize("column", [0, 3, 4, 8, 16, 31, 36])
def test_topk_refuses_nan_in_every_lane(column: int) -> None:
    scores = np.zeros((2, 37), dtype=np.float32)
    scores[1, column] = np.nan
    with pytest.raises(kernels.NotFiniteError, match=r"scores\[1\] holds NaN"):
        kernels.topk(scores, 1)


@pytest.mark.parametrize("c", [2, 10, 17, 1000, 3001])
def test_fused_probabilities_are_those_of_softmax_bit_for_bit(c: int, rng: np.random.Generator) -> None:
    logits = rng.standard_normal((5, c), dtype=np.float32) * 6
    indices, scores, _ = kernels.softmax_topk(logits, 20)
    np.testing.assert_array_equal(scores, np.take_along_axis(kernels.softmax(logits), indices, axis=1))


def test_probabilities_never_rise_along_a_ranking_of_close_logits() -> None:
    # Neighbouring floats: their probabilities differ by less than the exponential's error.
    base = np.float32(-7.3)
    logits = (base.view(np.int32) + np.arange(4000, dtype=np.int32)).view(np.float32)[None]
    logits[0, 0] = 0
    scores = kernels.softmax_topk(logits, 4000)[1][0]
    assert (np.diff(scores) <= 0).all()


def test_masked_classes_come_last_with_probability_zero() -> None:
    logits = np.array([[-np.inf, 1.0, -np.inf, 1.0]], dtype=np.float32)
    indices, scores, counts = kernels.softmax_topk(logits, 4)
    assert indices.tolist() == [[1, 3, 0, 2]]
    assert scores.tolist() == [[0.5, 0.5, 0.0, 0.0]]
    assert counts.tolist() == [4]
    assert kernels.softmax_topk(logits, 4, threshold=1e-9)[2].tolist() == [2]
