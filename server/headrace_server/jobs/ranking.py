"""Best first: what the top-k kernel makes of scores, and the check that they are numbers at all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

import headrace_kernels
from headrace_server.errors import invalid_input
from headrace_server.jobs.submission import RowResult

__all__ = ["ranked", "stacked"]


def stacked(results: Sequence[RowResult], key: str, path: Callable[[int], str]) -> npt.NDArray[np.float32]:
    """The rows' arrays under `key` as one f32 matrix, a row a result, C-contiguous.

    path    the request's field that became row i
    raises  ServingError INVALID_INPUT naming the field of the first row whose result is no finite number: what came in
            was in order by itself, and yet the graph overflows on it
    """
    matrix = np.ascontiguousarray(np.stack([result[key] for result in results]), dtype=np.float32)
    finite = np.isfinite(matrix)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise invalid_input(path(row), "the model computes no finite number from it")
    return matrix


def ranked(scores: npt.NDArray[np.float32], k: int, threshold: float | None = None) -> list[list[tuple[int, float]]]:
    """For each row of scores f32[n, c] the (index, score) of its best k (0: all), best first, ties to the lower index;
    fewer where the row has fewer, or the threshold leaves fewer."""
    indices, best, counts = headrace_kernels.topk(scores, k or max(1, scores.shape[1]), threshold)
    return [
        list(zip(row_indices[:count], row_scores[:count], strict=True))
        for row_indices, row_scores, count in zip(indices.tolist(), best.tolist(), counts.tolist(), strict=True)
    ]
