"""Call: one RPC in flight, whatever the transport. Handlers are written against this and nothing else of gRPC.

A transport hands each accepted RPC to its method's handler as a Call, in bytes: parsing and meaning belong to the
handler. Everything that answers (`reply`, `send`, `finish`, `abort`) may be used from any thread, never blocks, and is
safe after the call is over: it returns False, nothing is raised, nothing is lost. Callbacks (`on_cancel`, `on_message`,
`on_half_close`, `on_writable`) run on the transport's own thread and must be quick.

    unary request    handler(call) runs with `call.message` set
    stream request   handler(call) runs first and sets `call.on_message` / `call.on_half_close`; messages arrive one by
                     one, the next is read only after the callback returned and while the call is not paused
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Call", "Handler", "Kind", "Metadata", "Method", "Status"]

Metadata = Sequence[tuple[str, str | bytes]]


class Kind(enum.Enum):
    """The four kinds of RPC: (request is a stream, response is a stream)."""

    UNARY = (False, False)
    SERVER_STREAM = (False, True)
    CLIENT_STREAM = (True, False)
    BIDI_STREAM = (True, True)

    @property
    def streams_requests(self) -> bool:
        return self.value[0]

    @property
    def streams_responses(self) -> bool:
        return self.value[1]


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ends: a gRPC status code number (0 is OK), a message, and a serialized google.rpc.Status if any."""

    code: int = 0
    message: str = ""
    details: bytes = b""  # travels in grpc-status-details-bin


class Call(Protocol):
    """One RPC in flight. See the module's text for threads and lifetimes."""

    # what the client sent
    @property
    def method(self) -> str: ...  # "/package.Service/Method"
    @property
    def message(self) -> bytes: ...  # the request of a unary-request call
    @property
    def metadata(self) -> Metadata: ...  # keys lower case; values bytes for "-bin" keys
    @property
    def deadline(self) -> float | None: ...  # time.monotonic() seconds; None: no deadline
    @property
    def peer(self) -> str: ...
    @property
    def cancelled(self) -> bool: ...  # by the client, a lost connection, or the deadline
    @property
    def active(self) -> bool: ...  # an answer would still reach the client

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Runs `callback` once when the call is cancelled; at once if it has been."""

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Runs `callback` soon, on the transport's thread: once the calls that came in together have been handed over.
        Until then the call need not be answered. For its handler alone, while that runs."""

    # how it is answered
    def set_trailing_metadata(self, metadata: Metadata) -> None:
        """Sent with the status. Raises ValueError for a key or value that gRPC forbids."""

    def send_initial_metadata(self, metadata: Metadata) -> None:
        """Sent now, before any message. Raises ValueError as above or when a message was already sent."""

    def reply(self, message: bytes) -> bool:
        """One response and status OK. False: the call was over."""
        ...

    def send(self, message: bytes) -> bool:
        """Queues one stream message. True: go on. False: stop until `on_writable`; check `active`: False after the end.
        The queue is bounded: past the hard limit the call is aborted with RESOURCE_EXHAUSTED."""
        ...

    def on_writable(self, callback: Callable[[], None]) -> None:
        """Runs `callback` once when the outbound queue is below half its high-water mark, or the call is over."""

    @property
    def num_unsent(self) -> int:
        """Stream messages, and the status behind them, that the connection has not taken yet; never more again after
        `finish`, and 0 once the call is over for good."""
        ...

    def wait_writable(self, timeout_s: float | None = None) -> bool:
        """Blocks until writable. False: the call is over or the time is up. Never on the transport's own thread."""
        ...

    def finish(self, status: Status | None = None) -> bool:
        """Ends a response stream with `status` (None: OK) after everything queued has been sent."""
        ...

    def abort(self, status: Status) -> bool:
        """Ends the call with an error; queued messages are dropped."""
        ...

    def cancel(self) -> None:
        """Resets the stream at once, past whatever is queued or flow-blocked; the client sees CANCELLED."""

    # request streams
    on_message: Callable[[bytes], None] | None
    on_half_close: Callable[[], None] | None

    def pause(self) -> None:
        """Reads no further request message until `resume`."""

    def resume(self) -> None: ...


Handler = Callable[[Call], None]


@dataclass(frozen=True, slots=True)
class Method:
    """A method as a transport serves it. The handler is quick: it decodes cheaply and enqueues, or answers at once."""

    name: str  # "/package.Service/Method"
    kind: Kind
    handler: Handler
