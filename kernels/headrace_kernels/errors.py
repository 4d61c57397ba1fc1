"""What a kernel refuses.

ValueError
├─ ShapeError            wrong rank, lengths that do not fit together, a length of 2^31 or more
├─ NotFiniteError        NaN or an infinity where there may be none; `row` says where
└─ NothingAllowedError   a row of logits whose every token is forbidden; `row` says which
TypeError
└─ DtypeError            not an array, or not of the element type asked for: nothing is converted in silence
"""

from __future__ import annotations

__all__ = ["DtypeError", "NotFiniteError", "NothingAllowedError", "ShapeError"]


class ShapeError(ValueError):
    """An array's rank or lengths cannot be used; the message names the array, its shape and the limit."""


class DtypeError(TypeError):
    """An argument is no array, or its dtype is not the one asked for; the message names both."""


class NotFiniteError(ValueError):
    """A value that has no place in the answer; `row` is the first row that holds one."""

    def __init__(self, message: str, *, row: int) -> None:
        super().__init__(message)
        self.row = row


class NothingAllowedError(ValueError):
    """No token of a row may be drawn: mask, bias and logits forbid them all; `row` is that row."""

    def __init__(self, message: str, *, row: int) -> None:
        super().__init__(message)
        self.row = row
