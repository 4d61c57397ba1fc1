"""The demo's tabular model, exported from scikit-learn, is as good as its card says."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from headrace_server.models.inputs import FeaturesInput
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, PrepareOptions, Task
from headrace_server.prepare.card import CARD_NAME
from headrace_server.prepare.churn import SyntheticTable, synthetic_subscribers


@pytest.fixture(scope="module")
def model(demo_models: Path) -> Model:
    return load_model(demo_models / "synthetic-churn" / "1", name="synthetic-churn", version="1")


def _leaving(model: Model, table: SyntheticTable) -> np.ndarray:
    """The probability of leaving, each row asked by column name."""
    pipeline = model.pipelines[Task.CLASSIFY]
    columns = {name: column.tolist() for name, column in table.columns.items()}
    inputs = [
        FeaturesInput({name: column[row] for name, column in columns.items()}) for row in range(len(table.leaves))
    ]
    feeds = pipeline.collate(pipeline.prepare(inputs, PrepareOptions()))
    session = onnxruntime.InferenceSession(model.graph, providers=["CPUExecutionProvider"])
    names = list(pipeline.graph_outputs)
    scores = pipeline.reduce(dict(zip(names, session.run(names, feeds), strict=True)), feeds)["scores"]
    probability: np.ndarray = scores[:, model.labels.index("leaves")]
    return probability


def test_synthetic_churn_is_as_good_as_its_card_says(model: Model, demo_models: Path) -> None:
    from sklearn.metrics import roc_auc_score

    _, held_out = synthetic_subscribers().thirds()
    leaving = _leaving(model, held_out)
    card = (demo_models / "synthetic-churn" / "1" / CARD_NAME).read_text(encoding="utf-8")
    said = {name: float(value) for name, value in re.findall(r"^\| (ROC-AUC|accuracy) \|[^|]*\| ([\d.]+)", card, re.M)}
    assert roc_auc_score(held_out.leaves, leaving) == pytest.approx(said["ROC-AUC"], abs=0.001)
    assert ((leaving > 0.5) == held_out.leaves).mean() == pytest.approx(said["accuracy"], abs=0.001)
    assert said["ROC-AUC"] > 0.84
    assert said["accuracy"] > 0.79


def test_synthetic_churn_takes_a_word_it_never_saw(model: Model) -> None:
    table = synthetic_subscribers(8).part(slice(4))
    columns = {**table.columns, "country": np.array(["XX"] * 4, object)}
    strange = SyntheticTable(columns=columns, leaves=table.leaves, probability=table.probability)
    assert np.isfinite(_leaving(model, strange)).all()
