"""Classify: ranked labels for each input."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial

from headrace_server.config import InputLimits
from headrace_server.errors import ServingError, invalid_input
from headrace_server.jobs.checks import require_count, require_model, require_task
from headrace_server.jobs.queries import (
    Classification,
    ClassifyQuery,
    ClassifyResult,
    InputUsage,
    LabelScore,
    ModelRef,
)
from headrace_server.jobs.ranking import ranked, stacked
from headrace_server.jobs.submission import Copies, Finish, Leases, RowResult, Submissions, refused
from headrace_server.models.model import Model, Row, Task
from headrace_server.serving.context import RequestContext

__all__ = ["Classify"]


class Classify:
    """Puts inputs into classes. Thread-safe."""

    def __init__(self, versions: Leases, limits: InputLimits, copies: Copies | None = None) -> None:
        self._submissions = Submissions(versions, copies)
        self._limits = limits

    def submit(self, query: ClassifyQuery, context: RequestContext) -> Future[ClassifyResult]:
        """Future of one Classification an input, in order. Prepares here, blocking; answers on an engine's worker.

        The future's exceptions are ServingError: INVALID_INPUT naming the field, WRONG_TASK, what the repository says
        of the model, and what the batcher says of load and time.
        """
        try:
            self._check(query)
        except ServingError as error:
            return refused(error)
        return self._submissions.through_model(query.model, context, partial(self._admit, query))

    def _check(self, query: ClassifyQuery) -> None:
        require_model(query.model.name)
        require_count("inputs", len(query.inputs), self._limits.max_inputs)
        if not 0 <= query.top_k <= self._limits.max_top_k:
            limit = self._limits.max_top_k
            raise invalid_input("top_k", f"{query.top_k}, from 0 (all) to {limit} is allowed", limit=limit)
        if query.threshold is not None and not 0 <= query.threshold <= 1:  # NaN is neither
            raise invalid_input("threshold", f"{query.threshold}, from 0 to 1 is allowed")

    def _admit(self, query: ClassifyQuery, model: Model) -> tuple[Task, Sequence[Row], Finish[ClassifyResult]]:
        task = require_task(model, Task.CLASSIFY)
        rows = model.pipelines[task].prepare(query.inputs, query.prepare, field="inputs")
        usage = [InputUsage(row.num_units, row.truncated) for row in rows]
        return task, rows, partial(_classified, model, usage, query.top_k, query.threshold)


def _classified(
    model: Model, usage: Sequence[InputUsage], top_k: int, threshold: float | None, results: Sequence[RowResult]
) -> ClassifyResult:
    labels, num_labels = model.labels, len(model.labels)
    rankings = ranked(stacked(results, "scores", "inputs[{}]".format), top_k, threshold)
    classifications = tuple(
        Classification(
            tuple(
                LabelScore(labels[index] if index < num_labels else str(index), index, score)
                for index, score in ranking
            ),
            row_usage,
        )
        for ranking, row_usage in zip(rankings, usage, strict=True)
    )
    return ClassifyResult(classifications, ModelRef(model.name, model.version))
