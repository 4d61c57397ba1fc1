"""The best few of many scores.

Both functions answer `(indices i64[n, w], scores f32[n, w], counts i64[n])` with w = min(k, c). Row i has counts[i]
answers, best first; past them indices are -1 and scores NaN, never a padded answer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from headrace_kernels._native import selection as native
from headrace_kernels._operands import as_f32, as_threshold, as_width
from headrace_kernels.activation import no_softmax
from headrace_kernels.errors import NotFiniteError

__all__ = ["Ranking", "softmax_topk", "topk"]

_Kernel = Callable[[NDArray[np.float32], float, NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]], int]
Ranking = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
"""indices i64[n, w], scores f32[n, w], counts i64[n]; only [:counts] is valid."""


def topk(scores: NDArray[np.float32], k: int, threshold: float | None = None) -> Ranking:
    """Largest scores per row, best first; ties go to the lower index.

    scores     f32[n, c], infinities allowed
    k          at least 1; more than c answers all c
    threshold  least score to keep (compared as f32), None keeps all
    returns    Ranking of width min(k, c)
    raises     DtypeError, ShapeError; ValueError if k < 1 or threshold is NaN; NotFiniteError for a row with NaN
    limits     exact; lengths below 2^31; O(c) a row for few, O(c log k) at worst
    """
    rows = as_f32("scores", scores, 2)
    ranking, bad = _ranked(native.topk, rows, k, threshold)
    if bad >= 0:
        raise NotFiniteError(f"scores[{bad}] holds NaN", row=bad)
    return ranking


def softmax_topk(logits: NDArray[np.float32], k: int, *, threshold: float | None = None) -> Ranking:
    """Likeliest classes per row with their probabilities, best first; equal logits go to the lower index.

    logits     f32[n, c]; -inf is a class that cannot be (its probability is 0)
    k          at least 1; more than c answers all c
    threshold  least probability to keep (compared as f32), None keeps all
    returns    Ranking of width min(k, c); scores equal softmax(logits) bit for bit
    raises     DtypeError, ShapeError; ValueError if k < 1 or threshold is NaN; NotFiniteError for a row with NaN or
               +inf, or with nothing but -inf
    limits     ranked by logit, so two logits whose probabilities round to the same f32 keep their order
    """
    rows = as_f32("logits", logits, 2)
    ranking, bad = _ranked(native.softmax_topk, rows, k, threshold)
    if bad >= 0:
        raise no_softmax(bad)
    return ranking


def _ranked(kernel: _Kernel, rows: NDArray[np.float32], k: int, threshold: float | None) -> tuple[Ranking, int]:
    num_rows, num_columns = rows.shape
    width = as_width(k, num_columns)
    least = as_threshold(threshold)
    indices = np.empty((num_rows, width), dtype=np.int64)
    top = np.empty((num_rows, width), dtype=np.float32)
    counts = np.zeros(num_rows, dtype=np.int64)
    bad = kernel(rows, least, indices, top, counts) if rows.size else -1
    return (indices, top, counts), bad
