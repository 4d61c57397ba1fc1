"""Arguments made fit for native code: the right dtype and rank, C-contiguous, aligned, lengths below 2^31.

The native side trusts all of this. Views that are not contiguous or not aligned are copied; a read-only array is
fine as input; no dtype is converted.
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headrace_kernels.errors import DtypeError, ShapeError

__all__ = ["MAX_LENGTH", "as_f32", "as_i32", "as_mask", "as_out", "as_threshold", "as_width", "as_words", "same_length"]

MAX_LENGTH = 2**31 - 1
"""The longest axis that a kernel takes; products of lengths may pass it, offsets are 64 bits wide."""

_FLOAT32 = np.dtype(np.float32)
_INT32 = np.dtype(np.int32)
_UINT32 = np.dtype(np.uint32)
_MASK_DTYPES = tuple(np.dtype(kind) for kind in (np.bool_, np.uint8, np.int32, np.int64))


def as_f32(name: str, x: object, rank: int) -> NDArray[np.float32]:
    """`x` as an aligned C-contiguous f32 array of `rank` axes, the same memory where it is one already."""
    return _packed(_checked(name, x, rank, (_FLOAT32,)))


def as_i32(name: str, x: object) -> NDArray[np.int32]:
    """`x` as an aligned contiguous i32 array of one axis, the same memory where it is one already."""
    return _packed(_checked(name, x, 1, (_INT32,)))


def as_words(name: str, x: object) -> NDArray[np.uint32]:
    """`x`, u32 or i32 of one axis, as aligned contiguous words of 32 bits, the same memory where it is so already."""
    return _packed(_checked(name, x, 1, (_UINT32, _INT32))).view(_UINT32)


def as_mask(mask: object, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """`mask` as bytes of the given shape, 1 where it is not 0."""
    given = _checked("mask", mask, len(shape), _MASK_DTYPES)
    if given.shape != shape:
        raise ShapeError(f"mask has shape {given.shape}, hidden asks for {shape}")
    return _packed((given != 0).view(np.uint8))


def as_out(name: str, out: object, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """`out` itself, which must be writeable as it stands: a copy would lose the answer."""
    given = _checked(name, out, len(shape), (_FLOAT32,))
    if given.shape != shape:
        raise ShapeError(f"{name} has shape {given.shape}, the answer {shape}")
    flags = given.flags
    if not (flags.c_contiguous and flags.aligned and flags.writeable):
        raise ShapeError(f"{name} must be C-contiguous, aligned and writeable")
    return given


def as_width(k: int, num_columns: int) -> int:
    """How many columns an answer of the `k` best has: k, or all there are when there are fewer."""
    if isinstance(k, bool):
        raise DtypeError("k must be a whole number, not bool")
    try:
        wanted = operator.index(k)
    except TypeError:
        raise DtypeError(f"k must be a whole number, not {type(k).__name__}") from None
    if wanted < 1:
        raise ValueError(f"k is {wanted}, at least 1 is needed")
    return min(wanted, num_columns)


def as_threshold(threshold: float | None) -> float:
    """The least score to keep, rounded to f32 as the scores are; -inf keeps all."""
    if threshold is None:
        return -np.inf
    least = float(threshold)
    if np.isnan(least):
        raise ValueError("threshold is NaN")
    with np.errstate(over="ignore"):
        return float(np.float32(least))


def same_length(a: NDArray[Any], b: NDArray[Any], axis: int) -> None:
    """Refuses two arrays whose axis differs."""
    if a.shape[axis] != b.shape[axis]:
        raise ShapeError(f"a has shape {a.shape} and b {b.shape}: axis {axis} must be equal")


def _checked(name: str, x: object, rank: int, dtypes: tuple[np.dtype[Any], ...]) -> NDArray[Any]:
    if not isinstance(x, np.ndarray):
        raise DtypeError(f"{name} must be a NumPy array, not {type(x).__name__}")
    if x.dtype not in dtypes:
        raise DtypeError(f"{name} is {x.dtype}, {' or '.join(kind.name for kind in dtypes)} is needed")
    if x.ndim != rank:
        raise ShapeError(f"{name} has {x.ndim} axes (shape {x.shape}), {rank} are needed")
    if max(x.shape) > MAX_LENGTH:
        raise ShapeError(f"{name} has shape {x.shape}: every length must be below 2^31")
    return x


def _packed(x: NDArray[Any]) -> NDArray[Any]:
    flags = x.flags
    if flags.c_contiguous and flags.aligned:
        return x
    packed = np.empty(x.shape, dtype=x.dtype)
    packed[...] = x
    return packed
