"""Where management listens and what operators decided is kept, where nobody says: chosen so that it is safe.

management   loopback, one port above the first TCP listener, so that servers which do not collide there do not here;
             without a TCP listener PATH.management, beside the first UNIX socket
state        `.headrace-state.json` in the models' directory, which is passed over when models are looked for; nowhere
             where that cannot be written, or another server uses it, and then the log says so
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from headrace_server.cli.faults import USAGE, fail
from headrace_server.models.layout import is_model_folder

__all__ = ["AUTO", "OFF", "STATE_NAME", "kept_state", "management_address"]

AUTO, OFF = "auto", "off"
STATE_NAME = ".headrace-state.json"
_MAX_SOCKET_PATH = 107  # bytes, of the system


def management_address(value: str, listen: Sequence[str]) -> str | None:
    """The address to open; None where management is off.

    listen  where the data listeners listen
    """
    if value.lower() in (OFF, ""):
        return None
    if value.lower() != AUTO:
        return value
    for address in listen:
        port = address.rpartition(":")[2]
        if not address.startswith("unix:") and port.isascii() and port.isdigit() and int(port) < 65535:
            return f"127.0.0.1:{int(port) + 1 if int(port) else 0}"
    for address in listen:
        path = f"{address.removeprefix('unix:')}.management"
        if address.startswith("unix:") and len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
            return f"unix:{path}"
    return None


@contextmanager
def kept_state(directory: Path, choice: str) -> Iterator[tuple[Path | None, str]]:
    """The file to keep decisions in, and what is to be said of it; both for as long as the block lasts.

    directory  of the models
    choice     a path, AUTO or OFF
    raises     typer.Exit for a path that cannot be written, or that another server uses
    """
    if choice.lower() in (OFF, ""):
        yield None, ""
    elif choice.lower() == AUTO:
        path, why, lock = _beside_the_models(directory)
        try:
            yield path, why and f"what operators decide about versions ends with this process: {why}"
        finally:
            _release(lock)
    else:
        path, lock = Path(choice), _lock_of(Path(choice))
        try:
            yield path, ""
        finally:
            _release(lock)


def _beside_the_models(directory: Path) -> tuple[Path | None, str, int | None]:
    if not directory.is_dir():
        return None, "", None  # the server says what is wrong with it
    if is_model_folder(directory):
        return None, "the directory is one model's own folder; --state names a file", None
    path = directory / STATE_NAME
    if not os.access(directory, os.W_OK | os.X_OK) or (path.exists() and not os.access(path, os.W_OK)):
        return None, "the models' directory cannot be written; --state names a file", None
    try:
        lock = _locked(path)
    except OSError:
        return None, "another server uses the models' directory; --state names a file for this one", None
    return path, "", lock


def _lock_of(path: Path) -> int:
    cure = "give --state a file in a folder that can be written, or off"
    if path.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise fail(f"--state: {path} cannot be written", cure=cure, status=USAGE)
    try:
        return _locked(path)
    except BlockingIOError:
        raise fail(f"--state: {path} is in use by another server", cure="one file a server") from None


def _locked(state: Path) -> int:
    """Of this process until it ends or lets go: however a file came to be chosen, its lock is the same.

    Beside the file, which is replaced with each change. Raises OSError.
    """
    descriptor = os.open(state.with_name(f"{state.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
