"""Similarity: how alike two sides are, pair by pair or each with each.

What a side gives as inputs is embedded, both sides in one submission, so that they share batches and one version of the
model. What it gives as vectors is taken as it is; where no side holds inputs, no model is asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

import headrace_kernels
from headrace_server.config import InputLimits
from headrace_server.errors import ServingError, invalid_input
from headrace_server.jobs.checks import require_count, require_model, require_task
from headrace_server.jobs.embed import embedded
from headrace_server.jobs.queries import ModelRef, Side, SimilarityQuery, SimilarityResult, Vectors
from headrace_server.jobs.submission import Copies, Finish, Leases, RowResult, Submissions, answered, refused
from headrace_server.models.inputs import Input
from headrace_server.models.model import Model, Row, Task
from headrace_server.serving.context import RequestContext

__all__ = ["Similarity"]


class Similarity:
    """Compares vectors, the caller's own or a model's. Thread-safe."""

    def __init__(self, versions: Leases, limits: InputLimits, copies: Copies | None = None) -> None:
        self._submissions = Submissions(versions, copies)
        self._limits = limits

    def submit(self, query: SimilarityQuery, context: RequestContext) -> Future[SimilarityResult]:
        """Future of the scores. Prepares here, blocking; answers on an engine's worker, or here if no model is asked.

        The future's exceptions are ServingError, as of Classify.
        """
        try:
            sides = _Sides(
                left=self._side(query.left, "left"),
                right=None if query.right is None else self._side(query.right, "right"),
                query=query,
            )
            sides.check(self._limits)
        except ServingError as error:
            return refused(error)
        if query.model is None or not sides.inputs:
            return answered(context, partial(sides.compared, _NO_VECTORS, None))
        return self._submissions.through_model(query.model, context, sides.admit)

    def _side(self, side: Side, name: str) -> Sequence[Input] | Vectors:
        if isinstance(side, np.ndarray):
            return _vectors(side, f"{name}.vectors")
        require_count(f"{name}.inputs.inputs", len(side), self._limits.max_inputs)
        return side


@dataclass(frozen=True, slots=True)
class _Sides:
    left: Sequence[Input] | Vectors
    right: Sequence[Input] | Vectors | None
    query: SimilarityQuery

    @property
    def inputs(self) -> list[tuple[str, Sequence[Input]]]:
        """The sides that hold inputs, with the paths of those."""
        sides = (("left", self.left), ("right", self.right))
        return [
            (f"{name}.inputs.inputs", side)
            for name, side in sides
            if side is not None and not isinstance(side, np.ndarray)
        ]

    def check(self, limits: InputLimits) -> None:
        """Raises INVALID_INPUT for sides that do not fit each other, or no model where one is needed."""
        num_left = len(self.left)
        num_right = num_left if self.right is None else len(self.right)
        if self.query.mode == "pairs":
            if num_left != num_right:
                raise invalid_input(
                    "right", f"{num_right} vectors, as many as on the left ({num_left}) are needed for pairs"
                )
        elif num_left * num_right > limits.max_similarity_cells:
            limit = limits.max_similarity_cells
            raise invalid_input("right", f"{num_left} × {num_right} scores, limit {limit}", limit=limit)
        if self.inputs:
            require_model(self.query.model.name if self.query.model is not None else "")
        elif isinstance(self.left, np.ndarray) and isinstance(self.right, np.ndarray):
            _require_dimension("right.vectors", self.right, self.left.shape[1], "the left side's")

    def admit(self, model: Model) -> tuple[Task, Sequence[Row], Finish[SimilarityResult]]:
        task = require_task(model, Task.EMBED)
        for name, side in (("left", self.left), ("right", self.right)):
            if isinstance(side, np.ndarray) and model.embedding_dimension:
                _require_dimension(f"{name}.vectors", side, model.embedding_dimension, "the model's")
        prepare = model.pipelines[task].prepare
        rows = [row for field, side in self.inputs for row in prepare(side, self.query.prepare, field=field)]
        paths = [f"{field}[{index}]" for field, side in self.inputs for index in range(len(side))]

        def finish(results: Sequence[RowResult]) -> SimilarityResult:
            vectors = embedded(results, paths.__getitem__, normalize=model.normalized_by_default)
            return self.compared(vectors, ModelRef(model.name, model.version))

        return task, rows, finish

    def compared(self, computed: Vectors, model: ModelRef | None) -> SimilarityResult:
        """The scores, where `computed` holds the vectors of the inputs, left before right."""
        left = self.left if isinstance(self.left, np.ndarray) else computed[: len(self.left)]
        if self.right is None:
            right = left
        else:
            right = self.right if isinstance(self.right, np.ndarray) else computed[len(computed) - len(self.right) :]
        if left.shape[1] != right.shape[1]:  # left to be found here where a model does not say its dimension
            raise invalid_input("right", f"dimension {right.shape[1]}, the left side's is {left.shape[1]}")
        return SimilarityResult(_scores(left, right, self.query), model)


_NO_VECTORS: Vectors = np.empty((0, 0), dtype=np.float32)


def _scores(left: Vectors, right: Vectors, query: SimilarityQuery) -> Vectors:
    if query.metric == "cosine":
        matrix, pairs = headrace_kernels.cosine_matrix, headrace_kernels.cosine_pairs
    else:
        matrix, pairs = headrace_kernels.dot_matrix, headrace_kernels.dot_pairs
    try:
        return matrix(left, right) if query.mode == "matrix" else pairs(left, right).reshape(-1, 1)
    except OverflowError:
        raise invalid_input("left", "an inner product with the right side passes the largest float32, 3.4e38") from None


def _vectors(side: npt.NDArray[Any], field: str) -> Vectors:
    """The side as f32[n, d] C-contiguous. Raises INVALID_INPUT for another rank, nothing in it, or no finite number."""
    if side.ndim != 2 or not side.shape[0] or not 1 <= side.shape[1] <= 65536:
        shape = "×".join(str(axis) for axis in side.shape) or "a single value"
        raise invalid_input(field, f"{shape}, at least one vector of 1 to 65536 elements is needed")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(side, dtype=np.float32)
    finite = np.isfinite(vectors)
    if not finite.all():
        row, column = (int(at) for at in np.argwhere(~finite)[0])
        raise invalid_input(
            field, f"element {column} of vector {row} is {side[row, column]}, a finite float32 is needed"
        )
    return vectors


def _require_dimension(field: str, vectors: Vectors, dimension: int, whose: str) -> None:
    if vectors.shape[1] != dimension:
        raise invalid_input(field, f"dimension {vectors.shape[1]}, {whose} is {dimension}", limit=dimension)
