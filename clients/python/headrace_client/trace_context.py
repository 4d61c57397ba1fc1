"""The caller's OpenTelemetry context, sent along with each call, where the program has one."""

from __future__ import annotations

import sys

__all__ = ["trace_metadata"]


def trace_metadata() -> tuple[tuple[str, str], ...] | None:
    """What the program's propagators say of the current context, traceparent among it; None: nothing.

    A program that has not imported OpenTelemetry is in no trace, so nothing is imported here for its sake.
    """
    if "opentelemetry.context" not in sys.modules:
        return None
    try:
        from opentelemetry import propagate
    except ImportError:
        return None
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple((key.lower(), value) for key, value in carrier.items()) or None
