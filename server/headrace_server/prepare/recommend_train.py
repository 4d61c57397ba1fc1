"""Trains a recommender: measures it on held-out interactions, then fits it to all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headrace_server.prepare.recommend_als import fit_als
from headrace_server.prepare.recommend_ease import co_occurrence, ease_weights, fit_ease
from headrace_server.prepare.recommend_interactions import Array, Interactions
from headrace_server.prepare.recommend_model import ItemModel, ModelName
from headrace_server.prepare.recommend_report import Report, evaluate
from headrace_server.prepare.recommend_split import HeldOut, leave_one_out

__all__ = ["TrainOptions", "Trained", "fit", "train"]

_STRENGTHS = (10.0, 30.0, 100.0, 300.0)
_MAX_TESTED_USERS = 20_000
_USERS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainOptions:
    """How to train. Of a model's own settings the others are passed over.

    regularization  0: ALS 10; EASE the best of 10, 30, 100, 300 by a second leave-one-out inside the training part
    dimension       EASE: 0 one an item, exact; fewer: the nearest of that rank
    min_user_items, min_item_users  who and what counts at all
    """

    model: ModelName = "ease"
    k: int = 10
    seed: int = 0
    min_user_items: int = 2
    min_item_users: int = 2
    regularization: float = 0.0
    dimension: int = 0
    factors: int = 64
    alpha: float = 10.0
    iterations: int = 15


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """A model fitted to all of `table`, and how one fitted without the held-out part did."""

    table: Interactions
    model: ItemModel
    report: Report


def train(
    table: Interactions, options: TrainOptions, *, num_repeated: int = 0, report: Callable[[str], None] = print
) -> Trained:
    """The model of a table, with its report.

    num_repeated  how many rows of its file repeated a pair, for the report
    raises        PrepareError where the table is too small for training or testing, or too large for the model
    """
    left = table.of_at_least(user_items=options.min_user_items, item_users=options.min_item_users)
    held = leave_one_out(left, seed=options.seed, max_users=_MAX_TESTED_USERS)
    report(f"{len(left.users)} users, {len(left.items)} items, {len(left)} pairs; testing on {len(held.user)} users")
    regularization = _regularization(held.train, options, report)
    qualities = evaluate(fit(held.train, options, regularization), held, k=options.k, seed=options.seed)
    model = fit(left, options, regularization)
    measured = Report(
        k=options.k,
        num_users=len(held.user),
        num_items=len(left.items),
        seed=options.seed,
        held_out="one at random" if left.time is None else "the latest",
        qualities=qualities,
        model={"name": model.name, "dimension": model.dimension, **model.settings},
        data={
            "users": len(left.users),
            "items": len(left.items),
            "pairs": len(left),
            "repeated pairs, added up": num_repeated,
            "left out for too few interactions": f"{len(table.users) - len(left.users)} users, "
            f"{len(table.items) - len(left.items)} items, {len(table) - len(left)} pairs",
        },
    )
    return Trained(table=left, model=model, report=measured)


def fit(table: Interactions, options: TrainOptions, regularization: float) -> ItemModel:
    """The chosen model, fitted to the table."""
    if options.model == "als":
        return fit_als(
            table,
            factors=options.factors,
            regularization=regularization,
            alpha=options.alpha,
            iterations=options.iterations,
            seed=options.seed,
        )
    return fit_ease(table, regularization=regularization, dimension=options.dimension)


def _regularization(table: Interactions, options: TrainOptions, report: Callable[[str], None]) -> float:
    if options.regularization:
        return options.regularization
    if options.model == "als":
        return 10.0
    inner = leave_one_out(table, seed=options.seed + 1, max_users=_MAX_TESTED_USERS)
    together = co_occurrence(inner.train)
    rates = {strength: _hit_rate(ease_weights(together, strength), inner, options.k) for strength in _STRENGTHS}
    best = max(rates, key=lambda strength: rates[strength])
    said = ", ".join(f"{strength:g}: {rate:.3f}" for strength, rate in rates.items())
    report(f"regularization {best:g}, chosen inside the training part (HR@{options.k} {said})")
    return best


def _hit_rate(weights: Array, held: HeldOut, k: int) -> float:
    hits = 0
    for first in range(0, len(held.user), _USERS_AT_ONCE):
        users, wanted = held.user[first : first + _USERS_AT_ONCE], held.item[first : first + _USERS_AT_ONCE]
        rows = held.train.dense(users)
        scores = np.where(rows > 0, -np.inf, rows @ weights)
        own = scores[np.arange(len(users)), wanted]
        hits += int(((scores > own[:, np.newaxis]).sum(axis=1) < k).sum())
    return hits / len(held.user)
