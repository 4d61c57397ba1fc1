"""Codes that decode to within half a step."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import _dispatch, reference


def worst_steps(x: NDArray[np.float32]) -> float:
    """The largest decoding error, in steps of its row's scale."""
    codes, scale = kernels.quantize_int8(x)
    step = scale.astype(np.float64)[:, None]
    error = np.abs(x.astype(np.float64) - codes * step)
    return float((error / np.where(step > 0, step, 1)).max())


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("d", [1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 384])
def test_codes_decode_to_within_half_a_step(d: int, rng: np.random.Generator) -> None:
    for magnitude in (1e-45, 1e-44, 1e-40, 1e-37, 1e-31, 1e-29, 1e-10, 1.0, 1e20, 1e38):
        x = (rng.standard_normal((20, d)) * magnitude).clip(-3.4e38, 3.4e38).astype(np.float32)
        assert worst_steps(x) <= 0.5 + 2.0**-15


@pytest.mark.usefixtures("variant")
def test_codes_are_the_reference_bit_for_bit(rng: np.random.Generator) -> None:
    for magnitude in (1e-44, 1e-38, 1e-30, 1.0, 1e38):
        x = (rng.standard_normal((50, 43)) * magnitude).clip(-3.4e38, 3.4e38).astype(np.float32)
        for got, expected in zip(kernels.quantize_int8(x), reference.quantize_int8(x), strict=True):
            np.testing.assert_array_equal(got, expected)


def test_every_variant_gives_the_same_codes(rng: np.random.Generator) -> None:
    x = rng.standard_normal((40, 67), dtype=np.float32)
    answers = set()
    for name in kernels.variants():
        with _dispatch.force(name):
            answers.add(b"".join(part.tobytes() for part in kernels.quantize_int8(x)))
    assert len(answers) == 1


@pytest.mark.usefixtures("variant")
def test_the_largest_value_takes_the_largest_code_and_zero_rows_stay_zero() -> None:
    codes, scale = kernels.quantize_int8(np.array([[-2.0, 1.0, 0.0], [0.0, -0.0, 0.0]], dtype=np.float32))
    assert codes.tolist() == [[-127, 64, 0], [0, 0, 0]]
    assert scale.tolist() == [np.float32(2) / np.float32(127), 0]


@pytest.mark.usefixtures("variant")
def test_no_code_leaves_the_symmetric_range(rng: np.random.Generator) -> None:
    # Peaks of every mantissa: the product of a value and the inverse of its own scale must never round past 127.
    peaks = np.linspace(1, 2, 20_001, dtype=np.float32)[:, None]
    codes, _ = kernels.quantize_int8(np.concatenate([peaks, -peaks], axis=1))
    assert (codes == [127, -127]).all()


def test_halves_round_trip_and_values_past_their_range_are_refused() -> None:
    x = np.array([[1.0, -65504.0, 2.0**-24], [65519.0, 0.1, 0.0]], dtype=np.float32)
    halves = kernels.to_float16(x)
    assert halves.dtype == np.float16
    assert halves[0].tolist() == [1.0, -65504.0, 2.0**-24]
    assert halves[1, 0] == 65504
    with pytest.raises(kernels.NotFiniteError, match=r"x\[1\].*65504"):
        kernels.to_float16(np.array([[1.0], [65520.0]], dtype=np.float32))
