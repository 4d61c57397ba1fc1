"""Addresses to listen on, and the files that UNIX sockets leave behind.

host:port    port 0: a free one             TLS when the options say so
unix:PATH    a socket file                  no TLS: the file's permissions are the guard
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from headrace_server.errors import Reason, ServingError, Violation

__all__ = ["Listeners"]


class Listeners:
    """Opens each address once, and removes socket files of its own at the end.

    bind(address, secure) is the transport's: it returns the bound port, or raises or returns 0.
    """

    def __init__(self, addresses: tuple[str, ...], bind: Callable[[str, bool], int]) -> None:
        self._addresses = addresses
        self._bind = bind
        self._socket_files: dict[Path, int] = {}  # path: inode, so that a successor's file is left alone

    def open(self) -> list[str]:
        """The bound addresses, with real ports. Raises ServingError CONFIG_INVALID; what was bound before stays so."""
        return [self._open_socket_file(a) if a.startswith("unix:") else self._open_port(a) for a in self._addresses]

    def remove_socket_files(self) -> None:
        for path, inode in self._socket_files.items():
            try:
                if path.lstat().st_ino == inode:
                    path.unlink()
            except FileNotFoundError:
                pass
        self._socket_files.clear()

    def _open_port(self, address: str) -> str:
        host, colon, port = address.rpartition(":")
        if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise _refused(address, "not host:port or unix:PATH, port from 0 to 65535")
        return f"{host}:{self._bound_port(address, True)}"

    def _open_socket_file(self, address: str) -> str:
        path = Path(address.removeprefix("unix:"))
        if not path.name:
            raise _refused(address, "no path after unix:")
        if len(os.fsencode(path)) > 107:
            raise _refused(address, "a socket path has at most 107 bytes")
        # The core removes whatever socket file is in its way, a living server's too.
        self._remove_stale(address, path)
        self._bound_port(address, False)
        self._socket_files[path] = path.lstat().st_ino
        return address

    def _bound_port(self, address: str, secure: bool) -> int:
        try:
            port = self._bind(address, secure)
        except (RuntimeError, OSError, ValueError) as error:
            raise _refused(address, "cannot be bound: in use, or no address of this machine") from error
        if not port:
            raise _refused(address, "cannot be bound: in use, or no address of this machine")
        return port

    @staticmethod
    def _remove_stale(address: str, path: Path) -> None:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise _refused(address, f"cannot be opened ({error.strerror})") from error
        if not stat.S_ISSOCK(mode):
            raise _refused(address, "a file that is no socket is in the way")
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
                return
            except FileNotFoundError:
                return
            except OSError as error:
                raise _refused(address, f"cannot be opened ({error.strerror})") from error
        raise _refused(address, "another server listens there")


def _refused(address: str, why: str) -> ServingError:
    description = f"{address!r}, {why}"
    return ServingError(
        Reason.CONFIG_INVALID,
        f"transport.listen: {description}",
        violations=[Violation("transport.listen", description)],
    )
