"""What the services that manage models need of a repository, beyond looking at it; and how they wait for a load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import Protocol

from headrace_server.errors import Reason, ServingError
from headrace_server.rpc.listing import ModelListing, VersionStatus
from headrace_server.serving.context import RequestContext
from headrace_server.serving.decisions import Section
from headrace_server.serving.statistics import StatisticsSnapshot
from headrace_server.serving.traffic import Shadow, TrafficSplit
from headrace_server.serving.version import ModelStatus

__all__ = ["ModelManagement", "until_over"]


class ModelManagement(ModelListing, Protocol):
    """A repository, to change. Every method is thread-safe and raises ServingError: MODEL_NOT_FOUND and
    VERSION_NOT_FOUND with the resource, INVALID_INPUT naming the field, SHUTTING_DOWN; STORAGE_FAILED where the change
    could not be kept, and then it was not made."""

    def load(self, name: str, version: str = "", *, serve: bool = True) -> Future[ModelStatus]:
        """Loads a version (the newest in the directory where none is named), again where its files have changed, and
        has it serve. The future's status says whether it failed, and why; a failure changes nothing else."""
        ...

    def unload(self, name: str, version: str = "") -> Sequence[VersionStatus]:
        """Takes a version, or all of a model's, out of service once their running requests have ended."""
        ...

    def set_label(self, name: str, label: str, version: str) -> Mapping[str, str]:
        """Puts a label on a version ("" takes it off); all labels of the model then."""
        ...

    def set_split(self, name: str, split: TrafficSplit) -> TrafficSplit:
        """Splits a model's traffic; no shares: no split any more. Every version named must be ready."""
        ...

    def split(self, name: str) -> TrafficSplit:
        """A model's split as it stands."""
        ...

    def set_shadow(self, name: str, shadow: Shadow | None) -> Shadow | None:
        """Has copies of a model's requests sent to a ready version; None: no more."""
        ...

    def shadow(self, name: str) -> Shadow | None:
        """A model's shadow as it stands."""
        ...

    def reset(self, name: str, sections: Set[Section] = frozenset(Section)) -> None:
        """Forgets what was decided about a model: its file and the policy hold again."""
        ...

    def statistics(self, name: str = "", version: str = "") -> Sequence[tuple[str, str, StatisticsSnapshot]]:
        """(model, version, counts) of every loaded version that is meant, by name and version."""
        ...


def until_over(future: Future[ModelStatus], context: RequestContext) -> Future[ModelStatus]:
    """The same result, or an error as soon as the call is cancelled or late; the load itself goes on."""
    over: Future[ModelStatus] = Future()

    def tell(ended: Future[ModelStatus]) -> None:
        error = ended.exception() if not ended.cancelled() else _given_up()
        with suppress(InvalidStateError):  # the call may be over
            if error is None:
                over.set_result(ended.result())
            else:
                over.set_exception(error)

    def give_up() -> None:
        reason = Reason.DEADLINE_EXCEEDED if context.expired else Reason.CANCELLED
        with suppress(InvalidStateError):  # it may have ended
            over.set_exception(ServingError(reason, "not awaited any more; the load goes on"))

    context.on_cancel(give_up)
    future.add_done_callback(tell)
    return over


def _given_up() -> ServingError:
    """Of a load that had not begun when the server stopped."""
    return ServingError(Reason.SHUTTING_DOWN, "the server is shutting down")
