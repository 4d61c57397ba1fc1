"""What can go wrong, said once, in the server's own words.

Every refusal and failure below `rpc` is a `ServingError` with one `Reason`. A `Reason` says what happened,
never how a transport reports it: `rpc/status.py` holds the one table from `Reason` to gRPC status, and a test
proves that table total.

    ServingError
    ├─ what the caller sent     INVALID_INPUT, WRONG_TASK, UNSUPPORTED, PAYLOAD_TOO_LARGE
    ├─ what is not there        MODEL_NOT_FOUND, VERSION_NOT_FOUND, CATALOG_NOT_FOUND, ITEM_NOT_FOUND, ALREADY_EXISTS
    ├─ what is not there yet    MODEL_LOADING, MODEL_FAILED, VERSION_HELD, SHUTTING_DOWN
    ├─ load and time            QUEUE_FULL, DEADLINE_EXCEEDED, DEADLINE_INFEASIBLE, CANCELLED
    ├─ the operator's side      MODEL_INVALID, DEVICE_UNAVAILABLE, MEMORY_EXHAUSTED, CONFIG_INVALID, PERMISSION_DENIED
    ├─ what is kept on disk     STORAGE_FULL, STORAGE_CORRUPT, STORAGE_FAILED, STORAGE_LOCKED
    └─ ours                     INTERNAL
"""

from __future__ import annotations

import enum
import traceback
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["Reason", "Resource", "ServingError", "Violation", "as_serving_error", "invalid_input", "load_failed"]


class Reason(enum.Enum):
    """Why a request or a load was refused or failed."""

    INVALID_INPUT = "INVALID_INPUT"
    WRONG_TASK = "WRONG_TASK"
    UNSUPPORTED = "UNSUPPORTED"
    PAYLOAD_TOO_LARGE = "PAYLOAD_TOO_LARGE"
    MODEL_NOT_FOUND = "MODEL_NOT_FOUND"
    VERSION_NOT_FOUND = "VERSION_NOT_FOUND"
    CATALOG_NOT_FOUND = "CATALOG_NOT_FOUND"
    ITEM_NOT_FOUND = "ITEM_NOT_FOUND"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    MODEL_LOADING = "MODEL_LOADING"
    MODEL_FAILED = "MODEL_FAILED"
    VERSION_HELD = "VERSION_HELD"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    QUEUE_FULL = "QUEUE_FULL"
    DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
    DEADLINE_INFEASIBLE = "DEADLINE_INFEASIBLE"
    CANCELLED = "CANCELLED"
    MODEL_INVALID = "MODEL_INVALID"
    DEVICE_UNAVAILABLE = "DEVICE_UNAVAILABLE"
    MEMORY_EXHAUSTED = "MEMORY_EXHAUSTED"
    CONFIG_INVALID = "CONFIG_INVALID"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    STORAGE_FULL = "STORAGE_FULL"
    STORAGE_CORRUPT = "STORAGE_CORRUPT"
    STORAGE_FAILED = "STORAGE_FAILED"
    STORAGE_LOCKED = "STORAGE_LOCKED"
    INTERNAL = "INTERNAL"


@dataclass(frozen=True, slots=True)
class Violation:
    """One wrong field: `field` is its path in the request (`inputs[3].text`), `description` names value and limit."""

    field: str
    description: str


@dataclass(frozen=True, slots=True)
class Resource:
    """The thing that was asked for and is not there (`kind` is "model", "model_version", "catalog" or "item")."""

    kind: str
    name: str


class ServingError(Exception):
    """A refusal or failure with a reason, safe to show to the caller.

    message        one sentence for the caller: never a path, a stack trace or another caller's data
    violations     fields that are wrong, for INVALID_INPUT
    resource       what was not found or already exists
    retry_after_s  when trying again may help, seconds; None: no advice
    detail         for the server's own log only, never sent
    facts          short named values that a program may act on (`limit="512"`); sent as ErrorInfo metadata
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        /,
        *,
        violations: Iterable[Violation] = (),
        resource: Resource | None = None,
        retry_after_s: float | None = None,
        detail: str = "",
        **facts: object,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = tuple(violations)
        self.resource = resource
        self.retry_after_s = retry_after_s
        self.detail = detail
        self.facts = {name: str(value) for name, value in facts.items()}

    def __repr__(self) -> str:
        return f"ServingError({self.reason.name}, {self.message!r})"


def invalid_input(field: str, description: str, **facts: object) -> ServingError:
    """An INVALID_INPUT error about one field; `description` names the value and the limit."""
    error = ServingError(Reason.INVALID_INPUT, f"{field}: {description}", violations=[Violation(field, description)])
    error.facts.update((name, str(value)) for name, value in facts.items())
    return error


def load_failed(model: str, version: str, reason: str) -> ServingError:
    """The MODEL_FAILED error of whoever asks for a version that could not be loaded; `reason` is why."""
    return ServingError(
        Reason.MODEL_FAILED,
        f"model {model!r} version {version!r} could not be loaded: {reason}",
        model=model,
        version=version,
    )


def as_serving_error(error: BaseException, message: str = "the request could not be computed") -> ServingError:
    """`error` if it was meant for callers; else INTERNAL with `message`, and what happened kept for the log."""
    if isinstance(error, ServingError):
        return error
    internal = ServingError(Reason.INTERNAL, message, detail="".join(traceback.format_exception(error)))
    internal.__cause__ = error
    return internal
