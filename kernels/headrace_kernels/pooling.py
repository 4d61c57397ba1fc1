"""Hidden states of a sequence to one vector.

`hidden` is f32[b, s, d], `mask` is bool, uint8, int32 or int64[b, s]; a token is kept where it is not 0. Masked
tokens are skipped, never multiplied by zero: whatever stands there (NaN too) cannot reach the answer, and padding a
sequence further changes no bit. A sequence without kept tokens is the zero vector.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace_kernels._native import pooling as native
from headrace_kernels._operands import as_f32, as_mask
from headrace_kernels.errors import NotFiniteError

__all__ = ["Mask", "cls_pool", "last_token_pool", "max_pool", "mean_pool", "mean_pool_normalize"]

Mask = NDArray[np.bool_] | NDArray[np.uint8] | NDArray[np.int32] | NDArray[np.int64]


def mean_pool(hidden: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """Mean of each sequence's kept tokens, f32[b, d].

    raises   DtypeError, ShapeError; NotFiniteError for a sequence whose kept tokens are not finite, or sum past f32
    limits   accumulates in f32: relative to mean |x|, at most (tokens / 4 + 6) * 2^-24 off
    """
    return _mean(hidden, mask, normalize=False)


def mean_pool_normalize(hidden: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """`normalize_rows(mean_pool(hidden, mask))` in one pass, the same bits; raises as mean_pool."""
    return _mean(hidden, mask, normalize=True)


def max_pool(hidden: NDArray[np.float32], mask: Mask) -> NDArray[np.float32]:
    """Largest value of each sequence's kept tokens in each dimension, f32[b, d]; raises as mean_pool. Exact."""
    states, kept = _operands(hidden, mask)
    out = _answer(states)
    return _finite(out, native.max_pool(states, kept, out) if states.size else -1)


def cls_pool(hidden: NDArray[np.float32], mask: Mask | None = None) -> NDArray[np.float32]:
    """Each sequence's first kept token, f32[b, d] (the first of all without a mask); raises as mean_pool. Exact."""
    return _token(hidden, mask, last=False)


def last_token_pool(hidden: NDArray[np.float32], mask: Mask | None = None) -> NDArray[np.float32]:
    """Each sequence's last kept token, f32[b, d] (the last of all without a mask); raises as mean_pool. Exact."""
    return _token(hidden, mask, last=True)


def _mean(hidden: NDArray[np.float32], mask: Mask, *, normalize: bool) -> NDArray[np.float32]:
    states, kept = _operands(hidden, mask)
    out = _answer(states)
    return _finite(out, native.mean_pool(states, kept, normalize, out) if states.size else -1)


def _token(hidden: NDArray[np.float32], mask: Mask | None, *, last: bool) -> NDArray[np.float32]:
    states, kept = _operands(hidden, mask)
    out = _answer(states)
    return _finite(out, native.token_pool(states, kept, last, out) if states.size else -1)


def _operands(hidden: NDArray[np.float32], mask: Mask | None) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    states = as_f32("hidden", hidden, 3)
    shape = states.shape[:2]
    return states, np.ones(shape, dtype=np.uint8) if mask is None else as_mask(mask, shape)


def _answer(states: NDArray[np.float32]) -> NDArray[np.float32]:
    # Zeros, since a sequence of no tokens never reaches native code.
    return np.zeros((states.shape[0], states.shape[2]), dtype=np.float32)


def _finite(out: NDArray[np.float32], bad: int) -> NDArray[np.float32]:
    if bad >= 0:
        raise NotFiniteError(f"hidden[{bad}] holds NaN or an infinity in a kept token, or sums past f32", row=bad)
    return out
