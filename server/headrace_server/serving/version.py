"""Version: one version of a model as the repository keeps it, its status as others see it, and a lease on it."""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType

from headrace_server.engines.base import EngineInfo
from headrace_server.errors import Reason
from headrace_server.models.model import Model
from headrace_server.serving.context import Timings
from headrace_server.serving.fault import is_fault
from headrace_server.serving.servable import Servable
from headrace_server.serving.statistics import GroupRecord, RequestObserver, RequestRecord, VersionStatistics

__all__ = ["Lease", "ModelState", "ModelStatus", "Version"]


logger = logging.getLogger(__name__)


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
    labels: tuple[str, ...] = ()  # put on it by operators, sorted
    serving: bool = False  # answers requests that name no version
    model: Model | None = None  # None: not read yet, or not readable
    engine: EngineInfo | None = None  # None: not loaded
    ready_time: float | None = None  # Unix seconds
    queue_depth: int = 0  # rows that wait
    held_because: str = ""  # why it answers only those who name its version; "": nothing holds it


@dataclass(slots=True, eq=False)
class Version:
    """One loading of a version: its record. The repository's lock guards it.

    Where a version's files have changed, a second record of the same name is loaded beside the one that serves and
    takes its place.

    fingerprint  of the files that it was loaded from (`models.layout.fingerprint`)
    refused      of changed files that could not take its place; they are not tried again
    serve        what an operator who had it loaded wants: True, it shall serve; False, only if asked for; None: nobody
    loaded       what came of it
    folder       what it is loaded from
    returning    it rested, and is being brought back into memory
    last_used    when its last lease was given back, or it became ready; `time.monotonic()`
    """

    name: str
    version: str
    state: ModelState = ModelState.LOADING
    reason: str = ""
    fingerprint: str = ""
    refused: str = ""
    serve: bool | None = None
    model: Model | None = None
    servable: Servable | None = None
    ready_time: float | None = None
    num_leases: int = 0
    folder: Path | None = None
    returning: bool = False
    last_used: float = 0.0
    loaded: Future[ModelStatus] = field(default_factory=Future, repr=False)
    statistics: VersionStatistics = field(default_factory=VersionStatistics, repr=False)

    @property
    def held_because(self) -> str:
        """Why it may answer only those who name its version, by its report; "": it may serve, or is not read yet."""
        return "" if self.model is None else self.model.held_because

    def status(self, *, serving: bool, labels: tuple[str, ...] = (), note: str = "") -> ModelStatus:
        """As it stands; `note`: what else there is to say of it."""
        servable = self.servable
        held = self.held_because if self.state is ModelState.READY else ""
        return ModelStatus(
            name=self.name,
            version=self.version,
            state=self.state,
            reason="; ".join(filter(None, (self.reason, held and f"held: {held}", note))),
            labels=labels,
            serving=serving,
            model=self.model,
            engine=None if servable is None else servable.info,
            ready_time=self.ready_time,
            queue_depth=0 if servable is None else servable.depth,
            held_because=held,
        )


class Lease:
    """The right to use a servable until `end` or `release`, or until the `with` block ends.

    shadow    the version that is to get a copy of the request; "": none
    by_split  a split chose the version
    """

    __slots__ = ("_began_ns", "_give_back", "_observer", "by_split", "servable", "shadow", "version")

    def __init__(
        self,
        servable: Servable,
        version: Version,
        give_back: Callable[[Lease], None],
        observer: RequestObserver | None = None,
        shadow: str = "",
        by_split: bool = False,
    ) -> None:
        self._began_ns = perf_counter_ns()
        self.servable = servable
        self.shadow = shadow
        self.by_split = by_split
        self.version: Version | None = version  # None once given back; the repository's lock guards it
        self._give_back = give_back
        self._observer = observer

    def end(self, timings: Timings, num_rows: int, failure: Reason | None = None, *, accepted: bool = False) -> None:
        """Counts the request, which has been answered or has failed, and gives the lease back.

        accepted  of a failure: the version had made rows of the caller's input, as `serving.fault` means it
        """
        self.count(timings, num_rows, failure, accepted=accepted)
        self.release()

    def end_group(self, timings: Timings, queues_ns: Sequence[int], num_rows: int) -> None:
        """Counts requests that were answered together, of so many rows each, and gives the lease back.

        timings    of each, but for how long it waited: `queues_ns`, by request
        """
        version = self.version
        if version is not None and queues_ns:
            latency_ns = perf_counter_ns() - self._began_ns
            record = GroupRecord(version.name, version.version, timings, queues_ns, latency_ns, num_rows)
            try:
                version.statistics.on_group(record)
                if self._observer is not None:
                    self._observer.on_group(record)
            except Exception:
                logger.exception("the observer of requests failed", extra=timings.log_fields)
        self.release()

    def count(self, timings: Timings, num_rows: int, failure: Reason | None = None, *, accepted: bool = False) -> None:
        """As `end`, and keeps the lease: of several requests of one lease."""
        version = self.version
        if version is not None:
            latency_ns = perf_counter_ns() - self._began_ns
            fault = failure is not None and is_fault(failure, accepted=accepted)
            record = RequestRecord(
                version.name, version.version, timings, latency_ns, num_rows, failure, fault, self.by_split
            )
            try:
                version.statistics.on_request(record)
                if self._observer is not None:
                    self._observer.on_request(record)
            except Exception:
                logger.exception("the observer of requests failed", extra=timings.log_fields)

    def release(self) -> None:
        """Gives the lease back; nothing is counted. Safe from any thread; later calls do nothing."""
        self._give_back(self)

    def __enter__(self) -> Lease:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
