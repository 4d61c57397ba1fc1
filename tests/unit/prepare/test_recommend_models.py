"""What is served is the model: EASE to rounding, lists as the report counted them, and no held-out pair in training."""

from __future__ import annotations

import importlib.util
import json
import math

import numpy as np
import pytest

from headrace_server.prepare import recommend_ease
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.recommend_ease import co_occurrence, ease_weights, fit_ease
from headrace_server.prepare.recommend_interactions import Array, Interactions, interactions_of
from headrace_server.prepare.recommend_model import history_vector
from headrace_server.prepare.recommend_report import evaluate
from headrace_server.prepare.recommend_split import leave_one_out
from headrace_server.prepare.recommend_train import TrainOptions, train

_GROUPS = 6


def tastes(num_users: int = 240, num_items: int = 48, *, timed: bool = False, seed: int = 3) -> Interactions:
    """Users who mostly take items of one of six groups, some items more than others."""
    rng = np.random.default_rng(seed)
    users, items, times = [], [], []
    liked = rng.random(num_items) ** 2 + 0.05
    for user in range(num_users):
        chance = liked * np.where(np.arange(num_items) % _GROUPS == user % _GROUPS, 12.0, 1.0)
        for item in rng.choice(num_items, int(rng.integers(3, 9)), replace=False, p=chance / chance.sum()):
            users.append(f"user{user}")
            items.append(f"item{item}")
            times.append(float(rng.random()))
    return interactions_of(users, items, times=times if timed else None)[0]


def off_diagonal(matrix: Array) -> Array:
    copy = matrix.copy()
    np.fill_diagonal(copy, 0)
    return copy


@pytest.mark.parametrize("regularization", [0.5, 30.0, 3000.0])
def test_vectors_and_history_weights_score_as_ease_does(regularization: float) -> None:
    table = tastes()
    model = fit_ease(table, regularization=regularization)
    wanted = ease_weights(co_occurrence(table), regularization)
    vectors = model.vectors.astype(np.float64)
    served = model.history_weights[:, np.newaxis] * (vectors @ vectors.T)
    assert np.abs(off_diagonal(served) - wanted).max() < 1e-5 * np.abs(wanted).max() + 1e-6
    assert model.dimension == len(table.items)
    everyone = np.arange(len(table.users))
    scores = model.user_vectors(table, everyone).astype(np.float64) @ vectors.T
    histories = table.dense(everyone)
    assert np.abs(np.where(histories > 0, 0, scores - histories @ wanted)).max() < 1e-5


def test_ease_is_the_least_squares_model_without_its_diagonal() -> None:
    """Against the definition: each column is a ridge regression on the other items."""
    table = tastes(num_users=60, num_items=12)
    histories, strength = table.dense(np.arange(len(table.users))), 5.0
    weights = ease_weights(co_occurrence(table), strength)
    for item in range(len(table.items)):
        others = np.delete(np.arange(len(table.items)), item)
        part = histories[:, others]
        ridge = np.linalg.solve(part.T @ part + strength * np.eye(len(others)), part.T @ histories[:, item])
        assert np.allclose(weights[others, item], ridge, atol=1e-9)
        assert weights[item, item] == 0


def test_fewer_dimensions_come_nearer_the_more_they_are() -> None:
    table = tastes()
    wanted = ease_weights(co_occurrence(table), 30.0)

    def distance(dimension: int) -> float:
        model = fit_ease(table, regularization=30.0, dimension=dimension)
        assert model.vectors.shape == (len(table.items), dimension)
        vectors = model.vectors.astype(np.float64)
        return float(
            np.linalg.norm(off_diagonal(model.history_weights[:, np.newaxis] * (vectors @ vectors.T)) - wanted)
        )

    far, near = distance(4), distance(24)
    assert near < far < np.linalg.norm(wanted)
    assert near < 0.5 * np.linalg.norm(wanted)


def test_too_many_items_for_ease_are_told_with_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recommend_ease, "MAX_EASE_ITEMS", 40)
    with pytest.raises(PrepareError, match=r"48 items: EASE .* at most 40"):
        fit_ease(tastes(), regularization=1.0)


@pytest.mark.parametrize("timed", [False, True])
def test_what_is_held_out_is_in_no_training(timed: bool) -> None:
    table = tastes(timed=timed)
    held = leave_one_out(table, seed=1)
    before = set(zip(table.user.tolist(), table.item.tolist(), strict=True))
    after = set(zip(held.train.user.tolist(), held.train.item.tolist(), strict=True))
    kept_back = set(zip(held.user.tolist(), held.item.tolist(), strict=True))
    assert len(kept_back) == len(table.users)
    assert after == before - kept_back
    if timed:
        assert table.time is not None
        latest = {int(user): -math.inf for user in held.user}
        for user, time in zip(table.user.tolist(), table.time.tolist(), strict=True):
            latest[user] = max(latest[user], time)
        times = dict(zip(zip(table.user.tolist(), table.item.tolist(), strict=True), table.time.tolist(), strict=True))
        assert all(times[pair] == latest[pair[0]] for pair in kept_back)
    else:
        assert np.array_equal(leave_one_out(table, seed=1).item, held.item)
        assert not np.array_equal(leave_one_out(table, seed=2).item, held.item)


