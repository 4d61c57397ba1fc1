"""Version: one version of a model as the repository keeps it, its status as others see it, and a lease on it."""

from __future__ import annotations

import enum
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

from headrace_server.engines.base import EngineInfo
from headrace_server.models.model import Model
from headrace_server.serving.servable import Servable

__all__ = ["Lease", "ModelState", "ModelStatus", "Version"]


class ModelState(enum.StrEnum):
    """How far a version is."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    READY = "ready"
    UNLOADING = "unloading"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """One version as it stood when it was asked for."""

    name: str
    version: str
    state: ModelState
    reason: str = ""  # why, where there is something to say
    labels: tuple[str, ...] = ()  # put on it by operators: none yet
    serving: bool = False  # answers requests that name no version
    model: Model | None = None  # None: not read yet, or not readable
    engine: EngineInfo | None = None  # None: not loaded
    ready_time: float | None = None  # Unix seconds
    queue_depth: int = 0  # rows that wait


@dataclass(slots=True, eq=False)
class Version:
    """A version's record. The repository's lock guards it."""

    name: str
    version: str
    state: ModelState = ModelState.LOADING
    reason: str = ""
    model: Model | None = None
    servable: Servable | None = None
    ready_time: float | None = None
    num_leases: int = 0
    loaded: Future[ModelStatus] | None = field(default=None, repr=False)

    def status(self, *, serving: bool) -> ModelStatus:
        """As it stands."""
        servable = self.servable
        return ModelStatus(
            name=self.name,
            version=self.version,
            state=self.state,
            reason=self.reason,
            serving=serving,
            model=self.model,
            engine=None if servable is None else servable.info,
            ready_time=self.ready_time,
            queue_depth=0 if servable is None else servable.depth,
        )


class Lease:
    """The right to use a servable until `release`, or until the `with` block ends."""

    __slots__ = ("_give_back", "servable", "version")

    def __init__(self, servable: Servable, version: Version, give_back: Callable[[Lease], None]) -> None:
        self.servable = servable
        self.version: Version | None = version  # None once given back; the repository's lock guards it
        self._give_back = give_back

    def release(self) -> None:
        """Gives the lease back. Safe from any thread; later calls do nothing."""
        self._give_back(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
