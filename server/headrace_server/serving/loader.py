"""Loader: a version's folder to a servable that has answered, beside whatever serves meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from headrace_server.config import ThreadBudget
from headrace_server.engines.factory import prepare_runtime
from headrace_server.errors import Reason, ServingError
from headrace_server.models.layout import fingerprint
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.models.model import Model
from headrace_server.serving.batch import BatchObserver
from headrace_server.serving.decoder.observer import DecoderObserver
from headrace_server.serving.loading import load_servable
from headrace_server.serving.memory import MemoryBudget
from headrace_server.serving.servable import Servable
from headrace_server.serving.short_turns import short_turns
from headrace_server.serving.statistics import VersionStatistics
from headrace_server.serving.version import Version
from headrace_server.serving.version_observer import VersionObserver
from headrace_server.telemetry.stall_meter import StallMeter

__all__ = ["Check", "Loader", "TakeRoom"]

logger = logging.getLogger(__name__)

TakeRoom = Callable[[Version, Model], None]  # before the engine is made; raises ServingError where there is none
Check = Callable[[Servable], None]  # raises ServingError where a servable does not answer as it should


class Loader:
    """Loads versions, each on the thread that asks.

    check  told of every servable before it may serve
    admit  told of every model before its engine is made: raises ServingError where it may not be
    memory told how much the process has grown
    stalls measures for how long nobody else could run meanwhile
    """

    def __init__(
        self,
        *,
        defaults: LoadDefaults | None = None,
        threads: ThreadBudget | None = None,
        batches: BatchObserver | None = None,
        decoders: DecoderObserver | None = None,
        check: Check | None = None,
        admit: Callable[[Model], None] | None = None,
        memory: MemoryBudget | None = None,
        stalls: StallMeter | None = None,
    ) -> None:
        self._defaults = defaults or LoadDefaults()
        self._threads = threads or ThreadBudget()
        self._batches = batches
        self._decoders = decoders
        self._check = check
        self._admit = admit
        self._memory = memory or MemoryBudget()
        self._stalls = stalls or StallMeter()

    def load(
        self, entry: Version, folder: Path, take_room: TakeRoom | None = None
    ) -> tuple[Servable | None, ServingError | None]:
        """The servable, or None and why not, which is in the log by then. Fills in the record's model and files."""
        started = time.monotonic()
        try:
            with self._stalls.watch() as stalls, short_turns():
                servable = self._load(entry, folder, take_room)
        except ServingError as error:
            logger.error("model %s/%s: not loaded: %s %s", entry.name, entry.version, error.message, error.detail)
            return None, error
        except BaseException:
            logger.exception("model %s/%s: not loaded", entry.name, entry.version)
            return None, ServingError(Reason.INTERNAL, "a fault of the server; its log says more")
        logger.info(
            "model %s/%s: ready in %.2f s; others were stalled for at most %.0f ms",
            *(entry.name, entry.version, time.monotonic() - started, stalls.longest_s * 1e3),
        )
        return servable, None

    def _load(self, entry: Version, folder: Path, take_room: TakeRoom | None) -> Servable:
        prepare_runtime()
        with self._memory.measured(entry):
            return self._read(entry, folder, take_room)

    def _read(self, entry: Version, folder: Path, take_room: TakeRoom | None) -> Servable:
        entry.fingerprint = fingerprint(folder)
        entry.model = model = load_model(folder, name=entry.name, version=entry.version, defaults=self._defaults)
        if take_room is not None:
            take_room(entry, model)
        if self._admit is not None:
            self._admit(model)
        observer = VersionObserver(VersionStatistics())  # what is asked to check it counts nowhere
        servable = load_servable(model, self._threads, batches=observer, decoders=observer)
        try:
            if self._check is not None:
                self._check(servable)
            if fingerprint(folder) != entry.fingerprint:
                raise ServingError(Reason.MODEL_INVALID, "its files changed while they were read; load it again")
        except BaseException:
            servable.close()
            raise
        observer.tell(entry.statistics, self._batches, self._decoders)
        return servable
