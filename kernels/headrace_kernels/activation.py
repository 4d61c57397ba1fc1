"""Logits to probabilities."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace_kernels._native import activation as native
from headrace_kernels._operands import MAX_LENGTH, as_f32
from headrace_kernels.errors import DtypeError, NotFiniteError, ShapeError

__all__ = ["sigmoid", "softmax"]


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities of each row: exp(logit - max) / sum.

    logits   f32[n, c]; -inf is a class that cannot be (its probability is 0)
    returns  f32[n, c]
    raises   DtypeError, ShapeError; NotFiniteError for a row with NaN or +inf, or with nothing but -inf
    limits   lengths below 2^31; a row depends on nothing but itself; error bound in docs/kernels.md
    """
    rows = as_f32("logits", logits, 2)
    out = np.empty_like(rows)
    if rows.size and (bad := native.softmax(rows, out)) >= 0:
        raise no_softmax(bad)
    return out


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) of each element, exact to a few ulp on both tails; for labels that exclude no other.

    x        f32 of any shape, infinities allowed (0 and 1)
    returns  f32 of the same shape
    raises   DtypeError; ShapeError for 2^31 elements or more; NotFiniteError if NaN is in it (`row` is its position)
    """
    if not isinstance(x, np.ndarray):
        raise DtypeError(f"x must be a NumPy array, not {type(x).__name__}")
    if x.size > MAX_LENGTH:
        raise ShapeError(f"x has shape {x.shape}: it must hold fewer than 2^31 elements")
    flat = as_f32("x", x.reshape(-1), 1)
    out = np.empty_like(flat)
    if flat.size and (bad := native.sigmoid(flat, out)) >= 0:
        raise NotFiniteError(f"x holds NaN at position {bad}", row=bad)
    return out.reshape(x.shape)


def no_softmax(row: int) -> NotFiniteError:
    """The refusal of a row of logits that has no softmax."""
    return NotFiniteError(f"logits[{row}] has no softmax: it holds NaN or +inf, or nothing but -inf", row=row)
