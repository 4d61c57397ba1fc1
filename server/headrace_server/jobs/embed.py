"""Embed: one vector for each input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np

import headrace_kernels
from headrace_server.config import InputLimits
from headrace_server.errors import ServingError, invalid_input
from headrace_server.jobs.checks import require_count, require_model, require_task
from headrace_server.jobs.queries import EmbedQuery, EmbedResult, InputUsage, ModelRef, Vectors
from headrace_server.jobs.ranking import stacked
from headrace_server.jobs.submission import Copies, Finish, Leases, RowResult, Submissions, refused
from headrace_server.models.model import Model, Row, Task
from headrace_server.serving.context import RequestContext

__all__ = ["Embed", "embedded"]


class Embed:
    """Turns inputs into vectors. Thread-safe."""

    def __init__(self, versions: Leases, limits: InputLimits, copies: Copies | None = None) -> None:
        self._submissions = Submissions(versions, copies)
        self._limits = limits

    def submit(self, query: EmbedQuery, context: RequestContext) -> Future[EmbedResult]:
        """Future of the embeddings, one row an input, in order. Prepares here, blocking; answers on an engine's worker.

        The future's exceptions are ServingError, as of Classify.
        """
        try:
            require_model(query.model.name)
            require_count("inputs", len(query.inputs), self._limits.max_inputs)
            if query.dimensions < 0:
                raise invalid_input("dimensions", f"{query.dimensions}, at least 0 (all) is allowed")
        except ServingError as error:
            return refused(error)
        return self._submissions.through_model(query.model, context, partial(_admit, query))


def _admit(query: EmbedQuery, model: Model) -> tuple[Task, Sequence[Row], Finish[EmbedResult]]:
    task = require_task(model, Task.EMBED)
    limit = model.embedding_dimension
    if limit and query.dimensions > limit:
        raise invalid_input("dimensions", f"{query.dimensions}, the model has {limit}", limit=limit)
    rows = model.pipelines[task].prepare(query.inputs, query.prepare, field="inputs")
    usage = tuple(InputUsage(row.num_units, row.truncated) for row in rows)
    normalize = model.normalized_by_default if query.normalize is None else query.normalize

    def finish(results: Sequence[RowResult]) -> EmbedResult:
        vectors = embedded(results, "inputs[{}]".format, normalize=normalize, dimensions=query.dimensions)
        return EmbedResult(vectors, usage, ModelRef(model.name, model.version))

    return task, rows, finish


def embedded(
    results: Sequence[RowResult], path: Callable[[int], str], *, normalize: bool, dimensions: int = 0
) -> Vectors:
    """f32[n, d] C-contiguous, a row a result: the first `dimensions` elements (0: all), then scaled to length 1 where
    asked. A zero vector stays zero. Raises as `stacked` does."""
    vectors = stacked(results, "embedding", path)
    if dimensions:
        vectors = np.ascontiguousarray(vectors[:, :dimensions])
    return headrace_kernels.normalize_rows(vectors) if normalize else vectors
