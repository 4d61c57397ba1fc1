"""What a request may ask, before a model is held: a model that is named, counts within limits, a job the model does.

Which kinds of input a model reads is said by its pipeline, which reads them.
"""

from __future__ import annotations

from headrace_server.errors import Reason, ServingError, invalid_input
from headrace_server.models.model import Model, Task

__all__ = ["require_count", "require_model", "require_task", "wrong_task"]

_VERBS = {
    Task.CLASSIFY: "classify",
    Task.EMBED: "embed",
    Task.RERANK: "rerank",
    Task.GENERATE: "generate",
    Task.INFER: "infer on tensors",
}


def require_model(name: str, field: str = "model.name") -> None:
    """Raises INVALID_INPUT when no model is named."""
    if not name:
        raise invalid_input(field, "empty, a model's name is required")


def require_count(field: str, count: int, limit: int, *, what: str = "inputs") -> None:
    """Raises INVALID_INPUT unless there are from 1 to `limit` of them."""
    if not 1 <= count <= limit:
        raise invalid_input(field, f"{count} {what}, from 1 to {limit} are allowed", limit=limit)


def require_task(model: Model, *tasks: Task, verb: str = "") -> Task:
    """The first of `tasks` that the model does. Raises WRONG_TASK naming what it does."""
    for task in tasks:
        if task in model.tasks:
            return task
    raise wrong_task(model, verb or _VERBS[tasks[0]])


def wrong_task(model: Model, verb: str, why: str = "") -> ServingError:
    """The error for a model that does not do what `verb` says, naming what it does."""
    does = [task for task in Task if task in model.tasks]
    able = ", ".join(_VERBS[task] for task in does)
    return ServingError(
        Reason.WRONG_TASK,
        f"model {model.name!r} version {model.version!r} cannot {verb}{f' ({why})' if why else ''}; it can {able}",
        model=model.name,
        version=model.version,
        tasks=",".join(task.value for task in does),
    )
