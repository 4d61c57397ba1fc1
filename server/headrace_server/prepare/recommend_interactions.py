"""Interactions: who did something with what, how often, and when: the table that a recommender is fitted to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.fault import PrepareError

__all__ = ["Array", "Interactions", "interactions_of"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """Pairs of user and item, each pair once, in order of user and then item.

    users, items  names, in the order in which they were first seen
    user, item    i32[n]: places in those
    weight        f32[n], above 0
    time          f64[n], any scale that grows; None where nothing says when
    """

    users: tuple[str, ...]
    items: tuple[str, ...]
    user: Array
    item: Array
    weight: Array
    time: Array | None

    def __len__(self) -> int:
        return len(self.user)

    @cached_property
    def starts(self) -> Array:
        """i64[users + 1]: where each user's pairs begin, and the end of the last."""
        return np.searchsorted(self.user, np.arange(len(self.users) + 1))

    def span(self, user: int) -> slice:
        """Where a user's pairs are."""
        return slice(int(self.starts[user]), int(self.starts[user + 1]))

    def popularity(self) -> Array:
        """i64[items]: by how many users each was taken."""
        return np.bincount(self.item, minlength=len(self.items))

    def without(self, places: Array) -> Interactions:
        """The same users and items, with these pairs left out."""
        kept = np.ones(len(self), bool)
        kept[places] = False
        return self._with(kept)

    def dense(self, users: Array) -> Array:
        """f64[n, items]: the weights of these users, 0 where there is none."""
        rows = np.zeros((len(users), len(self.items)))
        for row, user in zip(rows, users, strict=True):
            span = self.span(int(user))
            row[self.item[span]] = self.weight[span]
        return rows

    def of_at_least(self, *, user_items: int, item_users: int) -> Interactions:
        """Users with at least so many items, and items with at least so many users, until both hold.

        raises  PrepareError where fewer than two users or two items are left
        """
        user, item, kept = self.user, self.item, np.ones(len(self), bool)
        while True:
            num_items = np.bincount(user[kept], minlength=len(self.users))
            num_users = np.bincount(item[kept], minlength=len(self.items))
            now = kept & (num_items[user] >= user_items) & (num_users[item] >= item_users)
            if now.sum() == kept.sum():
                break
            kept = now
        left = self._with(kept)._renumbered()
        if len(left.users) < 2 or len(left.items) < 2:
            raise PrepareError(
                f"too few interactions: {len(self.users)} users, {len(self.items)} items and {len(self)} pairs; with "
                f"at least {user_items} items a user and {item_users} users an item {len(left.users)} users and "
                f"{len(left.items)} items are left, 2 of each are needed",
                cure="give more interactions, or lower --min-user-items and --min-item-users",
            )
        return left

    def _with(self, kept: Array) -> Interactions:
        return Interactions(
            users=self.users,
            items=self.items,
            user=self.user[kept],
            item=self.item[kept],
            weight=self.weight[kept],
            time=None if self.time is None else self.time[kept],
        )

    def _renumbered(self) -> Interactions:
        users, user = np.unique(self.user, return_inverse=True)
        items, item = np.unique(self.item, return_inverse=True)
        return Interactions(
            users=tuple(self.users[index] for index in users),
            items=tuple(self.items[index] for index in items),
            user=user.astype(np.int32),
            item=item.astype(np.int32),
            weight=self.weight,
            time=self.time,
        )


def interactions_of(
    users: Sequence[str],
    items: Sequence[str],
    weights: Sequence[float] | None = None,
    times: Sequence[float] | None = None,
) -> tuple[Interactions, int]:
    """The table of events given column by column, and how many events repeated a pair.

    A pair that is there again adds its weight, and its latest time counts.
    """
    user_places = {name: place for place, name in enumerate(dict.fromkeys(users))}
    item_places = {name: place for place, name in enumerate(dict.fromkeys(items))}
    key = np.fromiter((user_places[name] for name in users), np.int64, len(users)) * max(1, len(item_places))
    key += np.fromiter((item_places[name] for name in items), np.int64, len(items))
    pairs, place = np.unique(key, return_inverse=True)
    added = np.ones(len(key)) if weights is None else np.asarray(weights, np.float64)
    time = None
    if times is not None:
        time = np.full(len(pairs), -np.inf)
        np.maximum.at(time, place, np.asarray(times, np.float64))
    table = Interactions(
        users=tuple(user_places),
        items=tuple(item_places),
        user=(pairs // max(1, len(item_places))).astype(np.int32),
        item=(pairs % max(1, len(item_places))).astype(np.int32),
        weight=np.bincount(place, weights=added, minlength=len(pairs)).astype(np.float32),
        time=time,
    )
    return table, len(key) - len(pairs)
