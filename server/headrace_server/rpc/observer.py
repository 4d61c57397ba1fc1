"""What the rpc layer tells whoever counts: a Protocol that telemetry implements."""

from __future__ import annotations

from typing import Protocol

__all__ = ["NoObserver", "RpcObserver"]


class RpcObserver(Protocol):
    """Told of every RPC, on the thread that starts or ends it. Quick, and never the cause of an error.

    method  "/package.Service/Method", always one that the server knows
    model   the model that answered; "" where none was asked or it is not there, so that callers cannot invent names
    code    the gRPC status code as a number
    reason  a `Reason`'s value: QUEUE_FULL, DEADLINE_INFEASIBLE, DEADLINE_EXCEEDED, SHUTTING_DOWN
    """

    def on_start(self, method: str) -> None:
        """An RPC was accepted."""

    def on_end(self, method: str, model: str, code: int, seconds: float) -> None:
        """It ended, `seconds` after it was accepted."""

    def on_rejected(self, reason: str) -> None:
        """A request was refused, or left a queue unserved, for load or time."""


class NoObserver:
    """Nobody counts."""

    def on_start(self, method: str) -> None:
        """Nothing."""

    def on_end(self, method: str, model: str, code: int, seconds: float) -> None:
        """Nothing."""

    def on_rejected(self, reason: str) -> None:
        """Nothing."""
