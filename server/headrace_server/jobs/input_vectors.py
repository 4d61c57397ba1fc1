"""Vectors of inputs that are no request of their own: items to be stored, and queries to be searched by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from headrace_server.config import InputLimits
from headrace_server.errors import ServingError, Violation
from headrace_server.jobs.checks import require_count, require_task
from headrace_server.jobs.embed import embedded
from headrace_server.jobs.queries import ModelRef, Vectors
from headrace_server.jobs.submission import Copies, Finish, Leases, RowResult, Submissions, refused
from headrace_server.models.inputs import Input
from headrace_server.models.model import Model, PrepareOptions, Row, Task
from headrace_server.serving.context import RequestContext

__all__ = ["EmbeddedInputs", "InputVectors", "renumbered"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedInputs:
    """vectors f32[m, d] of the inputs in order, less those in `faults`, which are by index; the version that answered.

    Vectors are of length 1 where the model is meant to be used so.
    """

    vectors: Vectors
    model: ModelRef
    faults: Mapping[int, ServingError] = field(default_factory=dict)


class InputVectors:
    """Embeds inputs through a model of the repository. Thread-safe."""

    def __init__(self, versions: Leases, limits: InputLimits, copies: Copies | None = None) -> None:
        self._submissions = Submissions(versions, copies)
        self._limits = limits

    def submit(
        self, model: ModelRef, inputs: Sequence[Input], context: RequestContext, path: str
    ) -> Future[EmbeddedInputs]:
        """Future of the vectors; `path` is the request's field that holds the inputs. Prepares here, blocking."""
        try:
            require_count(path, len(inputs), self._limits.max_inputs)
        except ServingError as error:
            return refused(error)
        return self._submissions.through_model(model, context, partial(_admit, inputs, path))

    def submit_valid(
        self, model: ModelRef, inputs: Sequence[Input | ServingError], context: RequestContext, path: str
    ) -> Future[EmbeddedInputs]:
        """The same, leaving out inputs that are errors already or that the model cannot read, each told in `faults`."""
        return self._submissions.through_model(model, context, partial(_admit_valid, inputs, path))


def renumbered(error: ServingError, path: str, index: int) -> ServingError:
    """The error of a list's only element, told as that of its element `index`."""
    old, new = f"{path}[0]", f"{path}[{index}]"
    return ServingError(
        error.reason,
        error.message.replace(old, new, 1),
        violations=[Violation(each.field.replace(old, new, 1), each.description) for each in error.violations],
        resource=error.resource,
        retry_after_s=error.retry_after_s,
        detail=error.detail,
        **error.facts,
    )


def _admit(inputs: Sequence[Input], path: str, model: Model) -> tuple[Task, Sequence[Row], Finish[EmbeddedInputs]]:
    task = require_task(model, Task.EMBED)
    rows = model.pipelines[task].prepare(inputs, PrepareOptions(), field=path)
    return task, rows, partial(_finished, model, path, range(len(inputs)), {})


def _admit_valid(
    inputs: Sequence[Input | ServingError], path: str, model: Model
) -> tuple[Task, Sequence[Row], Finish[EmbeddedInputs]]:
    task = require_task(model, Task.EMBED)
    rows: list[Row] = []
    places: list[int] = []
    faults: dict[int, ServingError] = {}
    for index, each in enumerate(inputs):
        if isinstance(each, ServingError):
            faults[index] = each
            continue
        try:
            rows += model.pipelines[task].prepare([each], PrepareOptions(), field=path)
            places.append(index)
        except ServingError as error:
            faults[index] = renumbered(error, path, index)
    return task, rows, partial(_finished, model, path, places, faults)


def _finished(
    model: Model,
    path: str,
    places: Sequence[int],
    faults: Mapping[int, ServingError],
    results: Sequence[RowResult],
) -> EmbeddedInputs:
    ref = ModelRef(model.name, model.version)
    if not results:
        return EmbeddedInputs(vectors=np.empty((0, 0), dtype=np.float32), model=ref, faults=faults)
    vectors = embedded(results, lambda row: f"{path}[{places[row]}]", normalize=model.normalized_by_default)
    return EmbeddedInputs(vectors=vectors, model=ref, faults=faults)
