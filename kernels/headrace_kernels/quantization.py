"""Vectors in fewer bytes, for packed replies."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace_kernels._native import quantization as native
from headrace_kernels._operands import as_f32
from headrace_kernels.errors import NotFiniteError

__all__ = ["quantize_int8", "to_float16"]


def quantize_int8(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric codes in [-127, 127] and each row's scale: x is about codes * scale.

    x        f32[n, d], finite
    returns  i8[n, d], f32[n]; a zero row has scale 0
    raises   DtypeError, ShapeError; NotFiniteError for a row with NaN or an infinity
    limits   |x - codes * scale| <= scale * (1/2 + 2^-15); scale is max|x| / 127; halves round to even; every variant
             gives the same bits
    """
    rows = as_f32("x", x, 2)
    codes = np.zeros(rows.shape, dtype=np.int8)
    scale = np.zeros(rows.shape[0], dtype=np.float32)
    if rows.size and (bad := native.int8(rows, codes, scale)) >= 0:
        raise NotFiniteError(f"x[{bad}] holds NaN or an infinity", row=bad)
    return codes, scale


def to_float16(x: NDArray[np.float32]) -> NDArray[np.float16]:
    """Nearest f16 of each element, f16[n, d] of f32[n, d]; below 2^-24 rounds to 0.

    NumPy's own conversion: it uses the machine's instruction for it already. Beside it stands only the refusal.

    raises   DtypeError, ShapeError; NotFiniteError for a row with NaN, an infinity, or a value that rounds past 65504
    """
    rows = as_f32("x", x, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        halves = rows.astype(np.float16)
    bad = np.flatnonzero(~np.isfinite(halves).all(axis=1))
    if bad.size:
        row = int(bad[0])
        raise NotFiniteError(f"x[{row}] holds NaN, an infinity, or a value past 65504, the largest f16", row=row)
    return halves
