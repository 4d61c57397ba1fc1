"""Resetting a stream that grpc.aio is blocked in writing, for which it has no word of its own."""

from __future__ import annotations

import threading
from typing import Any

from grpc._cython import cygrpc  # type: ignore[attr-defined]

__all__ = ["reset_stream"]


def reset_stream(context: Any) -> bool:
    """Has the core cancel the context's call, past what is queued; False where this grpcio offers no way.

    `context.auth_context()` hands the core's call object to the module's function of that name; for the length of one
    call, and for this thread only, that function is ours. Only the event loop's thread may call this.
    """
    original = getattr(cygrpc, "auth_context", None)
    if original is None:
        return False
    this_thread = threading.get_ident()
    done = False

    def cancel_instead(call: Any) -> Any:
        nonlocal done
        if done or threading.get_ident() != this_thread:
            return original(call)
        call.cancel()
        done = True
        return None

    cygrpc.auth_context = cancel_instead
    try:
        context.auth_context()
    except (AttributeError, TypeError, ValueError):
        return False
    finally:
        cygrpc.auth_context = original
    return done
