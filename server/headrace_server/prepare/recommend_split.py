"""Leave one out: of each user one interaction is kept from training, to see whether it is found."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.recommend_interactions import Array, Interactions

__all__ = ["HeldOut", "leave_one_out"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """A table without one pair of some users, and those pairs.

    train  what may be trained on: the same users and items, numbered as before
    user   i64[n], one each, in order; item i64[n]: what was kept back
    """

    train: Interactions
    user: Array
    item: Array


def leave_one_out(table: Interactions, *, seed: int, max_users: int = 0) -> HeldOut:
    """Keeps back each user's latest pair, or a random one where the table has no times.

    Users with a single pair keep it: without a history nothing can be asked for them.

    max_users  so many users at most, chosen at random; 0: all
    raises     PrepareError where no user has two
    """
    rng = np.random.default_rng(seed)
    count = np.diff(table.starts)
    users = np.flatnonzero(count >= 2)
    if not len(users):
        raise PrepareError(
            "no user has two items: what goes with what cannot be learnt, nor tested",
            cure="give users with their whole histories",
        )
    if max_users and len(users) > max_users:
        users = np.sort(rng.choice(users, max_users, replace=False))
    if table.time is None:
        places = table.starts[users] + rng.integers(count[users])
    else:
        spans = [table.span(int(user)) for user in users]
        places = np.array([span.start + int(np.argmax(table.time[span])) for span in spans])
    return HeldOut(train=table.without(places), user=users, item=table.item[places].astype(np.int64))
