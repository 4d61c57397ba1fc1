"""Infer: tensors in, tensors out, of every model; and of models that read text, images or files, by tensors of these.

The rows of a request join the batches of everybody else's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.config import InputLimits
from headrace_server.errors import Reason, ServingError, invalid_input
from headrace_server.jobs.checks import require_model, wrong_task
from headrace_server.jobs.embed import embedded
from headrace_server.jobs.infer_group import GroupRequest, InferShape
from headrace_server.jobs.infer_groups import Deliver, InferGroups
from headrace_server.jobs.infer_outputs import check_wanted, joined, select
from headrace_server.jobs.infer_queries import InferQuery, InferResult
from headrace_server.jobs.infer_rows import read_rows
from headrace_server.jobs.infer_views import infer_view
from headrace_server.jobs.queries import ModelRef
from headrace_server.jobs.ranking import stacked
from headrace_server.jobs.signatures import (
    EMBEDDING,
    LABEL,
    RELEVANCE,
    SCORES,
    split_name,
)
from headrace_server.jobs.submission import Copies, Finish, Leases, RowResult, Submissions, refused
from headrace_server.models.model import Model, Row, Task
from headrace_server.serving.context import RequestContext

__all__ = ["Infer"]

Array = npt.NDArray[Any]


class Infer:
    """Runs models on tensors. Thread-safe."""

    def __init__(self, versions: Leases, limits: InputLimits, copies: Copies | None = None) -> None:
        self._submissions = Submissions(versions, copies)
        self._groups = InferGroups(versions, limits)
        self._limits = limits
        self._inline: set[str] = set()  # names of models that computed their last request on the thread that brought it

    def answers_at_once(self, model: str) -> bool:
        """Whether the model, by its last request, is one of `batching.inline` and is asked by the graph's tensors.

        What it says may be out of date: a request is then prepared where it should not be, and waits its turn as ever.
        """
        return model in self._inline

    def answer_now(self, query: InferQuery, context: RequestContext) -> InferResult | None:
        """The outputs, computed on this thread; None: the request is to be submitted, and nothing has been done.

        Only of models that `answers_at_once` names. Raises ServingError, as the future of `submit`.
        """
        if query.model.name not in self._inline:
            return None

        def admit(model: Model) -> tuple[Mapping[str, Array], int]:
            view = infer_view(model, None)
            if query.outputs:
                check_wanted(query.outputs, view.signature)
            if view.cutter is None:
                raise wrong_task(model, "answer ModelInfer", "it generates text: use ModelStreamInfer")
            return view.cutter.feeds(query.inputs, self._limits.max_inputs)

        def finish(model: Model, outputs: Mapping[str, Array]) -> InferResult:
            signature = infer_view(model, None).signature
            return InferResult(select(outputs, query.outputs, signature), ModelRef(query.model.name, model.version))

        return self._submissions.compute_now(query.model, context, admit, finish, partial(self._admit, query, None))

    def answer_group(self, shape: InferShape, requests: Sequence[GroupRequest], deliver: Deliver) -> None:
        """As `InferGroups.answer`."""
        self._groups.answer(shape, requests, deliver)

    def submit(self, query: InferQuery, context: RequestContext) -> Future[InferResult]:
        """Future of the outputs. Cuts, or prepares, here; answers on an engine's worker.

        The future's exceptions are ServingError: INVALID_INPUT naming the field; WRONG_TASK for a model that generates
        text, which answers on a stream alone; what the repository says of the model, the batcher of load and time.
        """
        asked = query.model
        name, task = split_name(asked.name)
        ref = asked if task is None else replace(asked, name=name)
        try:
            require_model(name, "model_name")
        except ServingError as error:
            return refused(error)
        future = self._submissions.through_model(ref, context, partial(self._admit, query, task))
        if task is not None and future.done() and _is_unknown(future.exception()):  # a model whose own name ends so?
            return self._submissions.through_model(asked, context, partial(self._admit, query, None))
        return future

    def _admit(
        self, query: InferQuery, task: Task | None, model: Model
    ) -> tuple[Task, Sequence[Row], Finish[InferResult]]:
        view = infer_view(model, task)
        signature = view.signature
        if signature.decoupled:
            raise wrong_task(model, "answer ModelInfer", "it generates text: use ModelStreamInfer")
        wanted = query.outputs
        if wanted:
            check_wanted(wanted, signature)
        answered = ModelRef(query.model.name, model.version)
        if view.cutter is not None:
            inline = model.batching.inline and signature.max_batch_size > 0
            if inline != (query.model.name in self._inline):
                (self._inline.add if inline else self._inline.discard)(query.model.name)
            rows = view.cutter.rows(query.inputs, self._limits.max_inputs)

            def finish(results: Sequence[RowResult]) -> InferResult:
                outputs = joined(results) if signature.max_batch_size else results[0]
                return InferResult(select(outputs, wanted, signature), answered)

            return Task.INFER, rows, finish
        assert task is not None, "what is read is read for a task"
        if query.options.dimensions > model.embedding_dimension > 0:
            limit = model.embedding_dimension
            raise invalid_input(
                'parameters["dimensions"]', f"{query.options.dimensions}, the model has {limit}", limit=limit
            )
        rows = read_rows(model, task, signature, query.inputs, query.options, self._limits)
        path = f'inputs["{signature.inputs[0].name}"][{{}}]'.format

        def reduce(results: Sequence[RowResult]) -> InferResult:
            if task is Task.CLASSIFY:
                outputs = _classified(model, stacked(results, "scores", path))
            elif task is Task.EMBED:
                options = query.options
                normalize = model.normalized_by_default if options.normalize is None else options.normalize
                vectors = embedded(results, path, normalize=normalize, dimensions=options.dimensions)
                outputs = {EMBEDDING: vectors}
            else:
                outputs = {RELEVANCE: stacked(results, "relevance", path).reshape(-1, 1)}
            return InferResult(select(outputs, wanted, signature), answered)

        return task, rows, reduce


def _is_unknown(error: BaseException | None) -> bool:
    return isinstance(error, ServingError) and error.reason is Reason.MODEL_NOT_FOUND


def _classified(model: Model, scores: Array) -> dict[str, Array]:
    best = np.empty((len(scores), 1), dtype=object)
    for at, index in enumerate(scores.argmax(axis=1).tolist() if scores.shape[1] else ()):
        best[at, 0] = model.labels[index] if index < len(model.labels) else str(index)
    return {SCORES: scores, LABEL: best}
