"""The status that a server gave, where grpc.aio would say "Internal error from Core".

A server that refuses a stream ends it while its client is still sending. The next message then cannot be sent, and
where grpc.aio (as of grpcio 1.85) hears of that before it hears of the status, it makes up one of its own and drops the
server's: about one refused stream in twelve lost its reason so.
"""

from __future__ import annotations

from typing import Any

__all__ = ["keep_status"]


class _Call:
    """The call below grpc.aio's, which makes up no status: that of the server follows."""

    __slots__ = ("_call",)

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def set_internal_error(self, error: str) -> None:
        """Passes over a message that could not be sent."""


def keep_status(call: Any) -> None:
    """Has a call of grpc.aio that streams requests, just made, end with the server's own status.

    Reaches into grpcio; one that is made otherwise is left as it is.
    """
    below = getattr(call, "_cython_call", None)
    if hasattr(below, "set_internal_error"):
        call._cython_call = _Call(below)
