"""What the services that manage models need of a repository, beyond looking at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Protocol

from headrace_server.rpc.listing import ModelListing, VersionStatus
from headrace_server.serving.statistics import StatisticsSnapshot
from headrace_server.serving.traffic import Shadow, TrafficSplit
from headrace_server.serving.version import ModelStatus

__all__ = ["ModelManagement"]


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

    def statistics(self, name: str = "", version: str = "") -> Sequence[tuple[str, str, StatisticsSnapshot]]:
        """(model, version, counts) of every loaded version that is meant, by name and version."""
        ...
