"""Trying a call again that no server took.

The core's own retries are off: in grpcio 1.85 they can lose an operation of a stream whose server goes away, and its
reader then waits for good, past its deadline (grpc/grpc issues 39935 and 41036).
"""

from __future__ import annotations

import random
import time

import grpc

__all__ = ["Attempts"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S, _FACTOR, _JITTER = 0.05, 1.0, 2.0, 0.2


class Attempts:
    """The tries of one call: how long each may take, and the pauses between them.

    num_attempts  tries in all
    timeout_s     of all tries together; None: no limit
    """

    def __init__(self, num_attempts: int, timeout_s: float | None) -> None:
        self._num_left = num_attempts - 1
        self._limit = None if timeout_s is None else time.monotonic() + timeout_s
        self._pause_s = _FIRST_PAUSE_S

    @property
    def left_s(self) -> float | None:
        """Seconds that the next try may take; None: no limit."""
        return None if self._limit is None else max(0.0, self._limit - time.monotonic())

    def pause_s(self, error: grpc.RpcError) -> float | None:
        """Seconds to wait before the next try of a call that failed without an answer; None: the error stands."""
        if error.code() is not grpc.StatusCode.UNAVAILABLE or not self._num_left:
            return None
        pause_s = self._pause_s * random.uniform(1 - _JITTER, 1 + _JITTER)
        left_s = self.left_s
        if left_s is not None and left_s <= pause_s:
            return None
        self._num_left -= 1
        self._pause_s = min(self._pause_s * _FACTOR, _LONGEST_PAUSE_S)
        return pause_s
