"""Repositories of small real graphs for the tests of their versions: each version multiplies by its own number."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import model_folders
import numpy as np

from headrace_server.config import LifecycleOptions, ThreadBudget
from headrace_server.models.model import Row, Task
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository

__all__ = ["Opened", "answer", "put", "states", "wait_until"]

BUDGET = ThreadBudget(num_cores=2)


class Opened:
    """Opens repositories over one directory, and closes them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._opened: list[Repository] = []

    def __call__(self, *, wait: bool = True, **options: Any) -> Repository:
        names = LifecycleOptions.__dataclass_fields__
        lifecycle = LifecycleOptions(**{name: options.pop(name) for name in list(options) if name in names})
        repository = Repository(self.directory, threads=BUDGET, lifecycle=lifecycle, **options)
        self._opened.append(repository)
        repository.start()
        if wait:
            assert repository.wait_ready(30)
        return repository

    def close(self) -> None:
        for repository in self._opened:
            repository.close(timeout_s=10)


def put(folder: Path, factor: float | None) -> Path:
    """A version folder, whole at once; None: one that cannot be loaded."""
    aside = folder.with_name(f".{folder.name}.{time.time_ns()}")
    if factor is None:
        model_folders.damaged(aside)
    else:
        model_folders.linear(aside, factor)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    return folder


def answer(repository: Repository, name: str = "m", **which: str) -> float:
    """What 1 becomes."""
    with repository.acquire(name, **which) as lease:
        rows = [Row({"x": np.ones(4, np.float32)})]
        return float(lease.servable.submit(Task.INFER, rows, RequestContext()).result(20)[0]["y"][0])


def states(repository: Repository) -> dict[str, str]:
    """State by name/version; the serving ones with a star."""
    return {
        f"{status.name}/{status.version}": f"{status.state.value}{'*' if status.serving else ''}"
        for status in repository.status()
    }


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.002)
