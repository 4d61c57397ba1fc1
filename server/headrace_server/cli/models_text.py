"""Versions, their traffic and their statistics as people read them."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace_client import ModelInfo, ModelStatistics, RollbackRule, Traffic

__all__ = ["models_table", "statistics_table", "traffic_text"]

_WIDE = 400  # columns where no terminal says how many


def models_table(infos: Iterable[ModelInfo]) -> str:
    """One line a version, newest last."""
    rows = []
    for info in infos:
        traffic = [f"weight {info.traffic_weight}"] if info.traffic_weight else []
        if info.shadow_sample_rate:
            traffic.append(f"shadow of {info.shadow_sample_rate:.0%}")
        rows.append(
            (
                info.name,
                info.version,
                info.state,
                "serves" if info.serving else "held" if info.quantization and info.quantization.held_because else "",
                ", ".join(info.version_labels),
                ", ".join(traffic),
                " ".join(part for part in (info.precision, info.device) if part),
                info.state_reason,
            )
        )
    return _table(("model", "version", "state", "", "labels", "traffic", "engine", "why"), rows)


def statistics_table(found: Iterable[ModelStatistics]) -> str:
    """One line a version: counts, and milliseconds of a request in the mean; then how shadows fare."""
    found = list(found)
    rows = []
    for each in found:
        count = max(each.num_succeeded, 1)
        times = (each.latency_s, each.queue_s, each.preprocess_s, each.infer_s, each.postprocess_s)
        rows.append(
            (
                each.name,
                each.version,
                f"{each.num_succeeded:,}",
                f"{each.num_failed:,}",
                f"{each.num_rows / max(each.num_batches, 1):.1f}",
                *(f"{seconds / count * 1000:.2f}" for seconds in times),
                "" if each.last_request_time is None else f"{each.last_request_time:%Y-%m-%d %H:%M:%S}",
            )
        )
    columns = ("model", "version", "answered", "failed", "rows/run")
    text = _table(
        (*columns, "ms", "queue", "preprocess", "infer", "postprocess", "last (UTC)"), rows, numbers=range(2, 10)
    )
    for each in found:
        if (shadow := each.shadow) is not None:
            text += (
                f"\nshadow {each.name}/{each.version}: {shadow.num_requests:,} copied, {shadow.num_failed:,} failed, "
                f"{shadow.num_dropped:,} dropped; {shadow.agreement:.1%} of {shadow.num_answers:,} answers agree, "
                f"scores differ by {shadow.mean_score_difference:.4f}, p99 {shadow.p99_latency_s * 1000:.1f} ms"
            )
    return text


def traffic_text(traffic: Traffic) -> str:
    """How a model's requests find their version, a line each."""
    lines = [traffic.model, f"  serves   {traffic.serving_version or 'no version'}"]
    if traffic.split is not None:
        total = sum(traffic.split.shares.values())
        shares = (f"{version} {weight / total:.1%}" for version, weight in traffic.split.shares.items())
        lines.append(f"  split    {', '.join(shares)}")
        lines += [f"  rule     {_rule(rule)}" for rule in traffic.split.rules]
    if traffic.shadow is not None:
        lines.append(f"  shadow   {traffic.shadow.version}, of {traffic.shadow.sample_rate:.1%} of the requests")
    lines += [f"  label    {label}: {version}" for label, version in sorted(traffic.labels.items())]
    lines += [f"  version  {version}: {reason}" for version, reason in sorted(traffic.state_reasons.items())]
    return "\n".join(lines)


def _rule(rule: RollbackRule) -> str:
    if rule.max_error_rate is not None:
        limit = f"over {rule.max_error_rate:.1%} failures"
    elif rule.max_p99_latency_s is not None:
        limit = f"p99 over {rule.max_p99_latency_s * 1000:g} ms"
    else:
        limit = f"over {rule.max_disagreement or 0:.1%} disagreement"
    return f"rolls back {limit} in {rule.window_s:g} s, from {rule.min_requests} requests"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    right = set(numbers)
    table = Table(box=None, pad_edge=False, header_style="")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as it is: a reason may hold what looks like markup
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else _WIDE
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
