"""TransportOptions as the channel arguments and credentials of gRPC's core. The same for both transports."""

from __future__ import annotations

from pathlib import Path

import grpc

from headrace_server.config import TlsOptions, TransportOptions
from headrace_server.errors import Reason, ServingError, Violation

__all__ = ["core_arguments", "server_credentials"]

# The core resets calls that wait too long to be accepted ("pending"): beyond about 1,000 at random, beyond 3,000 all.
# A thread that stalls for half a second under load reaches that, and innocents are cancelled. Refusing is
# max_concurrent_calls' work, with a status that says so; the backlog only has to hold.
_MAX_PENDING = 100_000


def core_arguments(options: TransportOptions) -> tuple[tuple[str, int], ...]:
    """Channel arguments for a server with these options."""
    arguments = [
        ("grpc.so_reuseport", 0),  # or a second server takes the same port in silence
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.max_concurrent_streams", options.max_concurrent_streams),
        # The core's own overload protection refuses streams at random from about half the limit on: at 64 calls in
        # flight of 100 it failed some 1% of a well-behaved client's calls. The limit itself still holds.
        ("grpc.http.overload_protection", 0),
        ("grpc.server.max_pending_requests", _MAX_PENDING),
        ("grpc.server.max_pending_requests_hard_limit", 2 * _MAX_PENDING),
        ("grpc.keepalive_time_ms", options.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", min(options.keepalive_time_ms, 20_000)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", min(options.keepalive_time_ms, 10_000)),
        ("grpc.enable_channelz", 1),  # counts that the management listener shows
    ]
    if options.max_connection_age_ms:
        # No grace is set: an old connection takes no new call, and those it carries end in their own time.
        arguments.append(("grpc.max_connection_age_ms", options.max_connection_age_ms))
    return tuple(arguments)


def server_credentials(tls: TlsOptions | None) -> grpc.ServerCredentials | None:
    """Credentials of the TCP listeners; None without TLS. Raises ServingError CONFIG_INVALID for an unreadable file."""
    if tls is None:
        return None
    key, certificate = _pem(tls.private_key, "private_key"), _pem(tls.certificate, "certificate")
    authorities = None if tls.client_authorities is None else _pem(tls.client_authorities, "client_authorities")
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=authorities, require_client_auth=authorities is not None
    )


def _pem(path: Path, name: str) -> bytes:
    field = f"transport.tls.{name}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _invalid(field, f"{str(path)!r}, cannot be read ({error.strerror})") from error
    if b"-----BEGIN " not in content:
        raise _invalid(field, f"{str(path)!r}, not a PEM file")
    return content


def _invalid(field: str, description: str) -> ServingError:
    return ServingError(Reason.CONFIG_INVALID, f"{field}: {description}", violations=[Violation(field, description)])
