"""What a caller streams to a server, guarded: an error of his own iterable is his to see.

gRPC would log it and end the call with a status that says nothing. Here the stream is ended as if there were no more;
what was sent before is answered, and then the error is raised.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from typing import Generic, TypeVar

__all__ = ["AsyncSource", "Source"]

Given = TypeVar("Given")
Message = TypeVar("Message")


class Source(Generic[Given, Message]):
    """The messages that `change` makes of index and value, one by one. Read by gRPC, on a thread of its own."""

    def __init__(self, values: Iterable[Given], change: Callable[[int, Given], Message]) -> None:
        self._values = values
        self._change = change
        self.error: Exception | None = None  # of the iterable, or of the change

    def __iter__(self) -> Iterator[Message]:
        try:
            for index, value in enumerate(self._values):
                yield self._change(index, value)
        except Exception as error:
            self.error = error


class AsyncSource(Generic[Given, Message]):
    """The same, of a plain or an async iterable, read on the event loop."""

    def __init__(self, values: Iterable[Given] | AsyncIterable[Given], change: Callable[[int, Given], Message]) -> None:
        self._values = values
        self._change = change
        self.error: Exception | None = None

    async def __aiter__(self) -> AsyncIterator[Message]:
        index = 0
        try:
            if isinstance(self._values, AsyncIterable):
                async for value in self._values:
                    yield self._change(index, value)
                    index += 1
            else:
                for value in self._values:
                    yield self._change(index, value)
                    index += 1
        except Exception as error:
            self.error = error
