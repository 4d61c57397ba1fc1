"""MemoryBudget: how much memory loaded versions hold of what they may, and whether there is room for one more.

What a version will hold is estimated before it is loaded, and corrected by how much the process has grown after it:

    loaded    weights as the runtime keeps them, the arena of a small batch, tokenizer        estimated, then measured
    growing   keys and values of all slots, the prefix cache                                  always as they may become
    kept      the model's description, which stays while the version rests                    estimated

The measurement is the growth of the process's resident memory while the version was loaded. It is right to some
megabytes on an idle server; traffic beside the load counts into it, so it is not believed below the half or above four
times what the files let expect, nor where two versions were loaded or one left meanwhile: the estimate stands then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Model

__all__ = ["Holding", "MemoryBudget", "MemoryEstimate", "estimate_memory", "resident_bytes"]

# Bytes that the runtime keeps for a byte of the graph's weights, as measured on models of each precision: int8 graphs
# that compute in fp32 are unpacked, packed copies of quantised matrices stand beside them.
_LOADED_SHARE = {"fp32": 1.1, "fp16": 2.2, "bf16": 2.2, "int8": 4.1, "w8": 1.6, "rq8": 1.5, "w4": 1.8}
_OTHER_SHARE = 2.0
_ARENA_BYTES = 16 << 20  # what small batches take, the runtime's own tables
_TOKENIZER_SHARE = 14  # bytes in memory for a byte of tokenizer.json
_BELIEVED = (0.5, 4.0)  # of the size of the files; below and above, what was measured was something else


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes that a version is expected to hold. `floor_bytes`: its files, which it can hardly hold less than."""

    loaded_bytes: int
    growing_bytes: int = 0
    kept_bytes: int = 0
    floor_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.loaded_bytes + self.growing_bytes


def estimate_memory(model: Model) -> MemoryEstimate:
    """What `model` will hold once it is loaded, by its files and settings."""
    weights = sum(file.size_bytes for file in model.files if not file.path.endswith((".json", ".txt", ".md", ".toml")))
    tokenizer = sum(file.size_bytes for file in model.files if file.path == "tokenizer.json") * _TOKENIZER_SHARE
    share = _LOADED_SHARE.get(model.precision or "fp32", _OTHER_SHARE)
    return MemoryEstimate(
        loaded_bytes=int(weights * share) + tokenizer + _ARENA_BYTES,
        growing_bytes=_cache_bytes(model),
        kept_bytes=tokenizer,
        floor_bytes=weights,
    )


def _cache_bytes(model: Model) -> int:
    """Keys and values of every slot at its longest, and the prefix cache; 0 for models that generate no text."""
    if model.generator is None:
        return 0
    spec = model.generator.spec
    past = [tensor for tensor in model.inputs if tensor.name.startswith("past")]
    item_size = 2 if any(tensor.dtype == "float16" for tensor in past) else 4
    num_states = len(past) if spec.encoder is None and past else 2 * spec.num_layers
    slot = num_states * spec.num_kv_heads * spec.head_dim * item_size * spec.max_length
    prefixes = spec.policy.prefix_cache_mb << 20 if spec.encoder is None else 0
    return slot * spec.policy.max_slots + prefixes


def resident_bytes() -> int | None:
    """The process's resident memory; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One version's part of the memory. `measured_bytes` is None where it was not measured, or not believed."""

    name: str
    version: str
    estimate: MemoryEstimate
    measured_bytes: int | None = None
    resting: bool = False

    @property
    def bytes(self) -> int:
        """What counts against the budget."""
        if self.resting:
            return self.estimate.kept_bytes
        loaded = self.estimate.loaded_bytes if self.measured_bytes is None else self.measured_bytes
        return loaded + self.estimate.growing_bytes


