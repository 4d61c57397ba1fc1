"""Ranges of activations, found by running the user's inputs through the fp32 graph.

Inputs run twice: the first time finds the exact smallest and largest value of each activation, the second fills a
histogram between them. From these a method chooses what is kept:

    minmax      everything that occurred
    percentile  all but the outermost 0.01 % on either side
    mse         what loses least: clipping a few far values against finer steps for all others

source   the choice by least square error follows Nagel et al., A White Paper on Neural Network Quantization (2021), 3.1
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from headrace_server.engines.onnx.session import CPU, open_session
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quantize.working_graph import Array, WorkingGraph

__all__ = ["METHODS", "Histogram", "Method", "Range", "choose_range", "choose_ranges", "measure_activations"]

Method = Literal["minmax", "percentile", "mse"]
METHODS: tuple[Method, ...] = ("minmax", "percentile", "mse")
Feeds = Mapping[str, Array]

_BINS = 2048
_OUTSIDE = 1e-4  # share of values that `percentile` leaves out on either side
_SHARES = np.linspace(0.1, 1.0, 46)  # of the full range, tried by `mse`
_MOST_VALUES = 200_000  # of one activation and one run that enter its histogram: an even sample of them
_MOST_BYTES = 256 << 20  # of activations that one run gives out


@dataclass(frozen=True, slots=True)
class Range:
    """What an activation's integers are to reach from and to; never empty, and 0 lies in it."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Histogram:
    """How often an activation took which values: `counts` of equal bins from `low` to `high`."""

    low: float
    high: float
    counts: npt.NDArray[np.int64]


def measure_activations(
    graph: WorkingGraph, values: Sequence[str], feeds: Sequence[Feeds], *, num_threads: int
) -> dict[str, Histogram]:
    """Histograms of the named f32 values over all feeds.

    raises  PrepareError where a value is not finite, or there are no feeds; ServingError where the graph does not run
    """
    if not feeds:
        raise PrepareError("no inputs to calibrate with", cure="give --calib a file of real inputs")
    wanted = list(dict.fromkeys(values))
    with tempfile.TemporaryDirectory(prefix="headrace-calibrate-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(graph.model(extra_outputs=wanted).SerializeToString())
        session = open_session(path, device="cpu", provider=CPU, num_threads=num_threads)
        limits = dict.fromkeys(wanted, (math.inf, -math.inf))
        for arrays in _runs(session, wanted, feeds):
            for name, array in arrays.items():
                if array.size:
                    low, high = float(array.min()), float(array.max())
                    if not math.isfinite(low) or not math.isfinite(high):
                        raise PrepareError(
                            f"activation {name!r} is not finite for a calibration input",
                            cure="leave that input out, or mend the model: its fp32 answers are not finite either",
                        )
                    limits[name] = min(limits[name][0], low), max(limits[name][1], high)
        counts = {name: np.zeros(_BINS, np.int64) for name in wanted}
        for arrays in _runs(session, wanted, feeds):
            for name, array in arrays.items():
                counts[name] += _count(array, *limits[name])
    return {
        name: Histogram(*(limits[name] if limits[name][0] <= limits[name][1] else (0.0, 0.0)), counts[name])
        for name in wanted
    }


def choose_ranges(histograms: Mapping[str, Histogram], method: Method, *, symmetric: bool) -> dict[str, Range]:
    """`choose_range` of each activation."""
    return {name: choose_range(histogram, method, symmetric=symmetric) for name, histogram in histograms.items()}


def choose_range(histogram: Histogram, method: Method, *, symmetric: bool) -> Range:
    """The range to keep. `symmetric`: as far below 0 as above."""
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)
    if method == "percentile":
        low, high = _percentiles(histogram, low, high)
    elif method == "mse":
        low, high = _least_error(histogram, low, high, symmetric=symmetric)
    if symmetric:
        high = max(-low, high)
        low = -high
    return Range(low, high) if high > low else Range(-1.0 if symmetric else 0.0, 1.0)


def _runs(session: Any, names: Sequence[str], feeds: Sequence[Feeds]) -> Any:
    """By name, what each run gives: few rows at a time, so that their activations fit into memory."""
    rows_at_once = 0
    for whole in feeds:
        num_rows = len(next(iter(whole.values())))
        start = 0
        while start < num_rows:
            size = min(rows_at_once or 1, num_rows - start)
            part = {name: array[start : start + size] for name, array in whole.items()}
            try:
                arrays = dict(zip(names, session.run(list(names), part), strict=True))
            except Exception as error:  # the runtime's faults have no common type
                raise PrepareError(
                    f"the fp32 model does not run on a calibration input: {str(error).splitlines()[0][:200]}",
                    cure="`headrace inspect` shows what the model reads",
                ) from None
            yield arrays
            start += size
            largest = sum(array.nbytes for array in arrays.values()) / size
            rows_at_once = max(1, min(64, int(_MOST_BYTES / max(largest, 1))))


def _count(array: Array, low: float, high: float) -> npt.NDArray[np.int64]:
    flat = array.reshape(-1)
    flat = flat[:: max(1, flat.size // _MOST_VALUES)]
    if high <= low:
        counts = np.zeros(_BINS, np.int64)
        counts[0] = flat.size
        return counts
    places = ((flat - np.float32(low)) * np.float32(_BINS / (high - low))).astype(np.int64)
    return np.bincount(np.clip(places, 0, _BINS - 1), minlength=_BINS)


def _percentiles(histogram: Histogram, low: float, high: float) -> tuple[float, float]:
    total = histogram.counts.sum()
    edges = np.linspace(histogram.low, histogram.high, _BINS + 1)
    below = np.cumsum(histogram.counts)
    first = int(np.searchsorted(below, total * _OUTSIDE, side="right"))
    last = int(np.searchsorted(below, total * (1 - _OUTSIDE), side="left"))
    return max(low, min(float(edges[first]), 0.0)), min(high, max(float(edges[min(last + 1, _BINS)]), 0.0))


def _least_error(histogram: Histogram, low: float, high: float, *, symmetric: bool) -> tuple[float, float]:
    edges = np.linspace(histogram.low, histogram.high, _BINS + 1)
    centres, counts = (edges[:-1] + edges[1:]) / 2, histogram.counts.astype(np.float64)
    if symmetric:
        high = max(-low, high)
        tried = [(-high * share, high * share) for share in _SHARES]
    else:  # each side by itself: a long tail on one must not coarsen the other
        lows = [low * share for share in _SHARES] if low < 0 else [0.0]
        tried = [(start, high * share) for start in lows for share in (_SHARES if high > 0 else (0.0,))]
    best, chosen = math.inf, (low, high)
    for start, end in tried:
        if end <= start:
            continue
        step = (end - start) / 255
        outside = np.maximum(start - centres, 0) + np.maximum(centres - end, 0)
        # What is inside is rounded evenly over a step; what is outside is clipped.
        error = float(counts @ np.where(outside > 0, outside**2, step * step / 12))
        if error < best:
            best, chosen = error, (start, end)
    return chosen
