"""Requests of one model and one shape that came together: joined to whole tensors, and what is told of their answers.

What they have in common is checked once, when the first of them is; then a request is some raw bytes an input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from headrace_server.jobs.queries import ModelRef
from headrace_server.serving.context import Timings

__all__ = ["GroupAnswer", "GroupRequest", "InferShape", "InputShape", "WaitingRows"]

Array = npt.NDArray[Any]


class GroupRequest(Protocol):
    """One of a group, as whoever brings it keeps it."""

    @property
    def contents(self) -> Sequence[bytes]: ...  # by input, as `InferShape.inputs`
    @property
    def arrived_ns(self) -> int: ...  # `time.perf_counter_ns()`
    @property
    def deadline(self) -> float | None: ...  # `time.monotonic()` seconds
    @property
    def cancelled(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class InputShape:
    """One tensor of each request, its batch axis included; as it lies in the raw bytes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InferShape:
    """What the requests of a group have in common.

    outputs   wanted, in this order; (): all
    num_rows  of each request
    """

    model: ModelRef
    inputs: tuple[InputShape, ...]
    outputs: tuple[str, ...]
    num_rows: int

    def join(self, requests: Sequence[GroupRequest]) -> dict[str, Array]:
        """Tensors of all the requests' rows, one request after the other."""
        joined: dict[str, Array] = {}
        for index, each in enumerate(self.inputs):
            data = b"".join([request.contents[index] for request in requests])
            shape = (len(requests) * self.num_rows, *each.shape[1:])
            joined[each.name] = np.ndarray(shape, each.dtype, data)
        return joined


@dataclass(slots=True)
class GroupAnswer:
    """Outputs of a group.

    requests   those that were answered, in order
    lapsed     those that were cancelled, or late, before the run
    outputs    of all the requests' rows, one request after the other
    timings    of each, but for how long it waited
    queues_ns  by request: how long it waited
    """

    requests: Sequence[GroupRequest]
    lapsed: Sequence[GroupRequest]
    outputs: Mapping[str, Array]
    timings: Timings
    queues_ns: Sequence[int]


class WaitingRows:
    """A group's rows in the Batcher: a `models.model.RowBlock`. Who is cancelled or late leaves before the run."""

    def __init__(self, shape: InferShape, order: Sequence[str], requests: Sequence[GroupRequest]) -> None:
        self._shape = shape
        self._order = order
        self.requests = requests
        self.lapsed: Sequence[GroupRequest] = ()

    def take(self, now: float) -> tuple[dict[str, Array], int]:
        alive = [r for r in self.requests if not (r.cancelled or (r.deadline is not None and r.deadline <= now))]
        if len(alive) != len(self.requests):
            self.lapsed = [*self.lapsed, *(request for request in self.requests if request not in alive)]
            self.requests = alive
        joined = self._shape.join(alive)
        return {name: joined[name] for name in self._order}, len(alive) * self._shape.num_rows
