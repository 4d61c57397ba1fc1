"""Columns of text, as wide as the terminal."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence

__all__ = ["table"]

_WIDE = 400  # columns where no terminal says how many


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    """The rows under their columns' names; `numbers` are set to the right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    right = set(numbers)
    grid = Table(box=None, pad_edge=False, header_style="")
    for index, column in enumerate(columns):
        grid.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        grid.add_row(*map(Text, row))  # as it is: a reason may hold what looks like markup
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(grid)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
