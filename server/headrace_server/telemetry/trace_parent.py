"""What a caller says of the trace that its call belongs to: W3C Trace Context, https://www.w3.org/TR/trace-context/.

traceparent   00-<trace id, 32 hexadecimal digits>-<span id, 16>-<flags, 2>
tracestate    at most 32 key=value of vendors, passed on as they came
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["TraceParent", "trace_parent"]

_MAX_STATE_BYTES = 8192
_MAX_STATE_MEMBERS = 32
# A later version may append fields; version 00 has none, and ff is none.
_parent = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?").fullmatch
_is_member = re.compile(
    r"(?:[a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
).fullmatch


@dataclass(frozen=True, slots=True)
class TraceParent:
    """The span that a call was made in. `sampled`: the caller keeps the trace."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""  # tracestate, well-formed; "": none


def trace_parent(metadata: Sequence[tuple[str, str | bytes]]) -> TraceParent | None:
    """The caller's span; None where it names none, more than one, or one that is not well-formed."""
    found: str | bytes | None = None
    states: list[str] = []
    for key, value in metadata:
        if key == "traceparent":
            if found is not None:
                return None
            found = value
        elif key == "tracestate" and isinstance(value, str):
            states.append(value)
    match = _parent(found) if isinstance(found, str) else None
    if match is None or (match[1] == "00" and match[5] is not None):
        return None
    trace_id, span_id = int(match[2], 16), int(match[3], 16)
    if not trace_id or not span_id:
        return None
    return TraceParent(trace_id, span_id, bool(int(match[4], 16) & 1), _state(",".join(states)))


def _state(text: str) -> str:
    """The members without what is empty or stands about them; "" where one is not well-formed, or they are too many."""
    if not text or len(text) > _MAX_STATE_BYTES:
        return ""
    members = [member for member in (part.strip(" \t") for part in text.split(",")) if member]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MAX_STATE_MEMBERS or len(keys) < len(members) or not all(map(_is_member, members)):
        return ""
    return ",".join(members)