class MemoryBudget:
    """The account of who holds what. Thread-safe; a key stands for one loading of one version.

    limit_bytes  0: no limit, and everything fits
    """

    def __init__(self, limit_bytes: int = 0) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._holdings: dict[Any, Holding] = {}
        self._measuring: dict[Any, bool] = {}  # whether something else came or went meanwhile

    @property
    def held_bytes(self) -> int:
        """What all versions hold."""
        with self._lock:
            return self._held(None)

    def holding(self, key: object) -> Holding | None:
        """What one loading holds; None: nothing."""
        with self._lock:
            return self._holdings.get(key)

    def holdings(self) -> list[Holding]:
        """What everyone holds, the largest first."""
        with self._lock:
            return sorted(self._holdings.values(), key=lambda holding: -holding.bytes)

    def lacking(self, key: object, estimate: MemoryEstimate) -> int:
        """Bytes that are missing for a loading; 0: it fits."""
        with self._lock:
            return self._lacking(key, estimate)

    def take(self, key: object, name: str, version: str, estimate: MemoryEstimate) -> bool:
        """Counts a loading that is about to begin. False: it does not fit, and nothing was counted."""
        with self._lock:
            if self._lacking(key, estimate):
                return False
            self._holdings[key] = Holding(name=name, version=version, estimate=estimate)
            return True

    def rest(self, key: object) -> None:
        """The version has given its memory back, but for its description."""
        with self._lock:
            self._disturb()
            holding = self._holdings.get(key)
            if holding is not None:
                self._holdings[key] = replace(holding, resting=True)

    def give_back(self, key: object) -> None:
        """The version is gone."""
        with self._lock:
            self._disturb()
            self._holdings.pop(key, None)

    @contextmanager
    def measured(self, key: object) -> Iterator[None]:
        """Corrects what a loading holds by how much the process has grown within the block, where that can be told."""
        with self._lock:
            others = bool(self._measuring)
            self._disturb()
            self._measuring[key] = others
        before = resident_bytes()
        try:
            yield
        finally:
            after = resident_bytes()
            with self._lock:
                disturbed = self._measuring.pop(key)
                holding = self._holdings.get(key)
                if holding is not None and before is not None and after is not None and not disturbed:
                    grown, floor = after - before, holding.estimate.floor_bytes
                    if _BELIEVED[0] * floor <= grown <= _BELIEVED[1] * floor + _ARENA_BYTES:
                        self._holdings[key] = replace(holding, measured_bytes=grown)

    def refusal(self, key: object, name: str, version: str, estimate: MemoryEstimate) -> ServingError:
        """Why a version may not be loaded, with the figures."""
        with self._lock:
            held = self._held(key)
            others = sorted(
                (each for other, each in self._holdings.items() if other is not key and each.bytes),
                key=lambda each: -each.bytes,
            )
        shown = ", ".join(f"{each.name}/{each.version} {_mb(each.bytes)}" for each in others[:8])
        more = f" and {len(others) - 8} more" if len(others) > 8 else ""
        used = f"{_mb(held)} of {_mb(self.limit_bytes)} MB are used by {shown}{more}" if others else "nothing is used"
        return ServingError(
            Reason.MEMORY_EXHAUSTED,
            f"model {name!r} version {version!r} needs about {_mb(estimate.total_bytes)} MB, the budget is "
            f"{_mb(self.limit_bytes)} MB: {used}",
            model=name,
            needed_mb=_mb(estimate.total_bytes),
            used_mb=_mb(held),
            budget_mb=_mb(self.limit_bytes),
        )

    def _held(self, without: object) -> int:
        return sum(each.bytes for key, each in self._holdings.items() if key is not without)

    def _lacking(self, key: object, estimate: MemoryEstimate) -> int:
        if not self.limit_bytes:
            return 0
        return max(0, self._held(key) + estimate.total_bytes - self.limit_bytes)

    def _disturb(self) -> None:
        for key in self._measuring:
            self._measuring[key] = True


def _mb(size: int) -> int:
    return -(-size >> 20)
