"""The refusals a batcher gives, in one place: each says what the limit was and when to try again."""

from __future__ import annotations

from headrace_server.errors import Reason, ServingError

__all__ = ["cancelled", "deadline_infeasible", "deadline_passed", "queue_full", "request_too_large", "shutting_down"]


def cancelled() -> ServingError:
    """The caller gave the request up."""
    return ServingError(Reason.CANCELLED, "the request was cancelled")


def shutting_down() -> ServingError:
    """The model is being taken out of service; another server or version may answer."""
    return ServingError(Reason.SHUTTING_DOWN, "the model is shutting down")


def deadline_passed() -> ServingError:
    """The deadline passed while the request waited, or came too near to compute it in time."""
    return ServingError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the request could be computed")


def deadline_infeasible(*, remaining_s: float, needed_s: float) -> ServingError:
    """The queue and the engine together need longer than the caller gave."""
    return ServingError(
        Reason.DEADLINE_INFEASIBLE,
        f"the deadline is {remaining_s * 1e3:.1f} ms away, and an answer needs about {needed_s * 1e3:.1f} ms",
        retry_after_s=max(0.01, needed_s - remaining_s),
        remaining_ms=f"{remaining_s * 1e3:.1f}",
        needed_ms=f"{needed_s * 1e3:.1f}",
    )


def queue_full(*, rows: int, waiting: int, limit: int, retry_after_s: float) -> ServingError:
    """No room for every row of the request; none was admitted."""
    return ServingError(
        Reason.QUEUE_FULL,
        f"{waiting} rows are waiting, {rows} more would exceed the limit of {limit}",
        retry_after_s=retry_after_s,
        waiting=waiting,
        limit=limit,
    )


def request_too_large(*, rows: int, limit: int) -> ServingError:
    """More rows than the queue ever holds: trying again cannot help."""
    return ServingError(
        Reason.PAYLOAD_TOO_LARGE, f"the request has {rows} rows, the limit is {limit}", rows=rows, limit=limit
    )
