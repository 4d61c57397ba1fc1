"""Structures that msgspec fills in, made ready while their module is imported."""

from __future__ import annotations

import msgspec

__all__ = ["resolve_types"]


def resolve_types(*kinds: type) -> None:
    """Has msgspec read the annotations of `kinds`, and of whatever they hold, now.

    Left alone it does so at the first use, and two threads whose first uses meet end the process: models are loaded
    side by side. To be called at the end of the module that defines them.
    """
    for kind in kinds:
        msgspec.json.Decoder(kind)
