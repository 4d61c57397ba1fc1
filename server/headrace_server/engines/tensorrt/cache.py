"""Built plans kept on disk, by everything that they depend on: one process builds, others wait and load what it built.

    KEY.plan, KEY.plan.json    the plan and its sidecar, which holds the plan's digest
    KEY.lock                   held while a plan is read, loaded or built; the system frees it where a process dies
    timing-….cache             tactics that TensorRT timed on this GPU

Files appear whole: written under another name, synced, renamed. A plan that is not what its sidecar says, or that the
library does not take, is deleted and built again, once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from headrace_server.errors import Reason, ServingError
from headrace_server.models.tensorrt_plan import SIDECAR_SUFFIX, PlanSidecar, parse_sidecar

__all__ = ["Cached", "PlanCache", "file_lock", "plan_key", "write_whole"]

logger = logging.getLogger(__name__)

LoadedT = TypeVar("LoadedT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cached(Generic[LoadedT]):
    """A plan that the library took. `built`: it was not there, or not as it should be."""

    loaded: LoadedT
    sidecar: PlanSidecar
    built: bool


def plan_key(**parts: object) -> str:
    """SHA-256, in hex, over all that a plan depends on: differs when any part does. Parts are JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class PlanCache:
    """Plans in `directory`, of at most `max_bytes` in all; those longest unused leave first."""

    def __init__(self, directory: Path, *, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes

    def get_or_build(
        self,
        key: str,
        build: Callable[[], tuple[bytes, PlanSidecar]],
        load: Callable[[bytes, PlanSidecar], LoadedT | None],
    ) -> Cached[LoadedT]:
        """The plan of `key`, loaded.

        build   a plan and its sidecar; called at most once, by one process at a time
        load    what the library makes of a plan; None: it does not take it
        raises  ServingError MODEL_INVALID where the library does not take what was just built; STORAGE_FAILED where
                the directory cannot be written
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            with file_lock(self._directory / f"{key}.lock"):
                kept = self._read(key)
                loaded = None if kept is None else load(*kept)
                if kept is not None and loaded is not None:
                    self._touch(key)
                    return Cached(loaded=loaded, sidecar=kept[1], built=False)
                if kept is not None:
                    logger.warning("the cached plan %s is not taken by the library: building it again", key[:16])
                self._delete(key)
                plan, sidecar = build()
                write_whole(self._path(key), plan)
                write_whole(self._sidecar(key), sidecar.encode())
                loaded = load(plan, sidecar)
                if loaded is None:
                    self._delete(key)
                    raise ServingError(
                        Reason.MODEL_INVALID, "TensorRT does not take the plan that it has just built; see the log"
                    )
        except OSError as error:
            raise ServingError(
                Reason.STORAGE_FAILED,
                f"the cache of TensorRT plans cannot be written ({error.strerror or type(error).__name__})",
                detail=repr(error),
            ) from error
        self._trim(keep=key)
        return Cached(loaded=loaded, sidecar=sidecar, built=True)

    def _read(self, key: str) -> tuple[bytes, PlanSidecar] | None:
        try:
            sidecar = parse_sidecar(self._sidecar(key).read_bytes(), self._sidecar(key).name)
            plan = self._path(key).read_bytes()
        except FileNotFoundError:
            return None
        except ServingError as error:
            logger.warning("cached plan %s: %s", key[:16], error.message)
            return None
        if hashlib.sha256(plan).hexdigest() != sidecar.sha256:
            logger.warning("the cached plan %s is damaged (its SHA-256 is another): building it again", key[:16])
            return None
        return plan, sidecar

    def _touch(self, key: str) -> None:
        with contextlib.suppress(OSError):  # a cache that is only read still serves
            os.utime(self._path(key))

    def _delete(self, key: str) -> None:
        for path in (self._path(key), self._sidecar(key)):
            path.unlink(missing_ok=True)

    def _trim(self, *, keep: str) -> None:
        with contextlib.suppress(OSError):
            plans = [(path, path.stat()) for path in self._directory.glob("*.plan")]
            total = sum(status.st_size for _, status in plans)
            for path, status in sorted(plans, key=lambda each: each[1].st_mtime_ns):
                if total <= self._max_bytes:
                    return
                if path.stem != keep:
                    with file_lock(self._directory / f"{path.stem}.lock", wait=False) as held:
                        if held:  # else somebody is loading it
                            self._delete(path.stem)
                            total -= status.st_size

    def _path(self, key: str) -> Path:
        return self._directory / f"{key}.plan"

    def _sidecar(self, key: str) -> Path:
        return self._directory / f"{key}.plan{SIDECAR_SUFFIX}"


def write_whole(path: Path, content: bytes) -> None:
    """The file appears whole or not at all, and stays after a loss of power."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)
        try:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextlib.contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Holds an exclusive lock, among processes and threads, while the block runs; False: somebody else has it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
