"""How a session is asked: `OnnxEngine` checks and converts, and one of these has the session compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headrace_server.engines.base import Array

__all__ = ["PlainRuns", "SessionRuns"]


class SessionRuns(Protocol):
    """Sessions of one graph. What they hold goes with the last reference to this, once no run is in flight."""

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], options: Any) -> list[Any]:
        """The values of `names`, in their order; arrays that no later run writes to.

        options  the runtime's RunOptions, fresh for this run
        raises   whatever the runtime raises
        """
        ...


class PlainRuns:
    """Arrays handed over as they are: the way on a CPU, where nothing has to be moved."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], options: Any) -> list[Any]:
        values: list[Any] = self._session.run(names, feeds, options)
        return values
