"""The synthetic subscribers: the same for the same seed, and split without overlap."""

from __future__ import annotations

import numpy as np

from headrace_server.prepare.churn import NUMBERS, WORDS, synthetic_subscribers


def test_the_same_seed_draws_the_same_rows_and_another_seed_others() -> None:
    first, again, other = synthetic_subscribers(500), synthetic_subscribers(500), synthetic_subscribers(500, seed=1)
    for name, column in first.columns.items():
        np.testing.assert_array_equal(column, again.columns[name])
    np.testing.assert_array_equal(first.leaves, again.leaves)
    assert (first.leaves != other.leaves).any()


def test_columns_have_their_types_and_stay_in_range() -> None:
    table = synthetic_subscribers(2000)
    assert list(table.columns) == [*WORDS, *NUMBERS]
    for name, choices in WORDS.items():
        assert set(table.columns[name]) == set(choices)
    for name in NUMBERS:
        column = table.columns[name]
        assert column.dtype == np.float32
        assert np.isfinite(column).all()
        assert column.min() >= 0
    assert 0.1 < table.leaves.mean() < 0.5


def test_two_thirds_and_a_held_out_third_make_the_whole() -> None:
    table = synthetic_subscribers(900)
    train, held_out = table.thirds()
    assert (len(train.leaves), len(held_out.leaves)) == (600, 300)
    np.testing.assert_array_equal(np.concatenate([train.probability, held_out.probability]), table.probability)
