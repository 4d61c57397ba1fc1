"""ItemModel: a fitted recommender as a catalog serves it: a vector an item, and an inner product that is the score."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from headrace_server.prepare.recommend_interactions import Array, Interactions

__all__ = ["ItemModel", "ModelName", "history_vector"]

ModelName = Literal["ease", "als"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ItemModel:
    """Vectors of items, to be compared with those of users by inner product.

    vectors          f32[items, d]
    history_weights  f32[items]: how much an item counts in a history, so that the history's score is the model's own
    factors          f32[users, d]: the users' own vectors; None where a user is the weighted sum of his items
    settings         how it was fitted, for the report
    """

    name: ModelName
    vectors: Array
    history_weights: Array
    factors: Array | None
    settings: Mapping[str, Any]

    @property
    def dimension(self) -> int:
        return int(self.vectors.shape[1])

    def user_vectors(self, table: Interactions, users: Array) -> Array:
        """f32[n, d]: vectors of these users of the table that it was fitted to."""
        if self.factors is not None:
            return np.asarray(self.factors[users])
        histories = table.dense(users) * self.history_weights.astype(np.float64)
        return (histories @ self.vectors.astype(np.float64)).astype(np.float32)


def history_vector(vectors: Array, weights: Array) -> Array:
    """f32[d]: what a server makes of a history whose events have these vectors f32[h, d] and weights f32[h]: the mean
    by the weights' shares, summed in f64. Kept equal to it to the bit, so that reports say what is served."""
    shares = weights.astype(np.float64) / np.abs(weights.astype(np.float64)).max()
    mean: Array = (shares @ vectors.astype(np.float64)) / np.abs(shares).sum()
    return mean.astype(np.float32)
