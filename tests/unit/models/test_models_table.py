"""Tabular folders: real scikit-learn pipelines exported by skl2onnx, on the real engine, beside scikit-learn itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import answer, load, refused, tensor, write_folder

from headrace_server.config import InputLimits
from headrace_server.errors import Reason
from headrace_server.models.inputs import FeaturesInput, TextInput
from headrace_server.models.model import Model, PrepareOptions, Task

pytest.importorskip("skl2onnx", reason="the demo extra is not installed")

from skl2onnx import convert_sklearn, to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.svm import LinearSVC

PLANS = ["basic", "plus", "premium"]


def rows(count: int = 60) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(3)
    plans = np.array(PLANS, dtype=object)[np.arange(count) % 3]
    return np.column_stack([plans, rng.normal(size=count).astype(object), rng.integers(0, 9, count).astype(object)])


def mixed_pipeline() -> Any:
    transformer = ColumnTransformer(
        [("words", OneHotEncoder(handle_unknown="ignore"), [0]), ("numbers", SimpleImputer(strategy="median"), [1, 2])],
        sparse_threshold=0.0,
    )
    table = rows()
    answers = np.where(table[:, 1].astype(float) + (table[:, 0] == "plus") > 0.3, "leaves", "stays")
    return make_pipeline(transformer, LogisticRegression()).fit(table, answers)


def mixed_model(folder: Path, *, zipmap: bool, **files: object) -> tuple[Model, Any]:
    pipeline = mixed_pipeline()
    inputs = [
        ("plan", StringTensorType([None, 1])),
        ("load", FloatTensorType([None, 1])),
        ("visits", FloatTensorType([None, 1])),
    ]
    graph = convert_sklearn(pipeline, initial_types=inputs, options={id(pipeline): {"zipmap": zipmap}}, target_opset=17)
    return load(write_folder(folder, model__onnx=graph, **files)), pipeline


@pytest.mark.parametrize("zipmap", [True, False])
def test_string_and_float_columns_answer_as_scikit_learn_does(tmp_path: Path, zipmap: bool) -> None:
    model, pipeline = mixed_model(tmp_path, zipmap=zipmap)
    assert model.tasks == {Task.CLASSIFY, Task.INFER}
    assert model.labels == ("leaves", "stays")
    assert model.input_kinds == {"features", "tensors"}
    assert [(column.name, column.type) for column in model.features] == [
        ("plan", "string"),
        ("load", "float"),
        ("visits", "float"),
    ]
    table = rows(7)
    inputs = [FeaturesInput({"plan": plan, "load": load, "visits": visits}) for plan, load, visits in table.tolist()]
    np.testing.assert_allclose(answer(model, Task.CLASSIFY, inputs)["scores"], pipeline.predict_proba(table), atol=1e-5)


def test_imputed_columns_may_be_missing_and_others_may_not(tmp_path: Path) -> None:
    model, pipeline = mixed_model(tmp_path, zipmap=False)
    assert [column.required for column in model.features] == [True, False, False]
    missing = answer(model, Task.CLASSIFY, [FeaturesInput({"plan": "plus", "load": None})])["scores"]
    expected = pipeline.predict_proba(np.array([["plus", np.nan, np.nan]], dtype=object))
    np.testing.assert_allclose(missing, expected, atol=1e-5)
    with refused(Reason.INVALID_INPUT, 'inputs[0].features.values["plan"]', "missing", "required"):
        model.pipelines[Task.CLASSIFY].prepare([FeaturesInput({"load": 1.0})], PrepareOptions())


def test_a_category_that_was_never_seen_is_no_error(tmp_path: Path) -> None:
    model, _ = mixed_model(tmp_path, zipmap=False)
    assert answer(model, Task.CLASSIFY, [FeaturesInput({"plan": "gold", "load": 1})])["scores"].shape == (1, 2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"plan": "plus", "lode": 1.0}, ('features.values["lode"]', "nearest is 'load'")),
        ({"plan": 3}, ('features.values["plan"]', "3", "a text is expected")),
        ({"plan": "plus", "load": "1.0"}, ('features.values["load"]', "'1.0'", "a number is expected")),
        ({"plan": "plus", "load": True}, ('features.values["load"]', "True")),
        ({"plan": "plus", "load": float("nan")}, ('features.values["load"]', "nan", "finite")),
        ({"plan": "plus", "load": float("inf")}, ('features.values["load"]', "inf", "finite")),
        ({"plan": "plus", "load": 1e300}, ('features.values["load"]', "1e+300", "from")),
        ({"plan": "plus", "load": 10**400}, ('features.values["load"]',)),
        ({"plan": "\ud800"}, ('features.values["plan"]', "surrogate")),
        ({"plan": "x" * 101}, ('features.values["plan"]', "101 bytes, limit 100")),
        ({str(at): 1.0 for at in range(11)}, ("inputs[0].features", "11 columns, limit 10")),
    ],
)
def test_a_wrong_value_is_named_with_its_column(tmp_path: Path, values: dict[str, Any], words: tuple[str, ...]) -> None:
    pipeline, _ = mixed_model(tmp_path, zipmap=False)
    model = load(pipeline.folder, limits=InputLimits(max_text_bytes=100, max_features=10))
    with refused(Reason.INVALID_INPUT, *words):
        model.pipelines[Task.CLASSIFY].prepare([FeaturesInput(values)], PrepareOptions())


def matrix_graph(**options: Any) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(5)
    table = rng.normal(size=(60, 4)).astype(np.float32)
    classifier = Pipeline([("scale", StandardScaler()), ("forest", RandomForestClassifier(5, random_state=0))])
    classifier.fit(table, np.arange(60) % 3)
    return (
        to_onnx(classifier, table[:1], options={id(classifier): {"zipmap": False, **options}}, target_opset=17),
        classifier,
        table,
    )


@pytest.mark.parametrize("zipmap", [True, False])
def test_one_matrix_input_is_read_by_column_and_integer_classes_become_names(tmp_path: Path, zipmap: bool) -> None:
    graph, classifier, table = matrix_graph(zipmap=zipmap)
    model = load(write_folder(tmp_path, model__onnx=graph))
    assert model.labels == ("0", "1", "2")
    assert all(column.required for column in model.features)  # nothing in the graph fills what is missing
    inputs = [FeaturesInput({f"f{at}": float(value) for at, value in enumerate(row)}) for row in table[:9]]
    np.testing.assert_allclose(
        answer(model, Task.CLASSIFY, inputs)["scores"], classifier.predict_proba(table[:9]), atol=1e-5
    )


def test_columns_are_named_by_the_graphs_metadata_or_the_manifest(tmp_path: Path) -> None:
    graph, _, _ = matrix_graph()
    graph.metadata_props.add(key="feature_names", value='["a", "b", "c", "d"]')
    assert [column.name for column in load(write_folder(tmp_path / "a", model__onnx=graph)).features] == [
        "a",
        "b",
        "c",
        "d",
    ]
    manifest = """
    labels = ["x", "y", "z"]
    [features]
    age = { type = "int" }
    size = { default = 2.5 }
    old = { type = "bool" }
    last = {}
    """
    model = load(write_folder(tmp_path / "b", model__onnx=graph, headrace__toml=manifest))
    assert model.labels == ("x", "y", "z")
    prepare = model.pipelines[Task.CLASSIFY].prepare
    (row,) = prepare([FeaturesInput({"age": 3.0, "old": True, "last": 7})], PrepareOptions())
    assert row.arrays["X"].tolist() == [3, 2.5, 1, 7]
    with refused(Reason.INVALID_INPUT, 'features.values["age"]', "3.5", "whole number"):
        prepare([FeaturesInput({"age": 3.5, "old": True, "last": 7})], PrepareOptions())


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ("[features.a]", ("1 columns for input X, which has 4",)),
        ("[features.a]\ninput = 'Y'", ("features.a.input", "'Y'", "'X'")),
        ("[features.a]\ntype = 'string'\n[features.b]\n[features.c]\n[features.d]", ("features.a.type", "float32")),
        (
            "[features.a]\ndefault = 'x'\n[features.b]\n[features.c]\n[features.d]",
            ("features.a.default", "'x'", "float"),
        ),
    ],
)
def test_columns_that_do_not_fit_the_graph_are_refused(tmp_path: Path, manifest: str, words: tuple[str, ...]) -> None:
    graph, _, _ = matrix_graph()
    with refused(Reason.MODEL_INVALID, *words):
        load(write_folder(tmp_path, model__onnx=graph, headrace__toml=manifest))


def test_a_single_text_column_reads_texts_too(tmp_path: Path) -> None:
    texts = np.array(["good film", "very good", "bad film", "very bad"], dtype=object)
    pipeline = make_pipeline(CountVectorizer(), LogisticRegression())
    pipeline.fit(texts, [1, 1, 0, 0])
    graph = convert_sklearn(
        pipeline,
        initial_types=[("text", StringTensorType([None, 1]))],
        options={id(pipeline): {"zipmap": False}},
        target_opset=17,
    )
    for node in graph.graph.node:
        if node.op_type == "StringNormalizer":  # its default locale is en_US, which not every machine has
            node.attribute.append(helper.make_attribute("locale", "C"))
    model = load(write_folder(tmp_path, model__onnx=graph, headrace__toml="labels = ['bad', 'good']"))
    assert model.input_kinds == {"features", "text", "tensors"}
    scores = answer(model, Task.CLASSIFY, [TextInput("good film"), FeaturesInput({"text": "bad film"})])["scores"]
    np.testing.assert_allclose(scores, pipeline.predict_proba(["good film", "bad film"]), atol=1e-4)


def typed_classifier() -> onnx.ModelProto:
    """A classifier over three columns of three types, as skl2onnx would end it."""
    columns = [
        tensor("count", TensorProto.INT64, "b", 1),
        tensor("flag", TensorProto.BOOL, "b", 1),
        tensor("share", TensorProto.DOUBLE, "b", 1),
    ]
    nodes = [helper.make_node("Cast", [item.name], [f"{item.name}_f"], to=TensorProto.FLOAT) for item in columns]
    nodes += [
        helper.make_node("Concat", ["count_f", "flag_f", "share_f"], ["x"], axis=1),
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "probabilities"],
            domain="ai.onnx.ml",
            classlabels_strings=["no", "yes"],
            coefficients=[-1.0, -1.0, -1.0, 1.0, 1.0, 1.0],
            intercepts=[0.0, 0.0],
            multi_class=0,
            post_transform="SOFTMAX",
        ),
    ]
    outputs = [tensor("label", TensorProto.STRING, "b"), tensor("probabilities", TensorProto.FLOAT, "b", 2)]
    graph = helper.make_graph(nodes, "g", columns, outputs)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def test_whole_numbers_truth_values_and_doubles_keep_their_type(tmp_path: Path) -> None:
    model = load(write_folder(tmp_path, model__onnx=typed_classifier()))
    assert [column.type for column in model.features] == ["int", "bool", "float"]
    prepare = model.pipelines[Task.CLASSIFY].prepare
    (row,) = prepare([FeaturesInput({"count": 4, "flag": True, "share": 1e300})], PrepareOptions())
    types = {name: array.dtype.name for name, array in row.arrays.items()}
    assert types == {"count": "int64", "flag": "bool", "share": "float64"}
    scores = answer(model, Task.CLASSIFY, [FeaturesInput({"count": 4, "flag": True, "share": 0.25})])["scores"]
    np.testing.assert_allclose(scores[0, 1], 1 / (1 + np.exp(-10.5)), rtol=1e-5)
    for value in (2**63, -(2**63) - 1, 1e30):
        with refused(Reason.INVALID_INPUT, 'features.values["count"]', "from"):
            prepare([FeaturesInput({"count": value, "flag": True, "share": 0.5})], PrepareOptions())
    with refused(Reason.INVALID_INPUT, 'features.values["flag"]', "1, true or false"):
        prepare([FeaturesInput({"count": 4, "flag": 1, "share": 0.5})], PrepareOptions())


def test_decision_scores_are_given_as_they_are(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    classifier = LinearSVC().fit(table, np.arange(60) % 3)
    model = load(write_folder(tmp_path, model__onnx=to_onnx(classifier, table[:1], target_opset=17)))
    inputs = [FeaturesInput({"f0": float(a), "f1": float(b)}) for a, b in table[:4]]
    np.testing.assert_allclose(
        answer(model, Task.CLASSIFY, inputs)["scores"], classifier.decision_function(table[:4]), atol=1e-4
    )


def test_a_regressor_takes_tensors_only_and_says_so(tmp_path: Path) -> None:
    table = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    graph = to_onnx(LinearRegression().fit(table, table.sum(axis=1)), table[:1], target_opset=17)
    model = load(write_folder(tmp_path, model__onnx=graph))
    assert model.tasks == {Task.INFER}
    assert any("tensors only" in note for note in model.notes)
