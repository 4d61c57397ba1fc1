"""How a client reaches a server: address, security, limits."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

__all__ = ["HEALTH_METHOD", "ChannelOptions", "channel_arguments", "credentials", "serving_from_health"]

HEALTH_METHOD = "/grpc.health.v1.Health/Check"
_SERVING = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelOptions:
    """What a channel bears and how it retries.

    tls                 talk TLS; `root_certificates` None: the system's
    max_message_bytes   of a request or an answer
    num_attempts        tries in all of a call that ended UNAVAILABLE without an answer; 1: no retry. A call that sends
                        a stream is tried once
    keepalive_time_ms   how often an idle connection is probed while calls are in flight
    """

    tls: bool = False
    root_certificates: bytes | None = None
    private_key: bytes | None = None
    certificate_chain: bytes | None = None
    max_message_bytes: int = 67_108_864
    num_attempts: int = 3
    keepalive_time_ms: int = 60_000

    def __post_init__(self) -> None:
        if not 1 <= self.num_attempts <= 5:
            raise ValueError(f"num_attempts: {self.num_attempts}, from 1 to 5")


def channel_arguments(options: ChannelOptions) -> list[tuple[str, int]]:
    """gRPC channel arguments for the options."""
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", options.max_message_bytes),
        ("grpc.keepalive_time_ms", options.keepalive_time_ms),
        ("grpc.enable_retries", 0),  # see retries.py
    ]


def credentials(options: ChannelOptions) -> grpc.ChannelCredentials | None:
    """TLS credentials; None for a plain channel."""
    if not options.tls:
        return None
    return grpc.ssl_channel_credentials(options.root_certificates, options.private_key, options.certificate_chain)


def serving_from_health(response: bytes) -> bool:
    """Whether a serialized grpc.health.v1.HealthCheckResponse says SERVING (its one field is the status)."""
    return response == bytes((0x08, _SERVING))
