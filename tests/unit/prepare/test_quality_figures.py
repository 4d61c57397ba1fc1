"""Figures of quality beside scikit-learn's, and beside what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from headrace_server.prepare.quality.figures import (
    calibration_error,
    cosines,
    macro_f1,
    neighbour_agreement,
    order_agreement,
    recall_at,
)

RNG = np.random.default_rng(3)


def test_cosines_ignore_length_and_count_what_is_not_finite_as_no_answer() -> None:
    theirs = np.array([[1, 0], [3, 4], [0, 0], [1, 1], [2, 0]], np.float32)
    ours = np.array([[5, 0], [4, -3], [0, 0], [np.nan, 1], [0, 0]], np.float32)
    assert cosines(ours, theirs) == pytest.approx([1, 0, 1, 0, 0])


def test_single_numbers_are_compared_as_one_vector() -> None:
    theirs = np.array([[1.0], [2.0], [-2.0]])
    assert cosines(theirs * 2, theirs) == pytest.approx([1])
    assert cosines(theirs[::-1], theirs) == pytest.approx([0 / 9 + (-2 + 4 - 2) / 9])


def test_macro_f1_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for classes in (2, 5, 40):
        labels, predicted = RNG.integers(classes, size=(2, 60))
        expected = metrics.f1_score(labels, predicted, average="macro", zero_division=0)
        assert macro_f1(labels, predicted) == pytest.approx(expected)


def test_calibration_error_is_the_gap_of_confidence_and_accuracy() -> None:
    scores = np.tile(np.array([[0.9, 0.1]], np.float32), (10, 1))
    labels = np.array([0] * 9 + [1])
    assert calibration_error(scores, labels) == pytest.approx(0, abs=1e-6)
    assert calibration_error(scores, np.array([0] * 4 + [1] * 6)) == pytest.approx(0.5, abs=1e-6)
    halves = np.concatenate([scores, np.tile(np.array([[0.6, 0.4]], np.float32), (10, 1))])
    assert calibration_error(halves, np.concatenate([labels, np.ones(10, int)])) == pytest.approx(0.3, abs=1e-6)


def test_neighbours_agree_until_one_row_moves() -> None:
    theirs = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    assert neighbour_agreement(theirs * 3, theirs) == 1
    moved = theirs.copy()
    moved[1] = [0.05, 1]
    assert neighbour_agreement(moved, theirs) < 1


def test_recall_counts_what_the_first_k_share() -> None:
    items = np.eye(6, dtype=np.float32)
    theirs = np.array([[6, 5, 4, 3, 2, 1]], np.float32)
    ours = np.array([[6, 5, 1, 2, 3, 4]], np.float32)
    assert recall_at(2, ours, theirs, items) == 1
    assert recall_at(3, ours, theirs, items) == pytest.approx(2 / 3)
    assert recall_at(3, np.full_like(ours, np.nan), theirs, items) == pytest.approx(1)  # of zeros: the first three


def test_rows_are_never_their_own_neighbours() -> None:
    vectors = RNG.normal(size=(12, 4)).astype(np.float32)
    noisy = vectors + RNG.normal(scale=2, size=vectors.shape).astype(np.float32)
    assert recall_at(3, vectors, vectors) == 1
    assert recall_at(3, noisy, vectors) < 0.9
    angles = np.radians([0, 30, -35])
    theirs = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ours = theirs.copy()
    ours[0] = np.cos(np.radians(-5)), np.sin(np.radians(-5))  # itself is still the nearest, of the others another
    assert recall_at(1, ours, theirs) == pytest.approx(2 / 3)


def test_order_agreement_counts_pairs() -> None:
    theirs = np.array([0.1, 0.2, 0.2, 0.9])
    assert order_agreement(theirs**3, theirs) == 1
    assert order_agreement(-theirs, theirs) == 0
    assert order_agreement(np.array([0.2, 0.1, 0.3, 0.9]), theirs) == pytest.approx(4 / 5)
    assert order_agreement(np.full(4, np.nan), theirs) == 0
