"""Graphs quantized as `headrace quantize --target tensorrt` does, without its search and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["save_quantized"]


def save_quantized(graph: Path, folder: Path, *, mode: str, feeds: Sequence[Mapping[str, Any]]) -> Path:
    """The graph in `mode` ("static", "fp16", "bf16", "fp8"), every layer; "static" and "fp8" calibrate on `feeds`."""
    import onnx

    from headrace_server.prepare.quantize.combinations import choose_combination
    from headrace_server.prepare.quantize.making import GraphMaker
    from headrace_server.prepare.quantize.working_graph import WorkingGraph

    maker = GraphMaker(WorkingGraph.read(graph), choose_combination("tensorrt", mode))
    if maker.combination.calibrates:
        maker.calibrate(feeds, num_threads=2)
    path = folder / "model.onnx"
    onnx.save(maker.make(), str(path))
    return path
