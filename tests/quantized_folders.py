"""Version folders with a quantization report, as `headrace quantize` leaves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace_server.models.quantization_report import (
    CalibrationData,
    Gate,
    Invariance,
    LatencyFigure,
    QuantizationReport,
    Variant,
)
from headrace_server.prepare.quality.report import write_report

__all__ = ["MISSED", "a_report", "add_report"]

MISSED = "cosine_mean 0.9331, below 0.9900"


def a_report(*, met: bool = True, forced: bool = False, invariant: bool = True, **more: Any) -> QuantizationReport:
    fields: dict[str, Any] = {
        "model": "m",
        "version": "2",
        "source": "a" * 64,
        "mode": "dynamic",
        "target": "cpu",
        "task": "embed",
        "data": CalibrationData(name="mails.txt", sha256="b" * 64, num_calibration=70, num_held_out=30),
        "operators": {"MatMul": 24},
        "left": {"MatMul": 12},
        "invariance": Invariance(max_difference=0.0 if invariant else 0.25, tolerance=1e-4, ok=invariant),
        "before": {"accuracy": 0.95},
        "after": {"accuracy": 0.94, "cosine_mean": 0.9331},
        "gate": Gate(met=met, reason="" if met else MISSED),
        "forced": forced,
        "latency": (
            LatencyFigure(what="1 row", before_ms=9.2, after_ms=3.3, speedup=2.8, low=2.6, high=2.9, num_rounds=12),
        ),
        "variants": (
            Variant(name="all layers", quality=0.9331, speedup=2.9),
            Variant(name="without <ffn> & head", quality=0.992, speedup=2.5, excluded=("ffn",), chosen=True),
        ),
        "sensitivity": {"layer.0/ffn": 0.95, "layer.1/ffn": 0.9991},
        "excluded": ("layer.0/ffn",),
        "tools": {"onnxruntime": "1.31.1"},
        "machine": "a machine",
        "made": "2026-01-02T03:04:05Z",
    }
    return QuantizationReport(**{**fields, **more})


def add_report(
    folder: Path, *, met: bool = True, forced: bool = False, invariant: bool = True, **more: Any
) -> QuantizationReport:
    """Writes a report on the files that are in the folder now."""
    return write_report(folder, a_report(met=met, forced=forced, invariant=invariant, **more))
