"""What a TensorRT library logs: errors kept for ours, and the layers of an engine that was built."""

from __future__ import annotations

import threading
from typing import Any

__all__ = ["ErrorLog"]

_ERROR = 1  # severities: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose
_KEPT = 50
_LAYERS = "Engine Layer Information:\n"


class ErrorLog:
    """A logger for the library of `module`, whose `logger` must outlive everything made with it."""

    def __init__(self, module: Any) -> None:
        self._errors: list[str] = []
        self._layers: list[str] = []
        self._lock = threading.Lock()
        self.logger = _logger_class(module)(self._note)

    def errors(self) -> str:
        """Errors since this was last asked, a line each."""
        with self._lock:
            said, self._errors = "\n".join(self._errors), []
        return said

    def engine_layers(self) -> tuple[str, ...]:
        """The layers of the engine built last, as the builder prints them."""
        with self._lock:
            return tuple(self._layers)

    def _note(self, severity: int, message: str) -> None:
        with self._lock:
            if severity <= _ERROR:
                self._errors = [*self._errors[1 - _KEPT :], message]
            elif message.startswith(_LAYERS):
                self._layers = [line for line in message.removeprefix(_LAYERS).splitlines() if line]


def _logger_class(module: Any) -> Any:
    class _Logger(module.ILogger):  # type: ignore[misc]  # the library is known at run time alone
        def __init__(self, note: Any) -> None:
            module.ILogger.__init__(self)
            self._note = note

        def log(self, severity: Any, msg: str) -> None:
            self._note(int(severity), msg)

    return _Logger
