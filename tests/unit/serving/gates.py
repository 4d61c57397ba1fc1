"""Runners for the batcher's tests: real functions that run on its threads and are held open by a gate."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from headrace_server.models.model import Row
from headrace_server.serving.batch import BatchResult

__all__ = ["GatedRunner", "row", "value_of"]


def row(value: float, *, length: int = 0, shape_key: tuple[object, ...] = ()) -> Row:
    return Row({"x": np.array([value], np.float32)}, length=length, shape_key=shape_key)


def value_of(result: dict[str, np.ndarray]) -> float:
    return float(result["y"][0])


class GatedRunner:
    """Doubles each row's x. Every run waits for a permit; `open` lets all pass. `seen` lists what each run was given.

    A row of value -1 fails every run that it is part of.
    """

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.lengths: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self._permits = threading.Semaphore(0)
        self._is_open = False

    def permit(self, runs: int = 1) -> None:
        self._permits.release(runs)

    def open(self) -> None:
        self._is_open = True
        self._permits.release(1000)

    def wait_until_running(self) -> None:
        assert self.entered.acquire(timeout=10)

    def __call__(self, rows: Sequence[Row]) -> BatchResult:
        values = [float(row.arrays["x"][0]) for row in rows]
        self.seen.append(values)
        self.lengths.append([row.length for row in rows])
        self.entered.release()
        if not self._is_open:
            assert self._permits.acquire(timeout=20)
        if -1.0 in values:
            raise RuntimeError("poison")
        return BatchResult([{"y": row.arrays["x"] * 2} for row in rows])
