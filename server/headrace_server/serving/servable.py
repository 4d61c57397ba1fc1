"""Servable: a Model and what computes it; what the repository keeps of a loaded version and a lease hands to a job."""

from __future__ import annotations

from typing import Protocol

from headrace_server.engines.base import EngineInfo
from headrace_server.models.model import Model

__all__ = ["Servable"]


class Servable(Protocol):
    """A loaded version. Thread-safe. A RowServable computes rows in batches, a TextServable makes tokens one by one."""

    @property
    def model(self) -> Model: ...

    @property
    def info(self) -> EngineInfo:
        """What it runs on."""
        ...

    @property
    def depth(self) -> int:
        """Rows, or sequences, that wait now."""
        ...

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and lets those it has end. False: the time was up."""
        ...

    def close(self, timeout_s: float = 30.0) -> None:
        """Fails what waits with SHUTTING_DOWN, lets what runs answer, frees the engine."""
        ...
