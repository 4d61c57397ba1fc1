"""Softmax and sigmoid at the edges of f32."""

from __future__ import annotations

import numpy as np
import pytest

import headrace_kernels as kernels
from headrace_kernels import reference

pytestmark = pytest.mark.usefixtures("variant")

INF = np.float32(np.inf)
# Around every vector width and its halves, and past one block of the sum.
LENGTHS = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 5000]


@pytest.mark.parametrize("c", LENGTHS)
def test_softmax_is_within_its_bound_at_every_length(c: int, rng: np.random.Generator) -> None:
    logits = rng.standard_normal((4, c), dtype=np.float32) * 8
    exact = logits.astype(np.float64)
    exact = np.exp(exact - exact.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    distance = (logits.max(axis=1, keepdims=True) - logits).astype(np.float64)
    bound = exact * (distance + 80) * 2.0**-24 + 2.0**-149
    assert (np.abs(kernels.softmax(logits) - exact) <= bound).all()


def test_softmax_of_a_masked_class_is_exactly_zero() -> None:
    row = np.array([[1.0, -INF, 2.0, -INF]], dtype=np.float32)
    answer = kernels.softmax(row)
    assert answer[0, 1] == 0
    assert answer[0, 3] == 0
    assert np.allclose(answer, reference.softmax(row), atol=1e-7)


def test_softmax_of_huge_logits_neither_overflows_nor_loses_the_best() -> None:
    row = np.array([[3.4e38, -3.4e38, 3.4e38, 0.0]], dtype=np.float32)
    assert kernels.softmax(row).tolist() == [[0.5, 0.0, 0.5, 0.0]]


def test_softmax_reaches_into_the_denormals() -> None:
    answer = kernels.softmax(np.array([[0.0, -95.0, -103.0, -105.0]], dtype=np.float32))[0]
    assert answer[1] == pytest.approx(np.exp(-95.0), rel=1e-4)
    assert 0 < answer[2] < 3e-45
    assert answer[3] == 0


@pytest.mark.parametrize("kernel", [kernels.softmax, lambda x: kernels.softmax_topk(x, 2)])
@pytest.mark.parametrize("row", [[0.0, np.nan], [0.0, np.inf], [-np.inf, -np.inf], [np.nan, np.inf]])
def test_a_row_without_a_softmax_is_refused_and_named(kernel: object, row: list[float]) -> None:
    logits = np.array([[1.0, 2.0], row, [1.0, 2.0]], dtype=np.float32)
    with pytest.raises(kernels.NotFiniteError, match=r"logits\[1\] has no softmax") as refusal:
        kernel(logits)  # type: ignore[operator]
    assert refusal.value.row == 1


@pytest.mark.parametrize("column", range(0, 40, 3))
def test_softmax_finds_a_nan_in_every_lane(column: int) -> None:
    logits = np.zeros((1, 40), dtype=np.float32)
    logits[0, column] = np.nan
    with pytest.raises(kernels.NotFiniteError):
        kernels.softmax(logits)


def test_sigmoid_is_exact_to_three_ulp_on_both_tails() -> None:
    x = np.concatenate([np.linspace(-87, 87, 100_001), np.geomspace(1e-40, 1, 1000), [0.0, -0.0]]).astype(np.float32)
    e = np.exp(-np.abs(x.astype(np.float64)))
    exact = np.where(x >= 0, 1.0, e) / (1.0 + e)
    ulp = np.spacing(exact.astype(np.float32)).astype(np.float64)
    assert (np.abs(kernels.sigmoid(x) - exact) / ulp).max() <= 3


def test_sigmoid_of_infinities_is_zero_and_one_and_of_zero_a_half() -> None:
    x = np.array([-np.inf, np.inf, 0.0, -3.4e38, 3.4e38], dtype=np.float32)
    assert kernels.sigmoid(x).tolist() == [0.0, 1.0, 0.5, 0.0, 1.0]


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
def test_sigmoid_keeps_any_shape(shape: tuple[int, ...]) -> None:
    assert kernels.sigmoid(np.zeros(shape, dtype=np.float32)).shape == shape


@pytest.mark.parametrize("position", [0, 7, 8, 16, 18])
def test_sigmoid_names_the_position_of_a_nan(position: int) -> None:
    x = np.zeros(19, dtype=np.float32)
    x[position] = np.nan
    with pytest.raises(kernels.NotFiniteError) as refusal:
        kernels.sigmoid(x)
    assert refusal.value.row == position
