"""Residence: which of the ready versions are in memory; makes room, lets idle ones rest, brings them back on demand.

    in memory ──idle, or room is needed──▶ resting ──first request──▶ coming back ──▶ in memory

All three are READY: a version that rests answers like any other, only later. Never put to rest: what is leased, what
carries the label `stable`, what is being replaced, what has just come back and whose waiting requests are being told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from headrace_server.engines.heap import trim_heap
from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Model
from headrace_server.serving import refusals
from headrace_server.serving.context import RequestContext
from headrace_server.serving.known_model import KnownModel
from headrace_server.serving.memory import Holding, MemoryBudget, MemoryEstimate, estimate_memory
from headrace_server.serving.parking import GoOn, Parking
from headrace_server.serving.servable import Servable
from headrace_server.serving.version import ModelState, Version

__all__ = ["STABLE", "ModelResting", "Residence"]

logger = logging.getLogger(__name__)

STABLE = "stable"  # the label whose version always stays in memory

_RESTING = "idle, not in memory: the next request brings it back"
_PATIENCE_S = 10.0  # how long a load waits for versions that are in use now
_POLL_S = 0.05
_RETRY_S = 1.0


class ModelResting(ServingError):
    """The version that was asked for is ready, but not in memory; it is on its way back.

    Whoever cannot wait reports it as it is. Whoever can calls `wait` with what to do then.
    """

    def __init__(self, entry: Version, residence: Residence) -> None:
        super().__init__(
            Reason.MODEL_LOADING,
            f"model {entry.name!r} is being brought back into memory",
            retry_after_s=_RETRY_S,
            model=entry.name,
        )
        self._entry = entry
        self._residence = residence

    @property
    def model(self) -> Model | None:
        """What is known of the version meanwhile."""
        return self._entry.model

    def wait(self, context: RequestContext, go_on: GoOn) -> None:
        """Has `go_on` called once, on a thread of its own: with None when the version may be asked for again, or with
        why it is not waited for any longer. No thread is held.

        raises  ServingError MODEL_LOADING where too many wait already, SHUTTING_DOWN; `go_on` is not called then
        """
        self._residence.wait(self._entry, context, go_on)


class Residence:
    """Who is in memory. Thread-safe; the store's lock guards the records, and is never held over a load or a close.

    lock         the store's; `changed` is its condition, told when the last lease on a version was given back
    models       all that are known; read under the lock
    load         loads a version again on a loading thread: (servable, None), or (None, why not)
    begin        runs a function on a loading thread
    on_failed    a version could not be brought back and is FAILED now; under the lock
    on_change    told after something changed, holding no lock
    idle_s       a version that nobody asked for so long rests; 0: only where room is needed
    """

    def __init__(
        self,
        changed: threading.Condition,
        models: Mapping[str, KnownModel],
        *,
        budget: MemoryBudget,
        load: Callable[[Version], tuple[Servable | None, ServingError | None]],
        begin: Callable[[Callable[[], None]], object],
        on_failed: Callable[[Version], None],
        on_change: Callable[[], None],
        idle_s: float = 0.0,
        parking: Parking | None = None,
    ) -> None:
        self._changed = changed
        self._models = models
        self._load = load
        self._begin = begin
        self._on_failed = on_failed
        self._on_change = on_change
        self._idle_s = idle_s
        self._parking = parking or Parking()
        self._room = threading.Lock()  # held while somebody makes room; the store's lock is taken inside it
        self._closing = False
        self._num_rests: Counter[tuple[str, str]] = Counter()  # by model and cause
        self._num_returns: Counter[tuple[str, str]] = Counter()  # by model and outcome
        self.budget = budget

    # asked for

    def resting(self, entry: Version) -> ModelResting:
        """What to raise for a request whose version rests; its return has begun. Under the store's lock."""
        self.begin_return(entry)
        return ModelResting(entry, self)

    def begin_return(self, entry: Version) -> None:
        """Brings a version that rests back into memory, once. Under the store's lock."""
        if not entry.returning:
            entry.returning = True
            self._begin(lambda: self._bring_back(entry))

    def wait(self, entry: Version, context: RequestContext, go_on: GoOn) -> None:
        """As `ModelResting.wait`."""
        with self._changed:
            if entry.returning and entry.servable is None:
                self._parking.park(entry, context, go_on)
                return
        go_on(None)  # it came back in between, or never will: asking again tells

    @property
    def num_waiting(self) -> int:
        """Requests that wait for a version to come back."""
        return self._parking.num_waiting

    # room

    def admit(self, entry: Version, model: Model) -> None:
        """Counts what is about to be loaded against the budget, on the loading thread; puts others to rest for it, the
        least recently used first. Nothing is put to rest for what cannot fit.

        raises  ServingError MEMORY_EXHAUSTED with the figures
        """
        estimate = estimate_memory(model)
        until = time.monotonic() + _PATIENCE_S
        while not self._closing:
            with self._room:
                for victim in self._victims(entry, estimate):
                    self._rest(victim, "room")
                if self.budget.take(entry, entry.name, entry.version, estimate):
                    return
            with self._changed:
                arriving = self._arriving(entry)
                if arriving:
                    until = time.monotonic() + _PATIENCE_S  # from when they are there, and may rest
                if time.monotonic() >= until or not self._may_fit_later(entry, estimate, arriving):
                    break
                self._changed.wait(_POLL_S)
        if self._closing:
            raise refusals.shutting_down()
        raise self.budget.refusal(entry, entry.name, entry.version, estimate)

    def release(self, entry: Version) -> None:
        """A version is closed, or could not be loaded."""
        self.budget.give_back(entry)
        trim_heap()

    def rest_idle(self) -> None:
        """Puts to rest what nobody asked for in `idle_s`."""
        if not self._idle_s:
            return
        before = time.monotonic() - self._idle_s
        with self._changed:
            idle = [entry for entry in self._restable() if entry.last_used <= before]
        for entry in idle:
            with self._room:
                self._rest(entry, "idle", before)

    def close(self) -> None:
        """Tells all who wait SHUTTING_DOWN, and loads nothing again. Returns at once."""
        self._closing = True
        self._parking.close()

    def join(self) -> None:
        """Waits until all who waited have been told."""
        self._parking.join()

    # what is seen

    def holdings(self) -> list[Holding]:
        """What every version holds."""
        return self.budget.holdings()

    def num_rests(self) -> Mapping[tuple[str, str], int]:
        """Versions put to rest, by model and cause ("idle" or "room")."""
        with self._changed:
            return dict(self._num_rests)

    def num_returns(self) -> Mapping[tuple[str, str], int]:
        """Versions brought back, by model and outcome ("succeeded" or "failed")."""
        with self._changed:
            return dict(self._num_returns)

    # resting

    def _restable(self, beside: Version | None = None) -> list[Version]:
        """What may be put to rest, the least recently used first. Under the store's lock."""
        found = [
            entry
            for model in self._models.values()
            for entry in _in_memory(model)
            if not entry.num_leases and not (beside is not None and _same(entry, beside))
        ]
        return sorted(found, key=lambda entry: entry.last_used)

    def _victims(self, entry: Version, estimate: MemoryEstimate) -> list[Version]:
        """Who has to rest for `estimate`; nobody where it fits without, or would not fit with all of them."""
        lacking = self.budget.lacking(entry, estimate)
        if not lacking:
            return []
        with self._changed:
            restable = self._restable(entry)
        chosen: list[Version] = []
        for each in restable:
            if lacking <= 0:
                break
            lacking -= self._gain(each)
            chosen.append(each)
        return [] if lacking > 0 else chosen

    def _arriving(self, entry: Version) -> list[Version]:
        """Others that are being loaded and are counted already. Under the store's lock."""
        records = [each for model in self._models.values() for each in model.records() if each is not entry]
        return [each for each in records if (each.returning or each.state is ModelState.LOADING) and self._gain(each)]

    def _may_fit_later(self, entry: Version, estimate: MemoryEstimate, arriving: list[Version]) -> bool:
        """Whether it would fit once all that is loaded was there and not leased. Under the store's lock."""
        there = [each for model in self._models.values() for each in _in_memory(model) if not _same(each, entry)]
        return self.budget.lacking(entry, estimate) <= sum(self._gain(each) for each in (*there, *arriving))

    def _gain(self, entry: Version) -> int:
        holding = self.budget.holding(entry)
        return 0 if holding is None else holding.bytes - holding.estimate.kept_bytes

    def _rest(self, entry: Version, cause: str, before: float | None = None) -> None:
        """Closes a version that nobody uses. Under `_room`."""
        with self._changed:
            if entry not in self._restable() or (before is not None and entry.last_used > before):
                return
            servable, entry.servable = entry.servable, None
            entry.reason = _RESTING
            self._num_rests[entry.name, cause] += 1
        assert servable is not None
        servable.close()
        del servable
        self.budget.rest(entry)
        trim_heap()
        logger.info("model %s/%s: put to rest (%s)", entry.name, entry.version, cause)
        self._on_change()

    def _bring_back(self, entry: Version) -> None:
        """On a loading thread."""
        servable, error = self._load_again(entry)
        unused: Servable | None = None
        with self._changed:
            entry.returning = False
            self._num_returns[entry.name, "failed" if servable is None else "succeeded"] += 1
            if servable is not None and (self._closing or entry.state is not ModelState.READY):
                unused, servable = servable, None
            if servable is not None:
                entry.servable, entry.reason, entry.last_used = servable, "", time.monotonic()
                entry.num_leases += 1  # until those who waited have been told
            elif entry.state is ModelState.READY and error is not None:
                if error.reason is Reason.MEMORY_EXHAUSTED:
                    entry.reason = f"{_RESTING}; there was no room for it: {error.message}"
                else:
                    entry.state, entry.reason = ModelState.FAILED, error.message
                    self._on_failed(entry)
        if unused is not None:
            unused.close()
        if servable is None:
            self._no_return(entry)
        no_room = error if error is not None and error.reason is Reason.MEMORY_EXHAUSTED else None
        self._parking.release(entry, no_room, lambda: self._told(entry, servable is not None))
        self._on_change()

    def _load_again(self, entry: Version) -> tuple[Servable | None, ServingError | None]:
        try:
            if entry.model is not None:
                self.admit(entry, entry.model)  # before anything is read
            return self._load(entry)
        except ServingError as error:
            logger.warning("model %s/%s: not brought back: %s", entry.name, entry.version, error.message)
            return None, error
        except BaseException:  # whoever waits must be told
            logger.exception("model %s/%s: not brought back", entry.name, entry.version)
            return None, ServingError(Reason.INTERNAL, "a fault of the server; its log says more")

    def _no_return(self, entry: Version) -> None:
        """What a return had counted is free again; the version's description stays where it goes on resting."""
        if entry.state is ModelState.READY:
            self.budget.rest(entry)
            trim_heap()
        else:
            self.release(entry)

    def _told(self, entry: Version, is_back: bool) -> None:
        if is_back:
            with self._changed:
                entry.num_leases -= 1
                entry.last_used = time.monotonic()
                self._changed.notify_all()


def _in_memory(model: KnownModel) -> Iterable[Version]:
    """Versions that could rest if nobody leased them. Under the store's lock."""
    stable = model.choices.labels.get(STABLE)
    return [
        entry
        for entry in model.versions.values()
        if entry.state is ModelState.READY
        and entry.servable is not None
        and entry.version != stable
        and entry.version not in model.candidates
    ]


def _same(entry: Version, other: Version) -> bool:
    return (entry.name, entry.version) == (other.name, other.version)
