"""Transport: the listeners and everything between a socket and a `Call`."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Transport"]


class Transport(Protocol):
    """A gRPC server that hands calls to handlers. Started once, stopped once."""

    @property
    def name(self) -> str: ...  # "direct" or "aio"
    @property
    def reason(self) -> str: ...  # why `auto` did not take the direct transport; "" when it did or was not asked
    @property
    def active_calls(self) -> int: ...  # accepted and not yet over
    @property
    def refused_calls(self) -> int: ...  # refused for max_concurrent_calls since the start
    @property
    def longest_stall_s(self) -> float: ...  # the longest time the transport's thread was kept from its work

    def start(self) -> list[str]:
        """Opens every listener and serves. Returns their addresses with real ports, in the order of
        `TransportOptions.listen`. Raises ServingError CONFIG_INVALID naming the address that cannot be opened; then
        nothing listens."""
        ...

    def stop(self, grace_s: float | None = None) -> None:
        """Refuses new calls with UNAVAILABLE, lets running ones end for `grace_s` (None: `drain_grace_s`), then cancels
        the rest. Returns when the last call is over and the sockets are gone; a second call only waits."""
        ...
