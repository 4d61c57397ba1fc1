"""What every kernel refuses and what it takes, said once for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import _operands, reference

Kernel = Callable[[Any], Any]

MATRIX_KERNELS: dict[str, Kernel] = {
    "softmax": kernels.softmax,
    "softmax_topk": lambda x: kernels.softmax_topk(x, 3),
    "topk": lambda x: kernels.topk(x, 3),
    "normalize_rows": kernels.normalize_rows,
    "dot_matrix": lambda x: kernels.dot_matrix(x, x),
    "dot_pairs": lambda x: kernels.dot_pairs(x, x),
    "cosine_matrix": lambda x: kernels.cosine_matrix(x, x),
    "cosine_pairs": lambda x: kernels.cosine_pairs(x, x),
    "quantize_int8": kernels.quantize_int8,
    "to_float16": kernels.to_float16,
}
CUBE_KERNELS: dict[str, Kernel] = {
    "mean_pool": lambda x: kernels.mean_pool(x, np.ones(x.shape[:2], bool)),
    "mean_pool_normalize": lambda x: kernels.mean_pool_normalize(x, np.ones(x.shape[:2], bool)),
    "max_pool": lambda x: kernels.max_pool(x, np.ones(x.shape[:2], bool)),
    "cls_pool": kernels.cls_pool,
    "last_token_pool": kernels.last_token_pool,
}
ALL_KERNELS = {**MATRIX_KERNELS, **CUBE_KERNELS}


def sample(name: str, rng: np.random.Generator) -> NDArray[np.float32]:
    shape = (5, 37) if name in MATRIX_KERNELS else (3, 6, 37)
    return rng.standard_normal(shape, dtype=np.float32)


def same(left: Any, right: Any) -> bool:
    pairs = zip(left, right, strict=True) if isinstance(left, tuple) else [(left, right)]
    return all(np.array_equal(x, y, equal_nan=x.dtype.kind == "f") for x, y in pairs)


@pytest.mark.parametrize("name", ALL_KERNELS)
@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", ">f4"])
def test_another_dtype_is_refused_rather_than_converted(name: str, dtype: str, rng: np.random.Generator) -> None:
    with pytest.raises(kernels.DtypeError, match="float32 is needed"):
        ALL_KERNELS[name](sample(name, rng).astype(dtype))


@pytest.mark.parametrize("name", [*MATRIX_KERNELS, "cls_pool"])
def test_a_list_is_refused(name: str) -> None:
    with pytest.raises(kernels.DtypeError, match="must be a NumPy array, not list"):
        ALL_KERNELS[name]([[1.0, 2.0]])


@pytest.mark.parametrize("name", ALL_KERNELS)
def test_another_rank_is_refused(name: str, rng: np.random.Generator) -> None:
    x = sample(name, rng)
    for wrong in (x[None], x[0]) if name not in {"mean_pool", "mean_pool_normalize", "max_pool"} else (x[None],):
        with pytest.raises(kernels.ShapeError):
            ALL_KERNELS[name](wrong)


@pytest.mark.parametrize("name", ALL_KERNELS)
def test_a_length_of_two_to_the_31_is_refused_before_anything_is_copied(name: str) -> None:
    cell = np.zeros(1, dtype=np.float32)
    rank = 2 if name in MATRIX_KERNELS else 3
    for axis in range(rank):
        shape = tuple(2**31 if place == axis else 1 for place in range(rank))
        endless = np.lib.stride_tricks.as_strided(cell, shape=shape, strides=(0,) * rank)
        with pytest.raises(kernels.ShapeError, match=r"below 2\^31"):
            kernels_with_thin_mask(name, endless)


def kernels_with_thin_mask(name: str, x: NDArray[np.float32]) -> None:
    if name in {"mean_pool", "mean_pool_normalize", "max_pool"}:
        getattr(kernels, name)(x, np.lib.stride_tricks.as_strided(np.ones(1, bool), shape=x.shape[:2], strides=(0, 0)))
    else:
        ALL_KERNELS[name](x)


def test_sigmoid_refuses_two_to_the_31_elements() -> None:
    endless = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape=(2**16, 2**15), strides=(0, 0))
    with pytest.raises(kernels.ShapeError, match=r"2\^31"):
        kernels.sigmoid(endless)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_layout_changes_no_bit(name: str, rng: np.random.Generator) -> None:
    x = sample(name, rng)
    expected = ALL_KERNELS[name](x)
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), dtype=np.float32)
    wide[..., ::2] = x
    raw = np.zeros(x.nbytes + 1, dtype=np.uint8)
    unaligned = raw[1:].view(np.float32).reshape(x.shape)
    unaligned[...] = x
    assert not unaligned.flags.aligned
    shifted = np.zeros(x.size + 1, dtype=np.float32)[1:].reshape(x.shape)
    shifted[...] = x
    frozen = x.copy()
    frozen.flags.writeable = False
    layouts = {
        "strided": wide[..., ::2],
        "reversed": x[::-1, ..., ::-1].copy()[::-1, ..., ::-1],
        "fortran": np.asfortranarray(x),
        "unaligned": unaligned,
        "off a cache line": shifted,
        "read-only": frozen,
    }
    for layout, view in layouts.items():
        assert same(ALL_KERNELS[name](view), expected), layout


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_no_rows_and_no_columns_give_an_empty_answer(name: str) -> None:
    rank = 2 if name in MATRIX_KERNELS else 3
    for axis in range(rank):
        shape = tuple(0 if place == axis else 3 for place in range(rank))
        x = np.zeros(shape, dtype=np.float32)
        answer = ALL_KERNELS[name](x)
        first = answer[0] if isinstance(answer, tuple) else answer
        assert first.shape[0] == shape[0]
        if name not in {"softmax_topk", "topk"}:
            assert not np.any(np.asarray(first, dtype=np.float64))


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("name", [name for name in ALL_KERNELS if name not in {"topk", "softmax", "softmax_topk"}])
def test_a_value_that_is_not_finite_is_refused_and_its_row_named(name: str, rng: np.random.Generator) -> None:
    for value in (np.nan, np.inf, -np.inf):
        for column in (0, 3, 4, 15, 16, 31, 36):
            x = sample(name, rng)
            x[2, ..., column] = value
            with pytest.raises(kernels.NotFiniteError, match=r"\[2\]") as refusal:
                ALL_KERNELS[name](x)
            assert refusal.value.row == 2


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_inputs_are_left_as_they_were(name: str, rng: np.random.Generator) -> None:
    x = sample(name, rng)
    before = x.copy()
    ALL_KERNELS[name](x)
    assert np.array_equal(x, before)


@pytest.mark.usefixtures("variant")
@pytest.mark.parametrize("name", ALL_KERNELS)
def test_a_row_gives_the_same_bits_alone_or_among_others(name: str, rng: np.random.Generator) -> None:
    x = sample(name, rng)
    together = ALL_KERNELS[name](x)
    for row in range(len(x)):
        alone = ALL_KERNELS[name](x[row : row + 1])
        if name in {"dot_matrix", "cosine_matrix"}:
            assert same(alone, together[row : row + 1, row : row + 1])
        elif isinstance(together, tuple):
            assert same(alone, tuple(part[row : row + 1] for part in together))
        else:
            assert same(alone, together[row : row + 1])


def test_native_code_is_given_aligned_memory_and_no_needless_copy(rng: np.random.Generator) -> None:
    # x86 forgives an unaligned float, another machine or a sanitizer does not.
    x = sample("softmax", rng)
    raw = np.zeros(x.nbytes + 1, dtype=np.uint8)[1:].view(np.float32).reshape(x.shape)
    assert not raw.flags.aligned
    assert _operands.as_f32("x", raw, 2).flags.aligned
    assert _operands.as_f32("x", x, 2) is x


def test_the_gil_is_released_while_a_kernel_works(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((3000, 512), dtype=np.float32)
    started, finished, ticks = threading.Event(), threading.Event(), 0

    def work() -> None:
        started.set()
        kernels.dot_matrix(rows, rows)
        finished.set()

    worker = threading.Thread(target=work)
    worker.start()
    started.wait()
    while not finished.is_set():
        ticks += 1
        time.sleep(0)
    worker.join()
    # Held, the GIL would let this loop turn a few times before the call and not once during it.
    assert ticks > 100


def test_reference_takes_what_the_kernels_take(rng: np.random.Generator) -> None:
    x = sample("softmax", rng)
    assert np.allclose(kernels.softmax(x), reference.softmax(x), atol=1e-6)
