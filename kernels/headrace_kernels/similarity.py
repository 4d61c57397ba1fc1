"""Inner products and cosines of rows, and rows made unit length.

The bits of one score depend on its two rows alone: not on its place in the matrix, not on its neighbours, and a
pair's score is the matrix's. That holds within one variant; variants differ in the last bits.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from headrace_kernels._native import similarity as native
from headrace_kernels._operands import as_f32, as_out, same_length
from headrace_kernels.errors import NotFiniteError, ShapeError

__all__ = ["cosine_matrix", "cosine_pairs", "dot_matrix", "dot_pairs", "normalize_rows"]


def normalize_rows(x: NDArray[np.float32], out: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
    """Each row divided by its Euclidean length; a zero row stays zero.

    x        f32[n, d], finite; any magnitude, denormals too
    out      f32[n, d], C-contiguous and writeable: x itself (in place) or memory apart from it; None allocates
    returns  out
    raises   DtypeError, ShapeError; NotFiniteError for a row with NaN or an infinity: in place, x is then untouched,
             while an `out` apart from x may hold the rows before it
    """
    rows = as_f32("x", x, 2)
    answer = np.empty_like(rows) if out is None else as_out("out", out, rows.shape)
    if not rows.size:
        return answer
    in_place = out is not None and np.may_share_memory(rows, answer)
    if in_place:
        if not _same_memory(rows, answer):
            raise ShapeError("out overlaps x without being x")
        # A refusal half-way would leave x half changed.
        _refuse("x", native.first_nonfinite(rows))
    _refuse("x", native.normalize(rows, answer))
    return answer


def dot_matrix(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner product of each row of `a` with each of `b`: f32[m, n] of f32[m, d] and f32[n, d].

    raises   DtypeError, ShapeError; NotFiniteError for a row with NaN or an infinity; OverflowError where finite
             rows give a product past f32 (|a| |b| < 3.4e38 rules it out)
    limits   accumulates in f32, error bound in docs/kernels.md
    """
    left, right = as_f32("a", a, 2), as_f32("b", b, 2)
    same_length(left, right, 1)
    out = np.zeros((left.shape[0], right.shape[0]), dtype=np.float32)
    if out.size and left.shape[1]:
        native.dot_matrix(left, None, right, None, out)
    _refuse_products(left, right, out)
    return out


def dot_pairs(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inner product of row i of `a` with row i of `b`: f32[n] of two f32[n, d]; raises and limits as dot_matrix."""
    left, right = as_f32("a", a, 2), as_f32("b", b, 2)
    same_length(left, right, 1)
    same_length(left, right, 0)
    out = np.zeros(left.shape[0], dtype=np.float32)
    if left.size:
        native.dot_pairs(left, None, right, None, out)
    _refuse_products(left, right, out.reshape(1, -1))
    return out


def cosine_matrix(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of each row of `a` with each of `b`, in [-1, 1]: f32[m, n]; 0 where either row is zero.

    raises   DtypeError, ShapeError; NotFiniteError for a row with NaN or an infinity
    limits   rows of any finite magnitude; accumulates in f32, error bound in docs/kernels.md
    """
    left, right = as_f32("a", a, 2), as_f32("b", b, 2)
    same_length(left, right, 1)
    out = np.zeros((left.shape[0], right.shape[0]), dtype=np.float32)
    (left, inverse_left), (right, inverse_right) = _with_norms("a", left), _with_norms("b", right)
    if out.size and left.shape[1]:
        native.dot_matrix(left, inverse_left, right, inverse_right, out)
    return out


def cosine_pairs(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Cosine of row i of `a` with row i of `b`, in [-1, 1]: f32[n]; raises and limits as cosine_matrix."""
    left, right = as_f32("a", a, 2), as_f32("b", b, 2)
    same_length(left, right, 1)
    same_length(left, right, 0)
    out = np.zeros(left.shape[0], dtype=np.float32)
    (left, inverse_left), (right, inverse_right) = _with_norms("a", left), _with_norms("b", right)
    if left.size:
        native.dot_pairs(left, inverse_left, right, inverse_right, out)
    return out


def _with_norms(name: str, rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rows and the inverse of their lengths; rows too long or short for f32 squares are made unit rows first."""
    inverse = np.zeros(rows.shape[0], dtype=np.float32)
    if not rows.size:
        return rows, inverse
    bad, num_extreme = native.inverse_norms(rows, inverse)
    _refuse(name, bad)
    if num_extreme:
        extreme = np.isnan(inverse)
        rows = rows.copy()
        rows[extreme] = normalize_rows(rows[extreme])
        inverse[extreme] = 1.0
    return rows, inverse


def _refuse_products(left: NDArray[np.float32], right: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    # A row that is not finite gives no finite product (inf * 0 is NaN), so the small answer is looked at before the
    # inputs; without an answer there is nothing to tell by.
    if out.size and native.first_nonfinite(out) < 0:
        return
    for name, rows in (("a", left), ("b", right)):
        if rows.size:
            _refuse(name, native.first_nonfinite(rows))
    if out.size:
        raise OverflowError("an inner product of a and b passes the largest f32, 3.4e38")


def _refuse(name: str, bad: int) -> None:
    if bad >= 0:
        raise NotFiniteError(f"{name}[{bad}] holds NaN or an infinity", row=bad)


def _same_memory(x: NDArray[np.float32], y: NDArray[np.float32]) -> bool:
    return bool(x.__array_interface__["data"][0] == y.__array_interface__["data"][0])
