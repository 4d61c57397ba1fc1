"""Where what engines measured and built is kept, where nobody says: the user's cache directory, as all of it can be
made again."""

from __future__ import annotations

import os
from pathlib import Path

from headrace_server.cli.management import AUTO, OFF

__all__ = ["engine_cache"]


def engine_cache(choice: str) -> Path | None:
    """The directory, which need not be there yet; None where nothing is to be kept.

    choice  a path, OFF, or AUTO: headrace/engines in $XDG_CACHE_HOME, else in ~/.cache
    """
    if choice.lower() in (OFF, ""):
        return None
    if choice.lower() != AUTO:
        return Path(choice)
    named = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(named):  # as its specification says: others are to be passed over
        return Path(named) / "headrace" / "engines"
    try:
        return Path.home() / ".cache" / "headrace" / "engines"
    except RuntimeError:  # nobody's home
        return None
