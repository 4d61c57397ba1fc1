"""`headrace quantize`: a model's version to a smaller and faster one, measured beside it."""

from __future__ import annotations

import enum
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace_server.cli.faults import fail, preparing

if TYPE_CHECKING:
    from headrace_server.models.quantization_report import QuantizationReport

__all__ = ["HELD", "quantize"]

HELD = 3
"""Exit status of a version that was written and may not serve."""


class Target(enum.Enum):
    CPU = "cpu"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


class Mode(enum.Enum):
    DYNAMIC = "dynamic"
    STATIC = "static"
    FP16 = "fp16"
    BF16 = "bf16"
    FP8 = "fp8"
    W8 = "w8"
    W4 = "w4"


class Ranges(enum.Enum):
    AUTO = "auto"
    MINMAX = "minmax"
    PERCENTILE = "percentile"
    MSE = "mse"


def quantize(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A version's folder; of a model's folder the newest.")],
    target: Annotated[Target, typer.Option(help="What will run it.")],
    mode: Annotated[
        Mode, typer.Option(help="dynamic: int8, a scale a row; static: int8, calibrated; w8, w4: weights.")
    ],
    calib: Annotated[Path, typer.Option(metavar="FILE", help="Real inputs: .txt, .jsonl, .csv, .npz or a folder.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The folder to write. (default: the next version beside it)")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Layers to leave out, by node name; may be repeated.")
    ] = None,
    min_cosine: Annotated[
        float | None, typer.Option(min=0, max=1, help="The bar: mean cosine to the source's answers.")
    ] = None,
    max_drop: Annotated[
        float | None, typer.Option(min=0, max=1, help="The bar: what accuracy, agreement or recall may lose.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Let it serve below the bar.")] = False,
    ranges: Annotated[Ranges, typer.Option(help="How static chooses ranges of activations.")] = Ranges.AUTO,
    search_seconds: Annotated[float, typer.Option(min=0, help="For the search of layers to leave out; 0: none.")] = 180,
    latency_seconds: Annotated[float, typer.Option(min=0, help="For timing before and after; 0: not timed.")] = 6,
    items: Annotated[
        Path | None, typer.Option(metavar="NPY", help="Item vectors [m, d] whose recall is measured.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of FILE that are used.")] = 512,
    held_out: Annotated[float, typer.Option(help="The part of them that quality is measured on.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Which rows these are.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Make a smaller and faster version of a model, and measure what it cost.

    A version below the bar is written, and does not serve callers who name no version (exit status 3).
    """
    with preparing():
        try:
            from headrace_server.prepare.quality.quality import Bar
            from headrace_server.prepare.quantize.run import QuantizeOptions
            from headrace_server.prepare.quantize.run import quantize as run
        except ImportError as error:
            raise fail(
                f"Python package {error.name} is not installed", cure="pip install 'headrace[quantize]'"
            ) from None

        began = time.monotonic()

        def progress(text: str) -> None:
            if not quiet:
                print(f"[{time.monotonic() - began:5.0f} s] {text}", file=sys.stderr, flush=True)

        made = run(
            model,
            QuantizeOptions(
                target=target.value,
                mode=mode.value,
                calib=calib,
                out=out,
                exclude=exclude or (),
                bar=Bar(min_cosine=min_cosine, max_drop=max_drop),
                force=force,
                method=ranges.value,
                search_s=search_seconds,
                latency_s=latency_seconds,
                items=items,
                limit=limit,
                held_out=held_out,
                seed=seed,
            ),
            progress,
        )
    print("\n".join(_lines(made.report)))
    print(f"written: {made.folder} in {time.monotonic() - began:.0f} s (quantization.md says more)")
    held = made.report.held_because
    if held:
        raise fail(f"not promoted: {held}", cure=made.report.cure, status=HELD)
    print("promoted, below its bar, by --force" if made.report.forced else "promoted: it met its bar")


def _lines(report: QuantizationReport) -> list[str]:
    """Before and after, a figure a line."""
    rows = [("", "source", f"{report.mode}, {report.target}")]
    names = dict.fromkeys([*report.after, *report.before])
    rows += [(name, _figure(report.before, name), _figure(report.after, name)) for name in names]
    rows += [(each.what, f"{each.before_ms:.3g} ms", f"{each.after_ms:.3g} ms ({each.speedup:.2f} times as fast)")
             for each in report.latency]  # fmt: skip
    rows.append(("graph and weights", f"{report.size_before / 1e6:.1f} MB", f"{report.size_after / 1e6:.1f} MB"))
    counted = report.operators.keys() | report.left.keys()
    for name in sorted(counted):
        done, left = report.operators.get(name, 0), report.left.get(name, 0)
        rows.append((f"{name} quantized", "", f"{done} of {done + left}"))
    rows.append(("change of a row by its batch", "", f"{report.invariance.max_difference:.2g} of its size"))
    widths = [max(len(row[place]) for row in rows) for place in (0, 1)]
    return [f"{name:<{widths[0]}}  {before:>{widths[1]}}  {after}" for name, before, after in rows]


def _figure(figures: dict[str, float], name: str) -> str:
    return f"{figures[name]:.5g}" if name in figures else ""
