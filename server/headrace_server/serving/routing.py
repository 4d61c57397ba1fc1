"""Which version of a split answers a request: by its routing key always the same one, without a key drawn anew.

Every version of the split draws a time to wait from the exponential distribution whose rate is its weight, and the
first to come answers; so each wins with its share of the weights. Of a keyed request the times are drawn from a hash of
model, version and key. What one version draws depends on no other, therefore a version whose weight grows takes keys
from the others and gives none back, and where a version is not ready only its own keys go elsewhere.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Container, Sequence

from headrace_server.serving.traffic import TrafficShare

__all__ = ["route"]


def route(
    model: str,
    shares: Sequence[TrafficShare],
    routing_key: str,
    ready: Container[str],
    draw: Callable[[], float] = random.random,
) -> str:
    """The version that answers; one of weight 0 only where no other is ready; "" where none is.

    draw  a number from [0, 1), for requests without a key
    """
    first, least, spare = "", math.inf, ""
    for share in shares:
        if share.version not in ready:
            continue
        if not share.weight:
            spare = spare or share.version
            continue
        part = _part_of_key(model, share.version, routing_key) if routing_key else 1.0 - draw()
        wait = -math.log(part) / share.weight
        if wait < least or not first:
            first, least = share.version, wait
    return first or spare


def _part_of_key(model: str, version: str, routing_key: str) -> float:
    """From (0, 1], evenly; the same in every process."""
    text = f"{model}\0{version}\0{routing_key}".encode(errors="surrogatepass")
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return (number + 1) / 2**64
