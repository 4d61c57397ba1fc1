"""How good a recommender is: what it puts first for users of whom one interaction was kept back, as a report.

The lists are made by the same kernel, from the same vectors, as a server makes them: what is reported is served.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from headrace_kernels import pack_items, scan_topk
from headrace_server.prepare.recommend_interactions import Array
from headrace_server.prepare.recommend_model import ItemModel, history_vector
from headrace_server.prepare.recommend_split import HeldOut

__all__ = ["Quality", "Report", "evaluate"]

_AT_ONCE = 256
_Z = 1.959964  # of a 95 % interval
Queries = Callable[[int, int], Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """How one way of asking did. `low` and `high` bound the hit rate with 95 % confidence (Wilson)."""

    way: str
    hit_rate: float
    low: float
    high: float
    ndcg: float
    mrr: float
    coverage: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured, on what, and how; `model` is what was fitted and `data` what to, for people and programs."""

    k: int
    num_users: int
    num_items: int
    seed: int
    held_out: str
    qualities: Sequence[Quality]
    model: Mapping[str, Any]
    data: Mapping[str, Any]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def to_markdown(self) -> str:
        """The report as a page."""
        k = self.k
        lines = [
            f"# Recommender `{self.model['name']}`, leave one out",
            "",
            *(f"- {name}: {_shown(value)}" for name, value in (*self.data.items(), *self.model.items())),
            "",
            f"| asked | HR@{k} (95 % interval) | NDCG@{k} | MRR@{k} | coverage@{k} |",
            "|---|---|---|---|---|",
        ]
        lines += [
            f"| {each.way} | {each.hit_rate:.3f} ({each.low:.3f} to {each.high:.3f}) | {each.ndcg:.3f} "
            f"| {each.mrr:.3f} | {each.coverage:.3f} |"
            for each in self.qualities
        ]
        return "\n".join([*lines, "", *self._protocol(), ""])

    def _protocol(self) -> list[str]:
        k = self.k
        lines = [
            f"Protocol: of {self.num_users} users with two items or more one interaction was held out "
            f"({self.held_out}, seed {self.seed}); the model was fitted without any of them. Candidates are all "
            f"{self.num_items} items but those of the user's own history. HR@{k}: the share of users whose held-out "
            f"item is among the first {k}; ties go to the item that was seen first. NDCG and MRR count 0 beyond {k}. "
            "Coverage: the share of items that are recommended to anybody. The lists are made by the kernel and from "
            "the vectors that are served.",
        ]
        if self.num_users < 100:
            lines.append(f"\n**Only {self.num_users} users: the interval is wide, differences mean little.**")
        return lines


def evaluate(model: ItemModel, held: HeldOut, *, k: int = 10, seed: int) -> list[Quality]:
    """The qualities of a model fitted to `held.train`: by user, by history, and of two baselines."""
    table = held.train
    spans = [table.span(int(user)) for user in held.user]
    histories = [table.item[span].astype(np.int64) for span in spans]

    def by_user(first: int, last: int) -> Array:
        return model.user_vectors(table, held.user[first:last])

    def by_history(first: int, last: int, *, weighted: bool) -> Array:
        rows = []
        for span, items in zip(spans[first:last], histories[first:last], strict=True):
            weights = table.weight[span] * model.history_weights[items] if weighted else np.ones(len(items), np.float32)
            rows.append(history_vector(model.vectors[items], weights))
        return np.stack(rows)

    ones = np.ones((_AT_ONCE, 1), np.float32)
    popularity = table.popularity().astype(np.float32)[:, np.newaxis]
    ways: list[tuple[str, Array, Queries]] = [("by the user's vector", model.vectors, by_user)]
    if model.factors is None:
        ways.append(
            ("by the history, weighted", model.vectors, lambda first, last: by_history(first, last, weighted=True))
        )
    ways += [
        ("by the history, all alike", model.vectors, lambda first, last: by_history(first, last, weighted=False)),
        ("popularity, a baseline", popularity, lambda first, last: ones[: last - first]),
    ]
    qualities = [
        _quality(way, _lists(vectors, queries, histories, k), held.item, len(table.items))
        for way, vectors, queries in ways
    ]
    chance = _random_lists(histories, len(table.items), k, seed)
    return [*qualities, _quality("at random, a baseline", chance, held.item, len(table.items))]


def _lists(vectors: Array, queries: Queries, histories: Sequence[Array], k: int) -> list[Array]:
    """For each user the best items outside his history."""
    packed = pack_items(np.ascontiguousarray(vectors), metric="dot")
    found = []
    for first in range(0, len(histories), _AT_ONCE):
        last = min(first + _AT_ONCE, len(histories))
        indices, _, counts = scan_topk(packed, queries(first, last), k, exclude=histories[first:last])
        found += [row[:count] for row, count in zip(indices, counts, strict=True)]
    return found


def _random_lists(histories: Sequence[Array], num_items: int, k: int, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    found = []
    for history in histories:
        order = rng.permutation(num_items)
        found.append(order[~np.isin(order, history)][:k])
    return found


def _quality(way: str, lists: Sequence[Array], wanted: Array, num_items: int) -> Quality:
    ranks = np.full(len(lists), np.inf)
    seen = np.zeros(num_items, bool)
    for row, (found, item) in enumerate(zip(lists, wanted, strict=True)):
        seen[found] = True
        place = np.flatnonzero(found == item)
        if len(place):
            ranks[row] = place[0]
    hit_rate = float(np.isfinite(ranks).mean())
    low, high = _wilson(hit_rate, len(ranks))
    return Quality(
        way=way,
        hit_rate=hit_rate,
        low=low,
        high=high,
        ndcg=float((1 / np.log2(ranks + 2)).mean()),
        mrr=float((1 / (ranks + 1)).mean()),
        coverage=float(seen.mean()),
    )


def _wilson(share: float, count: int) -> tuple[float, float]:
    centre = share + _Z**2 / (2 * count)
    spread = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return max(0.0, (centre - spread) / (1 + _Z**2 / count)), min(1.0, (centre + spread) / (1 + _Z**2 / count))


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
