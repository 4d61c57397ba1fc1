"""The engine contract: a loaded graph that runs on arrays. No queue, no future, no clock, no label.

An Engine is handed arrays and gives arrays back, blocking the calling thread. Up to `info.num_workers` threads may
call `run` at the same time. Everything that waits, groups or cancels lives above, in `serving`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy.typing as npt

from headrace_server.engines.choosing.choice import EngineChoice
from headrace_server.models.signature import TensorSpec

__all__ = ["Array", "Engine", "EngineInfo"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine really runs on, as read back from the runtime after loading: never what was merely asked for."""

    engine: str  # "onnx" | "tensorrt"
    runtime_version: str  # "onnxruntime 1.31.1"
    device: str  # "cpu", "cuda:0"
    provider: str  # "CPUExecutionProvider"
    precision: str  # "fp32", "int8", "fp16", … : of the graph's weights as executed
    num_threads: int  # intra-op threads a run may use
    num_workers: int  # how many runs may be in flight at once
    load_time_ms: float
    batch_invariant: bool = True  # False: activations are scaled by the whole batch, so neighbours change a row
    nodes_by_provider: tuple[tuple[str, int], ...] = ()  # graph nodes that each runs, most first; (): all on `provider`
    choice: EngineChoice | None = None  # how `auto` came to it; None: it was asked for, or is the only one


@runtime_checkable
class Engine(Protocol):
    """A loaded graph. Thread-safe for `info.num_workers` concurrent callers."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def inputs(self) -> Sequence[TensorSpec]: ...

    @property
    def outputs(self) -> Sequence[TensorSpec]: ...

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        """Outputs by name for one batch of feeds.

        feeds    one array per graph input, dtype and rank as in `inputs`, batch axis first
        outputs  names wanted; None: all
        raises   ServingError INVALID_INPUT for a wrong name, dtype or shape; INTERNAL when the runtime fails
        """
        ...

    def close(self) -> None:
        """Frees the session. Calling `run` afterwards raises ServingError SHUTTING_DOWN."""
        ...
