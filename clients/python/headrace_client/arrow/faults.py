"""What is wrong with a file, and where an import stopped."""

from __future__ import annotations

__all__ = ["FileFault", "ImportStopped"]


class FileFault(ValueError):
    """A file that cannot be what it should: the text names column and row (from 0), value and what is wanted."""

    def __init__(self, message: str, *, column: str = "", row: int | None = None) -> None:
        place = f"column {column!r}" if column else ""
        if row is not None:
            place += f"{', ' if place else ''}row {row}"
        super().__init__(f"{place}: {message}" if place else message)
        self.column = column
        self.row = row


class ImportStopped(Exception):
    """An import that did not come to its end: its cause, and the row to go on from; every row before it is durable."""

    def __init__(self, message: str, *, next_row: int) -> None:
        super().__init__(f"{message} (rows before {next_row} are durable)")
        self.next_row = next_row
