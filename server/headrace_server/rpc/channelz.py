"""grpc.channelz.v1: servers, connections and channels of this process as gRPC's core counts them.

Both transports drive the same core, so the calls of every listener are seen, as are the connections of clients that
live in this process. The core tells in JSON; fields that the installed messages do not know are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from google.protobuf import json_format
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from grpc_channelz.v1 import channelz_pb2 as pb  # type: ignore[import-untyped]

from headrace_server.errors import Reason, Resource, ServingError, invalid_input
from headrace_server.rpc.dispatch import UnaryRpc
from headrace_server.serving.context import RequestContext

__all__ = ["SERVICE_NAME", "Channelz"]

SERVICE_NAME = "grpc.channelz.v1.Channelz"

# RPC → the core's function, and the fields of the request that it takes.
_CALLS: dict[str, tuple[str, tuple[str, ...]]] = {
    "GetTopChannels": ("channelz_get_top_channels", ("start_channel_id",)),
    "GetServers": ("channelz_get_servers", ("start_server_id",)),
    "GetServer": ("channelz_get_server", ("server_id",)),
    "GetServerSockets": ("channelz_get_server_sockets", ("server_id", "start_socket_id", "max_results")),
    "GetChannel": ("channelz_get_channel", ("channel_id",)),
    "GetSubchannel": ("channelz_get_subchannel", ("subchannel_id",)),
    "GetSocket": ("channelz_get_socket", ("socket_id",)),
}


class Channelz:
    """What the core knows. Where a grpcio lacks a function of the core's, its RPC is not built."""

    @property
    def rpcs(self) -> list[UnaryRpc[Any]]:
        return [
            UnaryRpc(
                name=f"/{SERVICE_NAME}/{name}",
                request_type=getattr(pb, f"{name}Request"),
                start=partial(_ask, getattr(cygrpc, function), fields, getattr(pb, f"{name}Response")),
            )
            for name, (function, fields) in _CALLS.items()
            if hasattr(cygrpc, function)
        ]


def _ask(
    core: Callable[..., bytes], fields: tuple[str, ...], response_type: Any, request: Any, context: RequestContext
) -> Any:
    values = [getattr(request, field) for field in fields]
    for field, value in zip(fields, values, strict=True):
        if value < 0:
            raise invalid_input(field, f"{value}, at least 0")
    try:
        told = core(*values)
    except ValueError:  # how the core says that there is none, or no more
        what = f"{fields[0]} {values[0]}"
        raise ServingError(
            Reason.ITEM_NOT_FOUND, f"{what} is not known", resource=Resource("channelz", str(values[0]))
        ) from None
    return json_format.Parse(told, response_type(), ignore_unknown_fields=True)