def test_a_single_pair_is_no_history_and_none_but_such_is_an_error() -> None:
    table = interactions_of(["a", "b", "b"], ["x", "x", "y"])[0]
    assert leave_one_out(table, seed=0).user.tolist() == [1]
    with pytest.raises(PrepareError, match="no user has two items"):
        leave_one_out(interactions_of(["a", "b"], ["x", "y"])[0], seed=0)
    assert len(leave_one_out(tastes(), seed=0, max_users=10).user) == 10


def test_the_report_counts_what_a_plain_reckoning_counts() -> None:
    held = leave_one_out(tastes(), seed=1)
    model = fit_ease(held.train, regularization=30.0)
    by_user, weighted, alike, popular, chance = evaluate(model, held, k=5, seed=1)
    histories = held.train.dense(held.user)

    def plain(scores: Array) -> tuple[float, float, float, float]:
        scores = np.where(histories > 0, -np.inf, scores)
        order = np.argsort(-scores, axis=1, kind="stable")
        rank = (order == held.item[:, np.newaxis]).argmax(axis=1)
        hit = rank < 5
        ndcg = np.where(hit, 1 / np.log2(rank + 2), 0).mean()
        mrr = np.where(hit, 1 / (rank + 1), 0).mean()
        return hit.mean(), ndcg, mrr, len(np.unique(order[:, :5])) / 48

    ease = plain(histories @ ease_weights(co_occurrence(held.train), 30.0))
    for quality in (by_user, weighted):
        assert (quality.hit_rate, quality.ndcg, quality.mrr, quality.coverage) == pytest.approx(ease, abs=1e-9)
    count = plain(np.tile(held.train.popularity().astype(np.float64), (len(held.user), 1)))
    assert (popular.hit_rate, popular.ndcg, popular.mrr, popular.coverage) == pytest.approx(count, abs=1e-9)
    assert by_user.hit_rate > 1.3 * popular.hit_rate > 1.3 * chance.hit_rate
    assert 0 < alike.hit_rate <= 1
    assert by_user.low < by_user.hit_rate < by_user.high
    # Wilson's interval, reckoned by hand for 4 of 10
    from headrace_server.prepare.recommend_report import _wilson

    assert _wilson(0.4, 10) == pytest.approx((0.1682, 0.6873), abs=1e-4)


def test_a_history_is_the_mean_by_weights() -> None:
    vectors = np.array([[1, 0], [0, 1], [4, 4]], np.float32)
    assert history_vector(vectors, np.array([1, 3, 0], np.float32)).tolist() == [0.25, 0.75]


def test_training_tells_what_it_did_for_people_and_programs() -> None:
    trained = train(tastes(), TrainOptions(k=5), num_repeated=7, report=lambda _: None)
    page, content = trained.report.to_markdown(), json.loads(trained.report.to_json())
    assert content["qualities"][0]["way"] == "by the user's vector"
    assert content["model"]["regularization"] in (10.0, 30.0, 100.0, 300.0)
    assert content["data"]["repeated pairs, added up"] == 7
    for word in ("HR@5", "NDCG@5", "popularity", "at random", "240 users", "one at random, seed 0"):
        assert word in page
    assert "interval is wide" not in page
    assert len(trained.table) == len(tastes())  # all of them, the held-out too
    few = train(tastes(num_users=40), TrainOptions(), report=lambda _: None).report.to_markdown()
    assert "Only 40 users: the interval is wide" in few


@pytest.mark.skipif(importlib.util.find_spec("implicit") is None, reason="the train extra is not installed")
def test_als_learns_the_same_factors_from_the_same_seed() -> None:
    options = TrainOptions(model="als", k=5, factors=16, iterations=8)
    one, two = (train(tastes(), options, report=lambda _: None) for _ in range(2))
    assert np.array_equal(one.model.vectors, two.model.vectors)
    assert one.model.vectors.shape == (48, 16)
    assert one.model.factors is not None
    assert one.model.factors.shape == (240, 16)
    by_user, _, popular, _ = one.report.qualities
    assert by_user.hit_rate > 1.2 * popular.hit_rate


@pytest.mark.skipif(importlib.util.find_spec("implicit") is not None, reason="the train extra is installed")
def test_als_without_its_package_names_the_cure() -> None:
    with pytest.raises(PrepareError, match="ALS needs the Python package") as raised:
        train(tastes(), TrainOptions(model="als"), report=lambda _: None)
    assert "headrace[train]" in raised.value.cure
