"""EASE, a linear model in closed form, as vectors that a catalog of inner products serves exactly.

With X the users' weights of items, P = (XᵀX + λI)⁻¹ and d its diagonal, EASE scores item j for a history x as
Σᵢ xᵢ Bᵢⱼ, where Bᵢⱼ = −Pᵢⱼ / dⱼ. B is not symmetric, and inner products of one vector an item are. But
Sᵢⱼ = −Pᵢⱼ / (dᵢ dⱼ) is symmetric and Bᵢⱼ = dᵢ Sᵢⱼ: a history whose events weigh xᵢ dᵢ is scored by EASE itself.

That leaves the diagonal, which no recommendation reads, for a history's own items are left out of it. So it is free:
N = D^-½ P D^-½ has ones on its diagonal and largest eigenvalue ν, and cI − N with c > ν is positive definite. The rows
of its Cholesky factor, divided by √dᵢ, are vectors whose inner products are Sᵢⱼ for i ≠ j. Nothing is approximated;
there are as many dimensions as items. With fewer asked for, the eigenvectors of N's smallest eigenvalues stand in, over
a diagonal at the mean of the others'.

source  Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", 2019 (the model; the vectors are ours)
"""

from __future__ import annotations

import numpy as np

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.recommend_interactions import Array, Interactions
from headrace_server.prepare.recommend_model import ItemModel

__all__ = ["MAX_EASE_ITEMS", "co_occurrence", "ease_weights", "fit_ease"]

MAX_EASE_ITEMS = 5000  # a matrix of items × items in f64 is 200 MB, and several are held
_USERS_AT_ONCE = 1024
_MAX_POWER_STEPS = 200


def fit_ease(table: Interactions, *, regularization: float, dimension: int = 0) -> ItemModel:
    """EASE fitted to the table.

    regularization  λ, above 0: larger trusts rare pairs less
    dimension       0: one an item, exact; fewer: the nearest of that rank
    raises          PrepareError for more than MAX_EASE_ITEMS items
    """
    num_items = len(table.items)
    if num_items > MAX_EASE_ITEMS:
        raise PrepareError(
            f"{num_items} items: EASE inverts a matrix of items × items, at most {MAX_EASE_ITEMS}",
            cure="give --model als, or raise --min-item-users",
        )
    inverse = _inverse(co_occurrence(table), regularization)
    diagonal = np.diag(inverse).copy()
    normal = inverse / np.sqrt(np.outer(diagonal, diagonal))
    exact = dimension in (0, num_items) or dimension > num_items
    rows = _exact_rows(normal) if exact else _nearest_rows(normal, dimension)
    middle = diagonal.mean()
    return ItemModel(
        name="ease",
        vectors=(rows / np.sqrt(diagonal / middle)[:, np.newaxis]).astype(np.float32),
        history_weights=(diagonal / middle).astype(np.float32),
        factors=None,
        settings={"regularization": regularization, "exact": exact},
    )


def co_occurrence(table: Interactions) -> Array:
    """f64[items, items]: XᵀX."""
    total = np.zeros((len(table.items), len(table.items)))
    for first in range(0, len(table.users), _USERS_AT_ONCE):
        rows = table.dense(np.arange(first, min(first + _USERS_AT_ONCE, len(table.users))))
        total += rows.T @ rows
    return total


def ease_weights(together: Array, regularization: float) -> Array:
    """f64[items, items]: EASE's own B, with zeros on its diagonal, of what `co_occurrence` counted."""
    inverse = _inverse(together, regularization)
    weights: Array = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def _inverse(together: Array, regularization: float) -> Array:
    regular = together.copy()
    regular[np.diag_indices(len(regular))] += regularization
    inverse: Array = np.linalg.inv(regular)
    return (inverse + inverse.T) / 2


def _exact_rows(normal: Array) -> Array:
    """Rows whose inner products are −N off the diagonal."""
    shift = 1.01 * _largest_eigenvalue(normal)
    while True:
        try:
            return np.linalg.cholesky(shift * np.eye(len(normal)) - normal)
        except np.linalg.LinAlgError:  # the estimate was too low
            shift *= 1.1


def _largest_eigenvalue(matrix: Array) -> float:
    """An estimate from below, by power iteration."""
    vector = np.ones(len(matrix)) + np.arange(len(matrix)) / len(matrix)
    found = 0.0
    for _ in range(_MAX_POWER_STEPS):
        vector = matrix @ (vector / np.linalg.norm(vector))
        before, found = found, float(np.linalg.norm(vector))
        if found - before < 1e-3 * found:
            break
    return found


def _nearest_rows(normal: Array, dimension: int) -> Array:
    values, vectors = np.linalg.eigh(normal)  # smallest first
    middle = values[dimension:].mean()
    return np.asarray(vectors[:, :dimension] * np.sqrt(np.maximum(middle - values[:dimension], 0)))
