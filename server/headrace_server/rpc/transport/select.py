"""Which transport serves: the direct one where it is known and shown to work, grpc.aio otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import grpc

from headrace_server.config import TransportOptions
from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.rpc.transport.call import Method
from headrace_server.rpc.transport.refusals import Refusals
from headrace_server.rpc.transport.transport import Transport

__all__ = ["VERIFIED_MAX", "VERIFIED_MIN", "open_transport"]

# The conformance suite passed on the first and the last of these (`make test-matrix`).
VERIFIED_MIN = (1, 72, 1)
VERIFIED_MAX = (1, 85)  # and every patch release of it


def open_transport(
    options: TransportOptions, methods: Sequence[Method], *, refusals: Refusals | None = None
) -> Transport:
    """A transport with these methods, not started yet; its `reason` says why `auto` did not take the direct one.

    auto    direct on a verified grpcio whose self-test passes; aio otherwise
    direct  raises ServingError CONFIG_INVALID with the reason when the self-test fails; any grpcio may be tried
    raises  ServingError CONFIG_INVALID for certificates that cannot be read
    """
    refusals = refusals or Refusals()
    if options.transport != "aio":
        reason = _unverified() if options.transport == "auto" else ""
        reason = reason or _self_test()
        if not reason:
            from headrace_server.rpc.transport.direct.server import DirectServer

            return DirectServer(options, methods, refusals)
        if options.transport == "direct":
            description = f"'direct', not possible here: {reason}"
            raise ServingError(
                Reason.CONFIG_INVALID,
                f"transport.transport: {description}",
                violations=[Violation("transport.transport", description)],
            )
    else:
        reason = ""
    from headrace_server.rpc.transport.aio.server import AioServer

    return AioServer(options, methods, refusals, reason)


def _unverified() -> str:
    """Why this grpcio is outside the verified range; "" when it is inside."""
    version = tuple(int(part) if part.isdigit() else 0 for part in grpc.__version__.split(".")[:3])
    if version >= VERIFIED_MIN and version[:2] <= VERIFIED_MAX:
        return ""
    return f"grpcio {grpc.__version__} is outside the verified range 1.72.1 to 1.85"


def _self_test() -> str:
    try:
        from headrace_server.rpc.transport.direct.selftest import self_test
    except ImportError:
        return f"grpcio {grpc.__version__} has no grpc._cython.cygrpc"
    return self_test()
