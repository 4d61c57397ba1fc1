"""Versions, their traffic and their statistics as people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from headrace_server.cli.tables import table

if TYPE_CHECKING:
    from headrace_client import ModelInfo, ModelStatistics, RollbackRule, Traffic

__all__ = ["engine_text", "models_table", "statistics_table", "traffic_text"]


def models_table(infos: Iterable[ModelInfo], totals: Mapping[str, int] | None = None) -> str:
    """One line a version, newest last.

    totals  sum of the weights of each model's split; None: all versions of these models are given
    """
    infos = list(infos)
    if totals is None:
        weights: Counter[str] = Counter()
        for info in infos:
            weights[info.name] += info.traffic_weight
        totals = weights
    rows = []
    for info in infos:
        traffic = [_share(info.traffic_weight, totals[info.name])] if info.traffic_weight else []
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
    return table(("model", "version", "state", "", "labels", "traffic", "engine", "why"), rows)


def engine_text(infos: Iterable[ModelInfo]) -> str:
    """How the engines of versions were chosen, where that was left to the server; "" where it was of none."""
    lines = []
    for info in infos:
        if info.nodes_by_provider:
            nodes = ", ".join(f"{count} on {name}" for name, count in info.nodes_by_provider.items())
            lines.append(f"{info.name}/{info.version}: graph nodes {nodes}")
        choice = info.engine_choice
        if choice is None:
            continue
        lines.append(f"{info.name}/{info.version}: {choice.reason}{' (measured earlier)' if choice.cached else ''}")
        for each in choice.candidates:
            times = (f"{seconds * 1e3:.2f} ms" for seconds in each.run_times_s)
            runs = (f"{time} for {shape}" for shape, time in zip(choice.shapes, times, strict=False))
            figures = [f"{each.speedup:.2f}×, cosine {each.min_cosine:.5f}"] if each.min_cosine else []
            said = [each.verdict.replace("_", " "), *figures, *runs, *([each.reason] if each.reason else [])]
            lines.append(f"  {each.device} {each.precision}: {'; '.join(said)}")
    return "\n".join(lines)


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
    text = table(
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
        shares = (f"{version} {_share(weight, total)}" for version, weight in traffic.split.shares.items())
        lines.append(f"  split    {', '.join(shares)}")
        lines += [f"  rule     {_rule(rule)}" for rule in traffic.split.rules]
    if traffic.shadow is not None:
        lines.append(f"  shadow   {traffic.shadow.version}, of {traffic.shadow.sample_rate:.1%} of the requests")
    lines += [f"  label    {label}: {version}" for label, version in sorted(traffic.labels.items())]
    lines += [f"  version  {version}: {reason}" for version, reason in sorted(traffic.state_reasons.items())]
    return "\n".join(lines)


def _share(weight: int, total: int) -> str:
    return f"{weight / total:.1%}"


def _rule(rule: RollbackRule) -> str:
    if rule.max_error_rate is not None:
        limit = f"over {rule.max_error_rate:.1%} failures"
    elif rule.max_p99_latency_s is not None:
        limit = f"p99 over {rule.max_p99_latency_s * 1000:g} ms"
    else:
        limit = f"over {rule.max_disagreement or 0:.1%} disagreement"
    return f"rolls back {limit} in {rule.window_s:g} s, from {rule.min_requests} requests"
