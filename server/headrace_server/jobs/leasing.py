"""A request and the version it asks for: leased at once or, where that rests, once it is back; no thread waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from headrace_server.errors import Reason, ServingError, as_serving_error
from headrace_server.jobs.queries import ModelRef
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Lease
from headrace_server.serving.residence import ModelResting

__all__ = ["Leases", "refuse_the_dead", "when_leased"]


class Leases(Protocol):
    """Who hands out loaded versions: a repository, or what stands for a single version."""

    def acquire(self, name: str, *, version: str = "", label: str = "", routing_key: str = "") -> Lease:
        """A lease to be given back once. Raises ServingError as `Repository.acquire` does."""
        ...


def when_leased(
    versions: Leases,
    ref: ModelRef,
    context: RequestContext,
    go_on: Callable[[Lease], None],
    fail: Callable[[ServingError], None],
) -> None:
    """Calls `go_on` with a lease, which it is to give back, or `fail` with why there is none: one of them, once.

    Here, before this returns; where the version rests, on the parking thread, when it has come back or the request is
    cancelled, late, or can wait no longer. What `go_on` raises is `fail`'s too.
    """
    try:
        refuse_the_dead(context)
        lease = versions.acquire(ref.name, version=ref.version, label=ref.label, routing_key=ref.routing_key)
        context.timings.model = lease.servable.model.name
        context.timings.model_version = lease.servable.model.version
        go_on(lease)
    except ModelResting as resting:
        _wait(resting, versions, ref, context, go_on, fail)
    except BaseException as error:
        fail(as_serving_error(error))


def _wait(
    resting: ModelResting,
    versions: Leases,
    ref: ModelRef,
    context: RequestContext,
    go_on: Callable[[Lease], None],
    fail: Callable[[ServingError], None],
) -> None:
    def again(error: ServingError | None) -> None:
        if error is not None:
            fail(error)
        else:
            when_leased(versions, ref, context, go_on, fail)

    try:
        resting.wait(context, again)
    except ServingError as error:
        fail(error)


def refuse_the_dead(context: RequestContext) -> None:
    """Raises ServingError CANCELLED or DEADLINE_EXCEEDED for a request that nobody waits for any more."""
    if context.cancelled:
        raise ServingError(Reason.CANCELLED, "the request was cancelled")
    if context.expired:
        raise ServingError(Reason.DEADLINE_EXCEEDED, "the deadline passed before the request was prepared")
