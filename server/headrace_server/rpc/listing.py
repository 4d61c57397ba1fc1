"""What the model services need of a repository: the versions it knows, as they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headrace_server.engines.base import EngineInfo
from headrace_server.models.model import Model

__all__ = ["ModelListing", "VersionStatus"]


class VersionStatus(Protocol):
    """One version as it stands."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def state(self) -> str: ...  # "unloaded", "loading", "ready", "unloading", "failed"
    @property
    def reason(self) -> str: ...  # why, where there is something to say
    @property
    def labels(self) -> Sequence[str]: ...  # that operators have put on it
    @property
    def serving(self) -> bool: ...  # answers requests that name no version
    @property
    def model(self) -> Model | None: ...  # None: it was not read, or could not be
    @property
    def engine(self) -> EngineInfo | None: ...  # None: not loaded
    @property
    def ready_time(self) -> float | None: ...  # Unix seconds
    @property
    def held_because(self) -> str: ...  # why it answers only those who name its version; "": nothing holds it


class ModelListing(Protocol):
    """A repository, to look at."""

    def status(self) -> Sequence[VersionStatus]:
        """Every version."""
        ...
