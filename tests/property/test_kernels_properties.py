"""Kernels against their NumPy reference, on inputs that hypothesis makes, on every variant."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import _dispatch, reference

EACH_VARIANT = pytest.mark.parametrize("isa", kernels.variants())
SAMPLE = settings(max_examples=60, deadline=None)

FEW_VALUES = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, -1e-40, 3e38])
MODEST = st.floats(-1e4, 1e4, width=32)


def matrices(
    elements: st.SearchStrategy[float], rows: int = 6, columns: int = 40
) -> st.SearchStrategy[NDArray[np.float32]]:
    shape = st.tuples(st.integers(0, rows), st.integers(1, columns))
    return shape.flatmap(lambda size: hnp.arrays(np.float32, size, elements=elements))


def views(x: NDArray[np.float32], layout: str) -> NDArray[np.float32]:
    """The same values in memory that native code may not take as it stands."""
    if layout == "fortran":
        return np.asfortranarray(x)
    if layout == "unaligned":
        raw = np.zeros(x.nbytes + 1, dtype=np.uint8)[1:].view(np.float32).reshape(x.shape)
        raw[...] = x
        return raw
    if layout == "frozen":
        x = x.copy()
        x.flags.writeable = False
    return x


LAYOUTS = st.sampled_from(["plain", "fortran", "unaligned", "frozen"])
ALL_FLOATS = st.floats(width=32, allow_nan=False)
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


@EACH_VARIANT
@SAMPLE
@given(
    scores=matrices(st.one_of(FEW_VALUES, ALL_FLOATS)),
    k=st.integers(1, 50),
    threshold=st.one_of(st.none(), FEW_VALUES),
    layout=LAYOUTS,
)
def test_topk_is_the_reference_exactly(
    isa: str, scores: NDArray[np.float32], k: int, threshold: float | None, layout: str
) -> None:
    with _dispatch.force(isa):
        got = kernels.topk(views(scores, layout), k, threshold)
    for left, right in zip(got, reference.topk(scores, k, threshold), strict=True):
        np.testing.assert_array_equal(left, right)


@EACH_VARIANT
@SAMPLE
@given(
    logits=matrices(st.one_of(FEW_VALUES, MODEST, st.just(-np.inf))),
    k=st.integers(1, 50),
    layout=LAYOUTS,
)
def test_softmax_topk_ranks_as_the_reference(isa: str, logits: NDArray[np.float32], k: int, layout: str) -> None:
    logits[:, 0] = np.where(np.isneginf(logits).all(axis=1), 0, logits[:, 0])
    with _dispatch.force(isa):
        indices, scores, counts = kernels.softmax_topk(views(logits, layout), k)
        whole = kernels.softmax(logits)
    expected = reference.softmax_topk(logits, k)
    np.testing.assert_array_equal(indices, expected[0])
    np.testing.assert_array_equal(counts, expected[2])
    np.testing.assert_allclose(scores, expected[1], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(scores, np.take_along_axis(whole, indices, axis=1))
    np.testing.assert_allclose(whole.sum(axis=1), 1, atol=1e-5)


@EACH_VARIANT
@SAMPLE
@given(x=matrices(st.one_of(ALL_FLOATS, MODEST)))
def test_sigmoid_is_the_reference(isa: str, x: NDArray[np.float32]) -> None:
    with _dispatch.force(isa):
        got = kernels.sigmoid(x)
    np.testing.assert_allclose(got, reference.sigmoid(x), rtol=4e-7, atol=3e-45)


@EACH_VARIANT
@SAMPLE
@given(data=st.data())
def test_pools_are_the_reference(isa: str, data: st.DataObject) -> None:
    b, s, d = (data.draw(st.integers(low, high)) for low, high in ((0, 4), (0, 9), (1, 35)))
    hidden = data.draw(hnp.arrays(np.float32, (b, s, d), elements=MODEST))
    mask = data.draw(hnp.arrays(np.int32, (b, s), elements=st.integers(0, 1)))
    tolerance = 1e-6 * (np.abs(hidden).max(initial=0.0) + 1e-30)
    with _dispatch.force(isa):
        np.testing.assert_allclose(
            kernels.mean_pool(hidden, mask), reference.mean_pool(hidden, mask), rtol=0, atol=tolerance
        )
        for name in ("max_pool", "cls_pool", "last_token_pool"):
            np.testing.assert_array_equal(getattr(kernels, name)(hidden, mask), getattr(reference, name)(hidden, mask))


@EACH_VARIANT
@SAMPLE
@given(data=st.data())
def test_cosines_and_unit_rows_are_the_reference(isa: str, data: st.DataObject) -> None:
    m, n, d = (data.draw(st.integers(low, high)) for low, high in ((0, 7), (0, 9), (1, 35)))
    elements = st.one_of(FEW_VALUES, FINITE)
    a = data.draw(hnp.arrays(np.float32, (m, d), elements=elements))
    b = data.draw(hnp.arrays(np.float32, (n, d), elements=elements))
    with _dispatch.force(isa):
        np.testing.assert_allclose(kernels.cosine_matrix(a, b), reference.cosine_matrix(a, b), rtol=0, atol=3e-6)
        np.testing.assert_allclose(kernels.normalize_rows(a), reference.normalize_rows(a), rtol=1e-6, atol=2e-45)


@EACH_VARIANT
@SAMPLE
@given(data=st.data())
def test_products_are_within_their_bound(isa: str, data: st.DataObject) -> None:
    m, n, d = (data.draw(st.integers(low, high)) for low, high in ((1, 7), (1, 9), (1, 70)))
    a = data.draw(hnp.arrays(np.float32, (m, d), elements=MODEST))
    b = data.draw(hnp.arrays(np.float32, (n, d), elements=MODEST))
    bound = (d / 4 + 6) * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64).T) + d * 2.0**-149
    with _dispatch.force(isa):
        error = np.abs(kernels.dot_matrix(a, b) - a.astype(np.float64) @ b.astype(np.float64).T)
    assert (error <= bound).all()


@EACH_VARIANT
@SAMPLE
@given(x=matrices(st.one_of(FEW_VALUES, FINITE)), layout=LAYOUTS)
def test_codes_are_the_reference_exactly(isa: str, x: NDArray[np.float32], layout: str) -> None:
    with _dispatch.force(isa):
        got = kernels.quantize_int8(views(x, layout))
    for left, right in zip(got, reference.quantize_int8(x), strict=True):
        np.testing.assert_array_equal(left, right)
