"""How long a batch takes, learnt from the batches that ran; optimistic wherever it knows nothing.

A batch of x padded units is modelled as mean + slope · (x - mean units), an exponentially weighted regression, with
0 ≤ slope ≤ mean / mean units (no negative fixed cost). While all batches had one size the slope is unknown, so a
larger batch is said to take no longer and a smaller one proportionally less. The answer serves only to refuse what
cannot be done, so every doubt is settled in the caller's favour: no answer before `MIN_BATCHES`, none from evidence
older than `EVIDENCE_AGE_S` (a server that refuses everything measures nothing, and must look again).
"""

from __future__ import annotations

__all__ = ["ServiceTime"]

_WEIGHT = 0.1  # of the newest batch
_OUTLIER = 4.0  # a pause of the machine counts as no more than this many times the estimate
MIN_BATCHES = 3
EVIDENCE_AGE_S = 2.0


class ServiceTime:
    """Exponentially weighted model of a batch's seconds by its padded units. Not thread-safe."""

    __slots__ = ("_count", "_covariance", "_last_seen", "_mean_s", "_mean_units", "_variance")

    def __init__(self) -> None:
        self._count = 0
        self._last_seen = 0.0
        self._mean_units = 0.0
        self._mean_s = 0.0
        self._variance = 0.0
        self._covariance = 0.0

    def observe(self, units: float, seconds: float, now: float) -> None:
        """Learns from one batch of `units` padded units that took `seconds` and ended at `now`."""
        self._last_seen = now
        self._count += 1
        if self._count == 1:
            self._mean_units, self._mean_s = units, seconds
            return
        if self._count > MIN_BATCHES:
            seconds = min(seconds, _OUTLIER * self.batch_seconds(units))
        off_units = units - self._mean_units
        off_s = seconds - self._mean_s
        self._mean_units += _WEIGHT * off_units
        self._mean_s += _WEIGHT * off_s
        self._variance = (1 - _WEIGHT) * (self._variance + _WEIGHT * off_units * off_units)
        self._covariance = (1 - _WEIGHT) * (self._covariance + _WEIGHT * off_units * off_s)

    def has_evidence(self, now: float) -> bool:
        """Enough batches were seen, and lately enough, to refuse a request by them."""
        return self._count >= MIN_BATCHES and now - self._last_seen <= EVIDENCE_AGE_S

    def batch_seconds(self, units: float) -> float:
        """Seconds a batch of `units` takes; 0.0 before the first batch."""
        if not self._count:
            return 0.0
        mean_units, mean_s = self._mean_units, self._mean_s
        if self._variance > 1e-4 * mean_units * mean_units:
            slope = min(max(self._covariance / self._variance, 0.0), mean_s / mean_units)
            return mean_s + slope * (units - mean_units)
        return mean_s * min(1.0, units / mean_units)

    def seconds_until_done(
        self, *, rows: int, units: float, num_workers: int, max_batch_size: int, busy_s: float
    ) -> float:
        """Seconds until the last of `rows` rows (those ahead and one's own, `units` in all) has been computed.

        busy_s  seconds until the first worker is free
        """
        rounds = -(-rows // (max_batch_size * num_workers))
        rows_a_batch = -(-rows // (rounds * num_workers))
        return busy_s + rounds * self.batch_seconds(rows_a_batch * units / rows)
