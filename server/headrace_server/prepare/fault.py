"""PrepareError: why a model could not be made, and what to do about it."""

from __future__ import annotations

__all__ = ["PrepareError"]


class PrepareError(Exception):
    """A step before serving failed. `message` says what, `cure` what the operator can do; `str()` gives both."""

    def __init__(self, message: str, *, cure: str) -> None:
        super().__init__(f"{message}\n  cure: {cure}")
        self.message = message
        self.cure = cure
