"""write_report: quantization.json, which servers read, and the same as a page with a plot."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from headrace_server.models.folder import VersionFolder
from headrace_server.models.quantization_report import REPORT_NAME, QuantizationReport, Variant, sealed
from headrace_server.prepare.quality.plot import plotted

__all__ = ["as_markdown", "write_report"]

_HARDLY_FASTER = 1.1


def write_report(folder: Path, report: QuantizationReport) -> QuantizationReport:
    """The report with its digests, written into a version folder that is otherwise finished.

    Written last: a folder without `quantization.json` would serve unmeasured. Figures that are no finite numbers are
    left out. Raises OSError; ServingError MODEL_INVALID for a folder that cannot be served anyway.
    """
    report = sealed(_finite(report), VersionFolder(folder))
    contents = {
        "quantization.svg": plotted(report).encode(),
        "quantization.md": as_markdown(report).encode(),
        REPORT_NAME: msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n",
    }
    for name, content in contents.items():
        fresh = folder / f".{name}"
        fresh.write_bytes(content)
        os.replace(fresh, folder / name)
    return report


def as_markdown(report: QuantizationReport) -> str:
    """The page beside it."""
    data = report.data
    lines = [
        f"# {report.model}/{report.version}: {report.mode} for {report.target}",
        "",
        f"**{_verdict(report)}**",
        "",
        f"Made of the version whose files have the digest `{report.source}`"
        + (f", {report.made}" if report.made else "")
        + f". Inputs: `{data.name}` (SHA-256 `{data.sha256}`), {data.num_calibration} to fit to and"
        f" {data.num_held_out} held out, seed {data.seed}.",
        "",
        "![Quality lost beside speed of each variant, and sensitive layers](quantization.svg)",
        "",
        f"## Quality, on the held-out {'texts' if report.task == 'generate' else 'rows'} alone",
        "",
        "| figure | source | this version |",
        "|---|---|---|",
        *(_figure_rows(report)),
        "",
        f"The bar: {_bar(report)}: {report.gate.reason or 'no figure'}.",
        "",
        "## What became of the operators",
        "",
        "| operator | quantized | left as it was |",
        "|---|---|---|",
        *(
            f"| {name} | {report.operators.get(name, 0)} | {report.left.get(name, 0)} |"
            for name in sorted(report.operators.keys() | report.left.keys())
        ),
        "",
        f"Layers left out: {', '.join(f'`{name}`' for name in report.excluded) or 'none'}.",
        f"A row alone and in batches differs by {report.invariance.max_difference:.3g} of its size at most;"
        f" {report.invariance.tolerance:.3g} is allowed{'' if report.invariance.ok else ': **not batch-invariant**'}.",
        "",
        "## Latency, source and this version in turn",
        "",
        "| | source, ms | this version, ms | times as fast (range of rounds) |",
        "|---|---|---|---|",
        *(
            f"| {each.what} | {each.before_ms:.4g} | {each.after_ms:.4g} | {each.speedup:.2f}"
            f" ({each.low:.2f} to {each.high:.2f}, {each.num_rounds} rounds) |"
            for each in report.latency
        ),
        "",
        f"Graph and weights: {_size(report.size_before)} before, {_size(report.size_after)} after.",
        *_variants(report),
        *([""] + [f"- {note}" for note in report.notes] if report.notes else []),
        "",
        "## Made by",
        "",
        *([f"`{report.command}`", ""] if report.command else []),
        f"{report.machine}; " + ", ".join(f"{name} {version}" for name, version in report.tools.items()) + ".",
        f"Digest of this report: `{report.digest}`.",
        "",
    ]
    return "\n".join(lines)


def _verdict(report: QuantizationReport) -> str:
    if report.held_because:
        return f"Held: it answers only requests that name its version. {report.held_because}. Cure: {report.cure}."
    slow = ""
    if report.latency and report.latency[-1].speedup < _HARDLY_FASTER:
        slow = f" It is hardly faster here: {report.latency[-1].speedup:.2f} times, {report.latency[-1].what}."
    if not report.gate.met:
        return f"Promoted by --force, below its bar: {report.gate.reason}.{slow}"
    return f"Promoted: it met its bar.{slow}"


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 1_000_000 else f"{size_bytes / 1e3:.1f} kB"


def _bar(report: QuantizationReport) -> str:
    asked = {"--min-cosine": report.gate.min_cosine, "--max-drop": report.gate.max_drop}
    named = [f"{name} {value:g}" for name, value in asked.items() if value is not None]
    return " and ".join(named) or f"the default of {report.task}"


def _figure_rows(report: QuantizationReport) -> list[str]:
    names = list(dict.fromkeys([*report.after, *report.before]))
    return [f"| {name} | {_shown(report.before, name)} | {_shown(report.after, name)} |" for name in names]


def _shown(figures: Mapping[str, float], name: str) -> str:
    return f"{figures[name]:.5g}" if name in figures else ""


def _variants(report: QuantizationReport) -> list[str]:
    if not report.variants:
        return []
    return [
        "",
        "## Variants tried",
        "",
        "| variant | quality | times as fast | left out |",
        "|---|---|---|---|",
        *map(_variant_row, report.variants),
    ]


def _variant_row(variant: Variant) -> str:
    speed = f"{variant.speedup:.2f}" if variant.speedup else ""
    left_out = str(len(variant.excluded)) if len(variant.excluded) > 3 else ", ".join(variant.excluded)
    name = f"**{variant.name}**" if variant.chosen else variant.name
    return f"| {name} | {variant.quality:.5g} | {speed} | {left_out} |"


def _finite(report: QuantizationReport) -> QuantizationReport:
    def kept(figures: Mapping[str, float]) -> dict[str, float]:
        return {name: float(value) for name, value in figures.items() if abs(value) < float("inf")}

    return msgspec.structs.replace(
        report, before=kept(report.before), after=kept(report.after), sensitivity=kept(report.sensitivity)
    )
