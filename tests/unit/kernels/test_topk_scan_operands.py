"""What packing and scanning take, and what they refuse."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import headrace_kernels as kernels

ZEROS = np.zeros((3, 4), dtype=np.float32)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(value: float) -> None:
    bad = ZEROS.copy()
    bad[2, 3] = value
    with pytest.raises(kernels.NotFiniteError, match=r"vectors\[2\] holds NaN or an infinity"):
        kernels.pack_items(bad)
    with pytest.raises(kernels.NotFiniteError, match=r"queries\[2\] holds NaN or an infinity"):
        kernels.scan_topk(kernels.pack_items(ZEROS), bad, 1)


def test_products_that_may_pass_f32_are_refused() -> None:
    items = kernels.pack_items(np.full((2, 2), 1e20, dtype=np.float32))
    with pytest.raises(OverflowError, match=r"queries\[1\] may pass the largest f32"):
        kernels.scan_topk(items, np.array([[1, 1], [1e19, 1e19]], dtype=np.float32), 1)


def test_empty_catalogs_and_empty_batches_have_empty_answers() -> None:
    empty = kernels.pack_items(np.zeros((0, 4), dtype=np.float32))
    assert len(empty) == 0
    assert [part.shape for part in kernels.scan_topk(empty, ZEROS, 5)] == [(3, 0), (3, 0), (3,)]
    some = kernels.scan_topk(kernels.pack_items(ZEROS), np.zeros((0, 4), dtype=np.float32), 2)
    assert [part.shape for part in some] == [(0, 2), (0, 2), (0,)]


def test_dtypes_and_shapes_that_do_not_fit_are_refused() -> None:
    items = kernels.pack_items(ZEROS)
    with pytest.raises(kernels.DtypeError, match="vectors is float64, float32 is needed"):
        kernels.pack_items(ZEROS.astype(np.float64))  # type: ignore[arg-type]
    with pytest.raises(kernels.ShapeError, match="a row needs at least one element"):
        kernels.pack_items(np.zeros((3, 0), dtype=np.float32))
    with pytest.raises(kernels.ShapeError, match=r"queries has shape \(3, 5\), items have 4 dimensions"):
        kernels.scan_topk(items, np.zeros((3, 5), dtype=np.float32), 1)
    with pytest.raises(ValueError, match="metric is 'l2'; dot and cosine are known"):
        kernels.pack_items(ZEROS, metric="l2")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k is 0, at least 1 is needed"),
        ({"num_threads": 0}, "num_threads is 0, it must be within 1 and 256"),
        ({"num_threads": 257}, "num_threads is 257"),
        ({"mode": "int4"}, "mode is 'int4'; auto, fp32 and int8 are known"),
        ({"min_score": float("nan")}, "threshold is NaN"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernels.scan_topk(kernels.pack_items(ZEROS), ZEROS, **{"k": 1, **options})  # type: ignore[arg-type]


def test_length_past_31_bits_is_refused() -> None:
    huge = np.broadcast_to(np.float32(0), (2**31, 1))
    with pytest.raises(kernels.ShapeError, match=r"every length must be below 2\^31"):
        kernels.pack_items(huge)


def test_views_are_taken_as_what_they_show(rng: np.random.Generator) -> None:
    wide = rng.standard_normal((200, 20), dtype=np.float32)
    expected = kernels.scan_topk(kernels.pack_items(wide[::2, 3:15].copy()), wide[:3, 3:15].copy(), 5)
    unaligned = np.zeros(100 * 12 * 4 + 1, dtype=np.uint8)[1:].view(np.float32).reshape(100, 12)
    unaligned[...] = wide[::2, 3:15]
    for view in (wide[::2, 3:15], np.asfortranarray(wide[::2, 3:15]), unaligned):
        got = kernels.scan_topk(kernels.pack_items(view), wide[:3, 3:15], 5)
        assert [part.tobytes() for part in got] == [part.tobytes() for part in expected]


def test_packed_rows_are_a_copy_that_cannot_be_written(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((10, 5), dtype=np.float32)
    items = kernels.pack_items(vectors)
    kept = vectors.copy()
    vectors[:] = 0
    np.testing.assert_array_equal(items.vectors, kept)
    with pytest.raises(ValueError, match="read-only"):
        items.vectors[0, 0] = 1
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(items)


def test_rows_outlive_their_catalog(rng: np.random.Generator) -> None:
    vectors = rng.standard_normal((1000, 600), dtype=np.float32)
    view = kernels.pack_items(vectors).vectors
    np.testing.assert_array_equal(view, vectors)


def test_memory_is_what_is_stated(rng: np.random.Generator) -> None:
    items = kernels.pack_items(rng.standard_normal((6400, 40), dtype=np.float32))
    assert items.size_bytes == 6400 * 40 * 4 + 6400 * 44 + 4096
    assert kernels.pack_items(items.vectors.copy(), int8=False).size_bytes == 6400 * 40 * 4
    assert repr(items) == "PackedItems(6400 x 40, dot, int8, 1,309,696 bytes)"
