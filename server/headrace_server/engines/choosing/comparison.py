"""How far two engines' answers to one batch are apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from headrace_server.engines.base import Array

__all__ = ["MAX_ERROR", "MIN_COSINE", "Agreement", "compare"]

MIN_COSINE = 0.9995
MAX_ERROR = 0.05


@dataclass(frozen=True, slots=True)
class Agreement:
    """min_cosine  of one row's answer with the other's, the smallest of all rows and outputs; 1 where both are zeros
    max_error   largest difference of a value, relative to the largest value of that output
    """

    min_cosine: float = 1.0
    max_error: float = 0.0

    @property
    def holds(self) -> bool:
        return self.min_cosine >= MIN_COSINE and self.max_error <= MAX_ERROR

    def with_(self, other: Agreement) -> Agreement:
        """The worse of both."""
        return Agreement(min(self.min_cosine, other.min_cosine), max(self.max_error, other.max_error))


def compare(found: Mapping[str, Array], expected: Mapping[str, Array]) -> Agreement:
    """Of outputs by name, axis 0 being rows. Values that are no numbers agree only where they are the same."""
    worst = Agreement()
    for name, reference in expected.items():
        values = found.get(name)
        if values is None or values.shape != reference.shape:
            return Agreement(0.0, float("inf"))
        worst = worst.with_(_of_output(values, reference))
    return worst


def _of_output(found: Array, expected: Array) -> Agreement:
    if not expected.size:
        return Agreement()
    if expected.dtype.kind not in "f":
        same = bool(np.array_equal(found, expected))
        return Agreement() if same else Agreement(0.0, float("inf"))
    rows = len(expected) if expected.ndim else 1
    a, b = (array.astype(np.float64).reshape(rows, -1) for array in (found, expected))
    if not np.array_equal(np.isfinite(a), np.isfinite(b)):
        return Agreement(0.0, float("inf"))
    a, b = (np.where(np.isfinite(array), array, 0.0) for array in (a, b))
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = np.where(lengths > 0, (a * b).sum(axis=1) / np.where(lengths > 0, lengths, 1), np.all(a == b, axis=1))
    largest = float(np.abs(b).max())
    error = float(np.abs(a - b).max())
    return Agreement(float(cosines.min()), error / largest if largest else (0.0 if error == 0 else float("inf")))
