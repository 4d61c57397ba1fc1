"""What a transport shows to whoever reads the metrics."""

from __future__ import annotations

from collections.abc import Iterator

from headrace_server.rpc.transport.transport import Transport
from headrace_server.telemetry.metrics import Reading

__all__ = ["transport_readings"]


def transport_readings(transport: Transport) -> Iterator[Reading]:
    """Which transport serves, its calls, and its thread's longest stall."""
    labels = (("name", transport.name), ("reason", transport.reason))
    yield Reading("headrace_transport_info", "The transport that serves, and why not the direct one.", labels, 1)
    yield Reading("headrace_transport_active_calls", "Calls accepted and not over.", (), transport.active_calls)
    yield Reading("headrace_transport_refused_calls_total", "Calls over the limit.", (), transport.refused_calls)
    yield Reading(
        "headrace_transport_longest_stall_seconds",
        "Longest time that the transport's thread was kept from its work.",
        (),
        transport.longest_stall_s,
    )
