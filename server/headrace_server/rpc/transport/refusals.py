"""What a transport itself answers, without asking a handler: constant statuses that the rpc layer may enrich."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace_server.rpc.transport.call import Metadata, Status

__all__ = [
    "CANCELLED",
    "INTERNAL",
    "OK",
    "RESOURCE_EXHAUSTED",
    "UNAVAILABLE",
    "UNIMPLEMENTED",
    "UNKNOWN",
    "Refusals",
]

OK = 0
CANCELLED = 1
UNKNOWN = 2
RESOURCE_EXHAUSTED = 8
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusals:
    """One status for each way a transport refuses or fails a call on its own; `details` may carry RetryInfo.

    trailing  what goes out beside such a status, made from what the client sent
    """

    overloaded: Status = Status(RESOURCE_EXHAUSTED, "Too many calls in flight. Try again later.")
    draining: Status = Status(UNAVAILABLE, "The server is shutting down.")
    unknown_method: Status = Status(UNIMPLEMENTED, "Unknown method.")
    crashed: Status = Status(INTERNAL, "Internal error.")
    no_request: Status = Status(INTERNAL, "The call carried no request message.")
    reply_too_large: Status = Status(RESOURCE_EXHAUSTED, "The response message is larger than the server may send.")
    slow_reader: Status = Status(RESOURCE_EXHAUSTED, "The response stream is read too slowly.")
    trailing: Callable[[Metadata], Metadata] = lambda _: ()
