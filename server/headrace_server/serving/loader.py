"""Loader: a version's folder to a servable that has answered, beside whatever serves meanwhile."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from headrace_server.config import ThreadBudget
from headrace_server.errors import Reason, ServingError
from headrace_server.models.layout import fingerprint
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.models.model import Model
from headrace_server.serving.batch import BatchObserver
from headrace_server.serving.decoder.observer import DecoderObserver
from headrace_server.serving.loading import load_servable
from headrace_server.serving.servable import Servable
from headrace_server.serving.version import Version
from headrace_server.serving.version_observer import VersionObserver

__all__ = ["Check", "Loader"]

logger = logging.getLogger(__name__)

Check = Callable[[Servable], None]  # raises ServingError where a servable does not answer as it should


class Loader:
    """Loads versions, each on the thread that asks.

    check  told of every servable before it may serve
    admit  told of every model before its engine is made: raises ServingError where it may not be
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
    ) -> None:
        self._defaults = defaults or LoadDefaults()
        self._threads = threads or ThreadBudget()
        self._batches = batches
        self._decoders = decoders
        self._check = check
        self._admit = admit

    def load(self, entry: Version, folder: Path) -> tuple[Servable | None, str]:
        """The servable, or None and why not, which is in the log by then. Fills in the record's model and files."""
        started = time.monotonic()
        try:
            servable = self._load(entry, folder)
        except ServingError as error:
            logger.error("model %s/%s: not loaded: %s %s", entry.name, entry.version, error.message, error.detail)
            return None, error.message
        except BaseException:
            logger.exception("model %s/%s: not loaded", entry.name, entry.version)
            return None, "a fault of the server; its log says more"
        logger.info("model %s/%s: ready in %.2f s", entry.name, entry.version, time.monotonic() - started)
        return servable, ""

    def _load(self, entry: Version, folder: Path) -> Servable:
        entry.fingerprint = fingerprint(folder)
        entry.model = model = load_model(folder, name=entry.name, version=entry.version, defaults=self._defaults)
        if self._admit is not None:
            self._admit(model)
        observer = VersionObserver(entry.statistics, self._batches, self._decoders)
        servable = load_servable(model, self._threads, batches=observer, decoders=observer)
        try:
            if self._check is not None:
                self._check(servable)
            if fingerprint(folder) != entry.fingerprint:
                raise ServingError(Reason.MODEL_INVALID, "its files changed while they were read; load it again")
        except BaseException:
            servable.close()
            raise
        return servable
