"""Inner products, cosines and unit rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import reference

pytestmark = pytest.mark.usefixtures("variant")

LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 384, 1001]


def normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return rng.standard_normal(shape, dtype=np.float32)


def product_bound(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float64]:
    """(d / 4 + 6) 2^-24 times the sum of |a_k b_k|: docs/kernels.md derives it."""
    sums: NDArray[np.float64] = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64).T
    return (a.shape[1] / 4 + 6) * 2.0**-24 * sums


@pytest.mark.parametrize("d", LENGTHS)
def test_products_are_within_their_bound(d: int, rng: np.random.Generator) -> None:
    for m, n in ((1, 1), (1, 9), (3, 5), (4, 4), (5, 4), (9, 13)):
        a, b = normal(rng, m, d), normal(rng, n, d)
        exact = a.astype(np.float64) @ b.astype(np.float64).T
        assert (np.abs(kernels.dot_matrix(a, b) - exact) <= product_bound(a, b)).all()
        cosine_bound = (d / 2 + 20) * 2.0**-24
        assert np.abs(kernels.cosine_matrix(a, b) - reference.cosine_matrix(a, b)).max() <= cosine_bound


@pytest.mark.parametrize(("m", "n", "d"), [(70, 90, 100), (9, 2000, 7), (300, 3, 700), (2, 5, 40_000)])
def test_blocks_and_panels_leave_no_gap(m: int, n: int, d: int, rng: np.random.Generator) -> None:
    a, b = normal(rng, m, d), normal(rng, n, d)
    exact = a.astype(np.float64) @ b.astype(np.float64).T
    assert (np.abs(kernels.dot_matrix(a, b) - exact) <= product_bound(a, b)).all()


@pytest.mark.parametrize("d", LENGTHS)
def test_a_pair_has_the_bits_of_the_matrix_diagonal(d: int, rng: np.random.Generator) -> None:
    for n in (1, 2, 3, 4, 5, 11):
        a, b = normal(rng, n, d), normal(rng, n, d)
        np.testing.assert_array_equal(kernels.dot_pairs(a, b), np.diagonal(kernels.dot_matrix(a, b)))
        np.testing.assert_array_equal(kernels.cosine_pairs(a, b), np.diagonal(kernels.cosine_matrix(a, b)))


def test_a_score_does_not_depend_on_its_place(rng: np.random.Generator) -> None:
    a, b = normal(rng, 11, 65), normal(rng, 23, 65)
    whole = kernels.cosine_matrix(a, b)
    for rows in (slice(0, 1), slice(2, 7), slice(3, 11)):
        for columns in (slice(0, 1), slice(5, 8), slice(1, 23)):
            np.testing.assert_array_equal(kernels.cosine_matrix(a[rows], b[columns]), whole[rows, columns])


def test_products_are_symmetric_bit_for_bit(rng: np.random.Generator) -> None:
    a, b = normal(rng, 7, 100), normal(rng, 6, 100)
    np.testing.assert_array_equal(kernels.dot_matrix(a, b), kernels.dot_matrix(b, a).T)


def test_a_row_with_itself_has_cosine_one_and_never_more(rng: np.random.Generator) -> None:
    a = normal(rng, 500, 33)
    cosines = kernels.cosine_pairs(a, a)
    assert cosines.max() <= 1
    np.testing.assert_allclose(cosines, 1, atol=4e-7)
    assert kernels.cosine_pairs(a, -a).min() >= -1


def test_a_zero_row_has_cosine_zero_and_stays_zero(rng: np.random.Generator) -> None:
    a = normal(rng, 3, 20)
    a[1] = 0
    assert not kernels.cosine_matrix(a, a)[1].any()
    assert not kernels.normalize_rows(a)[1].any()


@pytest.mark.parametrize("scale", [1e-45, 1e-40, 1e-30, 1e-20, 1e-11, 1e-10, 1e10, 1e18, 1e19, 1e30, 1e38])
def test_magnitude_does_not_matter_to_angles_and_unit_rows(scale: float, rng: np.random.Generator) -> None:
    directions = rng.integers(-3, 4, (6, 40)).astype(np.float32)
    scaled = directions * np.float32(scale)
    np.testing.assert_allclose(kernels.normalize_rows(scaled), reference.normalize_rows(scaled), rtol=1e-6)
    for other in (directions, scaled):
        np.testing.assert_allclose(
            kernels.cosine_matrix(scaled, other), reference.cosine_matrix(scaled, other), atol=1e-6
        )
    np.testing.assert_allclose(
        kernels.cosine_pairs(scaled, directions), reference.cosine_pairs(scaled, directions), atol=1e-6
    )


def test_an_extreme_neighbour_changes_no_bit(rng: np.random.Generator) -> None:
    a = normal(rng, 8, 50)
    expected = kernels.cosine_matrix(a[:4], a[:4])
    a[5] *= np.float32(1e30)
    a[6] *= np.float32(1e-35)
    np.testing.assert_array_equal(kernels.cosine_matrix(a, a)[:4, :4], expected)


@pytest.mark.parametrize("d", LENGTHS)
def test_unit_rows_are_within_their_bound(d: int, rng: np.random.Generator) -> None:
    x = normal(rng, 9, d)
    exact = x.astype(np.float64)
    exact /= np.sqrt((exact * exact).sum(axis=1, keepdims=True))
    error = np.abs(kernels.normalize_rows(x) - exact)
    assert (error <= (d / 16 + 8) * 2.0**-24 * np.abs(exact)).all()


def test_in_place_and_out_of_place_give_the_same_bits(rng: np.random.Generator) -> None:
    x = normal(rng, 5, 70)
    fresh = kernels.normalize_rows(x)
    out = np.empty_like(x)
    assert kernels.normalize_rows(x, out) is out
    assert kernels.normalize_rows(x, x) is x
    np.testing.assert_array_equal(out, fresh)
    np.testing.assert_array_equal(x, fresh)


def test_refusal_in_place_leaves_every_row_untouched(rng: np.random.Generator) -> None:
    x = normal(rng, 5, 70)
    x[3, 69] = np.inf
    before = x.copy()
    with pytest.raises(kernels.NotFiniteError, match=r"x\[3\]"):
        kernels.normalize_rows(x, x)
    np.testing.assert_array_equal(x, before)


def test_out_that_overlaps_its_input_is_refused() -> None:
    memory = np.ones((6, 4), dtype=np.float32)
    with pytest.raises(kernels.ShapeError, match="overlaps"):
        kernels.normalize_rows(memory[:5], memory[1:])


@pytest.mark.parametrize("fault", ["shape", "dtype", "read-only", "strided"])
def test_out_that_cannot_hold_the_answer_is_refused(fault: str) -> None:
    x = np.ones((4, 6), dtype=np.float32)
    outs: dict[str, NDArray[Any]] = {
        "shape": np.empty((4, 5), dtype=np.float32),
        "dtype": np.empty((4, 6), dtype=np.float64),
        "read-only": np.empty((4, 6), dtype=np.float32),
        "strided": np.empty((4, 12), dtype=np.float32)[:, ::2],
    }
    out = outs[fault]
    out.flags.writeable = fault != "read-only"
    with pytest.raises((kernels.ShapeError, kernels.DtypeError), match="out"):
        kernels.normalize_rows(x, out)


def test_in_place_on_a_view_that_must_be_copied_is_refused() -> None:
    x = np.ones((4, 12), dtype=np.float32)[:, ::2]
    with pytest.raises(kernels.ShapeError, match="C-contiguous"):
        kernels.normalize_rows(x, x)


@pytest.mark.parametrize("kernel", [kernels.dot_matrix, kernels.dot_pairs])
def test_a_product_past_f32_is_an_overflow(kernel: object) -> None:
    big = np.full((2, 8), 1e30, dtype=np.float32)
    with pytest.raises(OverflowError, match=r"3\.4e38"):
        kernel(big, big)  # type: ignore[operator]


@pytest.mark.parametrize("kernel", [kernels.dot_matrix, kernels.cosine_matrix])
def test_a_bad_row_is_found_though_the_other_side_is_zero_or_empty(kernel: object) -> None:
    bad = np.array([[1.0, np.inf]], dtype=np.float32)
    for other in (np.zeros((1, 2), dtype=np.float32), np.zeros((0, 2), dtype=np.float32)):
        with pytest.raises(kernels.NotFiniteError, match=r"a\[0\]"):
            kernel(bad, other)  # type: ignore[operator]
        with pytest.raises(kernels.NotFiniteError, match=r"b\[0\]"):
            kernel(other, bad)  # type: ignore[operator]


@pytest.mark.parametrize("kernel", [kernels.dot_matrix, kernels.dot_pairs, kernels.cosine_matrix, kernels.cosine_pairs])
def test_rows_of_different_lengths_are_refused(kernel: object) -> None:
    with pytest.raises(kernels.ShapeError, match="axis 1 must be equal"):
        kernel(np.zeros((2, 3), dtype=np.float32), np.zeros((2, 4), dtype=np.float32))  # type: ignore[operator]


@pytest.mark.parametrize("kernel", [kernels.dot_pairs, kernels.cosine_pairs])
def test_pairs_of_different_counts_are_refused(kernel: object) -> None:
    with pytest.raises(kernels.ShapeError, match="axis 0 must be equal"):
        kernel(np.zeros((1, 3), dtype=np.float32), np.zeros((2, 3), dtype=np.float32))  # type: ignore[operator]
