"""Alternating least squares on implicit feedback, by the `implicit` package: factors of users and of items."""

from __future__ import annotations

import numpy as np

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.recommend_interactions import Interactions
from headrace_server.prepare.recommend_model import ItemModel

__all__ = ["fit_als"]


def fit_als(
    table: Interactions, *, factors: int, regularization: float, alpha: float, iterations: int, seed: int
) -> ItemModel:
    """ALS fitted to the table; the same table, settings and seed give the same factors on one machine.

    factors  dimensions      alpha  how much surer a weight of 1 makes of a pair that is there, beside one that is not
    raises   PrepareError where `implicit` is not installed
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
        from scipy.sparse import csr_matrix
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise PrepareError(
            f"ALS needs the Python package {error.name}, which is not installed", cure="pip install 'headrace[train]'"
        ) from None
    weights = csr_matrix((table.weight, (table.user, table.item)), shape=(len(table.users), len(table.items)))
    with threadpool_limits(1, "blas"):  # it runs threads of its own, a user each
        model = AlternatingLeastSquares(
            factors=factors, regularization=regularization, alpha=alpha, iterations=iterations, random_state=seed
        )
        model.fit(weights, show_progress=False)
    return ItemModel(
        name="als",
        vectors=np.ascontiguousarray(model.item_factors, np.float32),
        history_weights=np.ones(len(table.items), np.float32),
        factors=np.ascontiguousarray(model.user_factors, np.float32),
        settings={"factors": factors, "regularization": regularization, "alpha": alpha, "iterations": iterations},
    )
