"""Short turns at the interpreter while a model is loaded.

A thread that computes in Python keeps the interpreter for a switch interval, 5 ms, whenever another one wants it, and a
request asks for it about five times on its way: beside a load that parses a graph or a tokenizer some 40 requests a
second get through, and the others queue. With turns of half a millisecond it is ten times as many.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["short_turns"]

_TURN_S = 0.0005

_lock = threading.Lock()
_num_users = 0
_before = 0.0


@contextmanager
def short_turns() -> Iterator[None]:
    """Has threads take short turns within the block; what was set before comes back when the last such block ends."""
    global _num_users, _before
    with _lock:
        if not _num_users:
            _before = sys.getswitchinterval()
            sys.setswitchinterval(min(_before, _TURN_S))
        _num_users += 1
    try:
        yield
    finally:
        with _lock:
            _num_users -= 1
            if not _num_users:
                sys.setswitchinterval(_before)
