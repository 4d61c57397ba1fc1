"""A predictor of user behaviour: will a subscriber leave next month? Trained on a SYNTHETIC, generated table.

No real subscriber stands behind a row: the table is drawn from the rule below, with a fixed seed. It shows how a
scikit-learn pipeline with text and number columns is exported and served, not how people behave.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.card import Measure, ModelCard
from headrace_server.prepare.recipe import OpenPackage, Recipe

__all__ = ["NUMBERS", "RECIPES", "WORDS", "SyntheticTable", "build", "synthetic_subscribers", "train"]

Array = npt.NDArray[Any]

WORDS: Mapping[str, tuple[str, ...]] = {
    "plan": ("basic", "standard", "premium"),
    "payment": ("card", "invoice", "wallet"),
    "country": ("AT", "BR", "DE", "FR", "IN", "JP", "KE", "US"),
}
NUMBERS = (
    "tenure_months",
    "visits_last_30_days",
    "days_since_last_visit",
    "minutes_per_visit",
    "tickets_last_90_days",
    "discount_percent",
)
_NUM_ROWS = 12_000
_SEED = 20_021


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticTable:
    """Generated subscribers: columns by name, `leaves` bool[n], and the probability each was drawn with."""

    columns: Mapping[str, Array]
    leaves: Array
    probability: Array

    def part(self, rows: slice) -> SyntheticTable:
        """Some of the rows."""
        columns = {name: column[rows] for name, column in self.columns.items()}
        return SyntheticTable(columns=columns, leaves=self.leaves[rows], probability=self.probability[rows])

    def thirds(self) -> tuple[SyntheticTable, SyntheticTable]:
        """Two thirds to train on, and the held-out third."""
        cut = len(self.leaves) * 2 // 3
        return self.part(slice(cut)), self.part(slice(cut, None))


def synthetic_subscribers(num_rows: int = _NUM_ROWS, seed: int = _SEED) -> SyntheticTable:
    """Subscribers drawn from a made-up rule; the same for the same seed."""
    rng = np.random.default_rng(seed)
    words = {name: rng.choice(np.array(choices, object), num_rows) for name, choices in WORDS.items()}
    tenure = rng.gamma(1.6, 14.0, num_rows).clip(0, 120).round()
    visits = rng.poisson(rng.gamma(2.0, 5.0, num_rows)).clip(0, 90)
    since = np.minimum(rng.exponential(30.0 / (1 + visits)), 90).round()
    minutes = rng.gamma(3.0, 5.0, num_rows).clip(0.5, 120).round(1)
    tickets = rng.poisson(0.6, num_rows).clip(0, 12)
    discount = rng.choice([0, 0, 0, 10, 20, 30], num_rows)
    logit = (
        -0.9
        - 1.3 * np.log1p(visits)
        + 0.09 * since
        + 1.6 * np.exp(-tenure / 6.0)
        + 0.75 * tickets
        - 0.03 * minutes
        + np.where((discount == 0) & (words["plan"] == "premium"), 0.9, -0.02 * discount)
        + np.select([words["plan"] == "basic", words["plan"] == "premium"], [0.7, -0.4], 0.0)
        + np.where(words["payment"] == "invoice", 0.8, 0.0)
        + 1.6
    )
    probability = 1 / (1 + np.exp(-logit))
    numbers = dict(zip(NUMBERS, (tenure, visits, since, minutes, tickets, discount), strict=True))
    columns = {**words, **{name: column.astype(np.float32) for name, column in numbers.items()}}
    return SyntheticTable(columns=columns, leaves=rng.random(num_rows) < probability, probability=probability)


def train(table: SyntheticTable) -> Any:
    """A fitted scikit-learn pipeline: words one-hot, numbers with the median for a missing one, then boosted trees."""
    from sklearn.compose import ColumnTransformer
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder

    columns = list(table.columns)
    transformer = ColumnTransformer(
        [
            ("words", OneHotEncoder(handle_unknown="ignore"), [columns.index(name) for name in WORDS]),
            ("numbers", SimpleImputer(strategy="median"), [columns.index(name) for name in NUMBERS]),
        ],
        sparse_threshold=0.0,
    )
    classifier = GradientBoostingClassifier(n_estimators=120, learning_rate=0.1, max_depth=3, random_state=_SEED)
    pipeline = Pipeline([("columns", transformer), ("classifier", classifier)])
    return pipeline.fit(_frame(table), np.where(table.leaves, "leaves", "stays"))


def build(folder: Path, open_package: OpenPackage) -> None:
    """Write the version: the pipeline as one bare .onnx file, which is read without a manifest."""
    import sklearn
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType

    table, held_out = synthetic_subscribers().thirds()
    pipeline = train(table)
    inputs = [(name, StringTensorType([None, 1])) for name in WORDS]
    inputs += [(name, FloatTensorType([None, 1])) for name in NUMBERS]
    model: Any = convert_sklearn(
        pipeline,
        name="synthetic-churn",
        initial_types=inputs,
        options={id(pipeline): {"zipmap": False}},
        target_opset={"": 17, "ai.onnx.ml": 3},
        doc_string="SYNTHETIC: will a made-up subscriber leave next month? Trained on generated rows, not on people.",
    )
    # The exporter writes the opsets in the order of a set: sorted, the same training gives the same file.
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    (folder / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))
    _card(pipeline, held_out, sklearn.__version__).write(folder)


def _frame(table: SyntheticTable) -> Array:
    """object[n, columns], as ColumnTransformer reads mixed columns."""
    return np.column_stack([column.astype(object) for column in table.columns.values()])


def _card(pipeline: Any, held_out: SyntheticTable, version: str) -> ModelCard:
    from sklearn.metrics import accuracy_score, roc_auc_score

    leaving = pipeline.predict_proba(_frame(held_out))[:, 0]  # classes stand in alphabetical order: leaves, stays
    accuracy = accuracy_score(held_out.leaves, leaving > 0.5)
    majority = max(held_out.leaves.mean(), 1 - held_out.leaves.mean())
    on = f"{len(held_out.leaves):,} held-out synthetic rows"
    return ModelCard(
        title="synthetic-churn: will a (synthetic) subscriber leave next month?",
        summary="A predictor of user behaviour from three text and six number columns, answering `leaves` or `stays`. "
        "**The data is synthetic**: generated by a rule, with no real person behind any row.",
        other_sources=(
            f"the generator `headrace_server.prepare.churn.synthetic_subscribers` ({_NUM_ROWS:,} rows, seed {_SEED})",
            f"scikit-learn {version} (BSD-3-Clause) trained the pipeline, skl2onnx (Apache-2.0) exported it",
        ),
        licence="Apache-2.0, as the project: generator, data and model are its own.",
        made=(
            "One-hot words, median-imputed numbers and 120 boosted trees were fitted to two thirds of the rows.",
            "The pipeline was exported as one ONNX graph without ZipMap, each column an input of shape [n, 1].",
        ),
        measures=(
            Measure("ROC-AUC", on, f"{roc_auc_score(held_out.leaves, leaving):.3f}"),
            Measure("ROC-AUC of the rule that drew the rows (the best possible)", on,
                    f"{roc_auc_score(held_out.leaves, held_out.probability):.3f}"),
            Measure("accuracy", on, f"{accuracy:.3f} (answering the more frequent class: {majority:.3f})"),
        ),
        measured_by="the build itself; `pytest tests/integration -k synthetic_churn` measures the exported graph again",
        limits=(
            "It predicts what the generator does: it says nothing about real subscribers, and decides nothing.",
            "A word that was not in the table counts as none of the known ones; a number may be missing (NaN).",
        ),
    )  # fmt: skip


RECIPES = (
    Recipe(
        model="synthetic-churn",
        version="1",
        packages=(),
        modules=tuple(f"headrace_server.prepare.{name}" for name in ("churn", "card")),
        build=build,
    ),
)
