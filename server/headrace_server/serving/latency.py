"""LatencyHistogram: percentiles of times, within 1%, in a few hundred counters however many times there were.

A time falls into bucket ⌊log_γ ns⌋, γ = 1.02; of a bucket [a, γa) the value 2γa/(1 + γ) is told, which is off by at
most (γ − 1)/(γ + 1) = 0.99% of the true one.
"""

from __future__ import annotations

import math

__all__ = ["RELATIVE_ERROR", "LatencyHistogram", "bucket_of"]

_GAMMA = 1.02
RELATIVE_ERROR = (_GAMMA - 1) / (_GAMMA + 1)
_SCALE = 1 / math.log(_GAMMA)
_log = math.log


def bucket_of(latency_ns: int) -> int:
    """The bucket of a time; what is under 1 ns counts as 1 ns."""
    return int(_log(latency_ns) * _SCALE) if latency_ns > 1 else 0


class LatencyHistogram:
    """Times by bucket. Not thread-safe: its owner's lock guards it."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0

    def add(self, bucket: int) -> None:
        """One more time in a bucket."""
        self.counts[bucket] = self.counts.get(bucket, 0) + 1
        self.total += 1

    def subtract(self, other: LatencyHistogram) -> None:
        """Takes out what was added by way of `other`."""
        counts = self.counts
        for bucket, count in other.counts.items():
            left = counts[bucket] - count
            if left:
                counts[bucket] = left
            else:
                del counts[bucket]
        self.total -= other.total

    def percentile_ns(self, share: float) -> int:
        """The smallest time that at least `share` (0…1) of all do not pass, within 1%; 0 where there are none."""
        rank = max(1, math.ceil(share * self.total))
        seen = 0
        for bucket in sorted(self.counts):
            seen += self.counts[bucket]
            if seen >= rank:
                return round(_GAMMA**bucket * 2 * _GAMMA / (1 + _GAMMA))
        return 0
