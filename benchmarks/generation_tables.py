"""The tables of the generation benchmark: medians with minimum and maximum, and ours against each peer."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

__all__ = ["print_tables"]

OURS = "fast"
_TITLES = {
    "decode": ("Decode, tokens/s, by sequences that run together (128 tokens before)", "tok_s", "higher"),
    "first": ("Time to the first token, ms, by tokens of the prompt", "ms", "lower"),
    "mixed": ("Mixed load, tokens/s, by requests at a time", "tok_s", "higher"),
    "grpc": ("Eight streams of 64 tokens, prompts of 128, tokens/s, prompts included", "tok_s", "higher"),
    "rss": ("Memory after it all, RSS in MB", "mb", "lower"),
}
_BESIDE = (("gap_p50_ms", "between tokens, p50 ms"), ("gap_p99_ms", "p99 ms"), ("first_p50_ms", "first token, p50 ms"))

Rows = Sequence[dict[str, Any]]


def print_tables(rows: Rows) -> None:
    """Every section that has rows."""
    for section, (title, field, _) in _TITLES.items():
        own = [row for row in rows if row["section"] == section]
        if own:
            print(f"\n{title}\n")
            _print_section(own, field, with_ratios=section not in ("grpc", "rss"))
    if client := [row["client_cpu_ms"] for row in rows if "client_cpu_ms" in row]:
        print(f"\nCPU of the client over gRPC, ms a token: {_spread(client)}")
    if mixed := [row for row in rows if row["section"] == "mixed"]:
        _print_beside(mixed)
    if quality := [row for row in rows if row["section"] == "quality"]:
        _print_quality(quality)


def _print_section(rows: Rows, field: str, *, with_ratios: bool) -> None:
    cases = sorted({row["case"] for row in rows})
    print("| | " + " | ".join(str(case or "") for case in cases) + " |")
    print("|---|" + "---|" * len(cases))
    ours = {case: _values(rows, OURS, case, field) for case in cases}
    for engine in _engines(rows):
        cells = []
        for case in cases:
            values = _values(rows, engine, case, field)
            cell = _spread(values)
            if with_ratios and values and ours[case] and engine != OURS:
                cell += f" · {statistics.median(ours[case]) / statistics.median(values):.2f}×"
            cells.append(cell)
        print(f"| {engine} | " + " | ".join(cells) + " |")
    if with_ratios:
        print("\n×: `fast` ÷ this one, of medians.")


def _print_beside(rows: Rows) -> None:
    print("\nMixed load, what a caller sees\n")
    print("| | requests at a time | " + " | ".join(title for _, title in _BESIDE) + " |")
    print("|---|---|" + "---|" * len(_BESIDE))
    for engine in _engines(rows):
        for case in sorted({row["case"] for row in rows}):
            cells = [_spread(_values(rows, engine, case, field)) for field, _ in _BESIDE]
            print(f"| {engine} | {case} | " + " | ".join(cells) + " |")


def _print_quality(rows: Rows) -> None:
    last = {row["engine"]: row for row in rows}
    count = next(iter(last.values()))["case"]
    fp32 = next(iter(last.values()))["fp32_perplexity"]
    print(f"\nBeside fp32, on {count} tokens of four texts (perplexity of fp32: {fp32:.2f})\n")
    print("| | KL divergence, nats | top-1 agreement | perplexity |")
    print("|---|---|---|---|")
    for engine, row in last.items():
        print(f"| {engine} | {row['kl']:.4f} | {row['top1']:.3f} | {row['perplexity']:.2f} |")


def _engines(rows: Rows) -> list[str]:
    return list(dict.fromkeys(sorted((row["engine"] for row in rows), key=lambda name: (not name[0].islower(), name))))


def _values(rows: Rows, engine: str, case: int, field: str) -> list[float]:
    return [row[field] for row in rows if row["engine"] == engine and row["case"] == case and field in row]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    digits = 1 if statistics.median(values) < 100 else 0
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}–{max(values):.{digits}f})"
