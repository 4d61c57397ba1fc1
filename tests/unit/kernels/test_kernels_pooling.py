"""Pooling: what is masked cannot reach the answer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import _dispatch, reference

pytestmark = pytest.mark.usefixtures("variant")

Pool = Callable[..., NDArray[np.float32]]
POOLS: dict[str, Pool] = {
    name: getattr(kernels, name)
    for name in ("mean_pool", "mean_pool_normalize", "max_pool", "cls_pool", "last_token_pool")
}


def batch(rng: np.random.Generator, b: int, s: int, d: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    hidden = rng.standard_normal((b, s, d), dtype=np.float32)
    return hidden, rng.integers(0, 2, (b, s))


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("d", [1, 3, 4, 15, 16, 17, 33, 384])
def test_pool_is_the_reference(name: str, d: int, rng: np.random.Generator) -> None:
    for s in (1, 2, 3, 4, 5, 9, 40):
        hidden, mask = batch(rng, 4, s, d)
        mask[0] = 1
        mask[1] = 0
        got, expected = POOLS[name](hidden, mask), getattr(reference, name)(hidden, mask)
        tolerance = 0 if name in {"max_pool", "cls_pool", "last_token_pool"} else 4e-7
        np.testing.assert_allclose(got, expected, rtol=0, atol=tolerance)
        assert not got[1].any()


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("garbage", [np.nan, np.inf, 3e38])
def test_masked_tokens_cannot_reach_the_answer(name: str, garbage: float, rng: np.random.Generator) -> None:
    hidden, mask = batch(rng, 3, 11, 21)
    mask[:, 4] = 1
    expected = POOLS[name](hidden, mask)
    hidden[mask == 0] = garbage
    np.testing.assert_array_equal(POOLS[name](hidden, mask), expected)


@pytest.mark.parametrize("name", POOLS)
def test_padding_further_changes_no_bit(name: str, rng: np.random.Generator) -> None:
    hidden = rng.standard_normal((2, 13, 70), dtype=np.float32)
    expected = POOLS[name](hidden, np.ones((2, 13), dtype=np.int64))
    for left, right in ((0, 5), (3, 0), (2, 9)):
        padded = np.pad(hidden, ((0, 0), (left, right), (0, 0)), constant_values=7)
        mask = np.pad(np.ones((2, 13), dtype=np.int64), ((0, 0), (left, right)))
        np.testing.assert_array_equal(POOLS[name](padded, mask), expected)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.int32, np.int64])
def test_every_mask_dtype_says_the_same(name: str, dtype: type, rng: np.random.Generator) -> None:
    hidden, mask = batch(rng, 5, 8, 9)
    np.testing.assert_array_equal(POOLS[name](hidden, mask.astype(dtype)), POOLS[name](hidden, mask))


def test_mask_values_other_than_zero_keep_their_token(rng: np.random.Generator) -> None:
    hidden, mask = batch(rng, 5, 8, 9)
    # 256 and 2^32 have low bytes of zero: a mask cut to bytes would drop them.
    for value in (2, -1, 256, 2**32):
        np.testing.assert_array_equal(kernels.mean_pool(hidden, mask * value), kernels.mean_pool(hidden, mask))


def test_mask_may_be_a_strided_view(rng: np.random.Generator) -> None:
    hidden, mask = batch(rng, 5, 8, 9)
    wide = np.repeat(mask, 2, axis=1)
    np.testing.assert_array_equal(kernels.mean_pool(hidden, wide[:, ::2]), kernels.mean_pool(hidden, mask))


@pytest.mark.parametrize("shape", [(5, 7), (4, 8), (5, 1), (1, 8)])
def test_mask_of_another_shape_is_refused(shape: tuple[int, int], rng: np.random.Generator) -> None:
    hidden, _ = batch(rng, 5, 8, 9)
    with pytest.raises(kernels.ShapeError, match=r"hidden asks for \(5, 8\)"):
        kernels.mean_pool(hidden, np.ones(shape, dtype=np.int64))


def test_mask_of_floats_is_refused(rng: np.random.Generator) -> None:
    hidden, mask = batch(rng, 2, 3, 4)
    with pytest.raises(kernels.DtypeError, match="mask is float32"):
        kernels.mean_pool(hidden, mask.astype(np.float32))  # type: ignore[arg-type]


def test_first_and_last_tokens_need_no_mask(rng: np.random.Generator) -> None:
    hidden, _ = batch(rng, 3, 4, 5)
    np.testing.assert_array_equal(kernels.cls_pool(hidden), hidden[:, 0])
    np.testing.assert_array_equal(kernels.last_token_pool(hidden), hidden[:, -1])


def test_fused_normalisation_has_the_bits_of_the_two_steps(rng: np.random.Generator) -> None:
    hidden, mask = batch(rng, 6, 10, 77)
    two_steps = kernels.normalize_rows(kernels.mean_pool(hidden, mask))
    np.testing.assert_array_equal(kernels.mean_pool_normalize(hidden, mask), two_steps)


def test_a_sum_past_f32_is_refused() -> None:
    hidden = np.full((2, 9, 3), 3e38, dtype=np.float32)
    hidden[0] = 1
    with pytest.raises(kernels.NotFiniteError, match=r"hidden\[1\] .* sums past f32"):
        kernels.mean_pool(hidden, np.ones((2, 9), dtype=bool))


def test_largest_of_negative_tokens_is_negative() -> None:
    hidden = np.full((1, 5, 20), -2, dtype=np.float32)
    hidden[0, 3] = -1
    assert (kernels.max_pool(hidden, np.ones((1, 5), dtype=bool)) == -1).all()


def test_means_have_the_same_bits_on_every_variant(rng: np.random.Generator) -> None:
    hidden, mask = batch(rng, 4, 50, 101)
    answers = set()
    for name in kernels.variants():
        with _dispatch.force(name):
            answers.add(kernels.mean_pool(hidden, mask).tobytes())
    assert len(answers) == 1
