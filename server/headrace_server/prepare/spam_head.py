"""SpamHead: the trained part of the text classifier, a few thousand bytes, kept in the project with its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["HEAD_PATH", "LABELS", "SpamHead", "SpamMeasures"]

HEAD_PATH = Path(__file__).parent / "data" / "spam_head.json"
LABELS = ("ham", "spam")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpamMeasures:
    """How the head did on held-out mails. `confusion` counts [[ham as ham, as spam], [spam as ham, as spam]]."""

    num_mails: int
    accuracy: float
    f1: float
    majority: float
    confusion: tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpamHead:
    """A logistic regression over the encoder's token vectors.

    features  what it reads: "mean" (over the tokens) or "mean+cls" (that, and the first token's vector after it)
    weights   f64[d] and `bias`: their sum of products is the log-odds of spam
    measures  by what was read of a mail: "whole" (256 tokens) or "short" (its first characters)
    training  what it was trained on and how, for the card
    """

    features: str
    weights: npt.NDArray[np.float64]
    bias: float
    measures: Mapping[str, SpamMeasures]
    training: Mapping[str, Any]

    def write(self, path: Path) -> None:
        """Write the head as JSON, six significant digits a weight."""
        content = {
            "labels": LABELS,
            "features": self.features,
            "training": dict(self.training),
            "measures": {name: asdict(measures) for name, measures in self.measures.items()},
            "bias": float(f"{self.bias:.6g}"),
            "weights": [float(f"{weight:.6g}") for weight in self.weights],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        # One key a line, and one line of weights: a new training is a small difference to look at.
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path = HEAD_PATH) -> SpamHead:
        """The head in `path`."""
        content = json.loads(path.read_text(encoding="utf-8"))
        measures = {
            name: SpamMeasures(**{**said, "confusion": tuple(tuple(row) for row in said["confusion"])})
            for name, said in content["measures"].items()
        }
        return cls(
            features=content["features"],
            weights=np.array(content["weights"], np.float64),
            bias=content["bias"],
            measures=measures,
            training=content["training"],
        )
