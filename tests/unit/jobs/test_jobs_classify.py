from __future__ import annotations

import time

import numpy as np
import pytest
from contract.services_models import picture
from unit.jobs.asking import answer, refused

from headrace_server.config import InputLimits
from headrace_server.errors import Reason
from headrace_server.jobs.classify import Classify
from headrace_server.jobs.queries import Classification, ClassifyQuery, ModelRef
from headrace_server.models.inputs import BytesInput, FeaturesInput, ImageInput, TensorsInput, TextInput
from headrace_server.models.model import PrepareOptions
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository
from headrace_server.telemetry.serving_metrics import ServingMetrics

MOOD = ModelRef("mood")


@pytest.fixture
def classify(repository: Repository, limits: InputLimits) -> Classify:
    return Classify(repository, limits)


def test_labels_come_best_first_with_probabilities_that_add_up(classify: Classify) -> None:
    query = ClassifyQuery(model=MOOD, inputs=[TextInput("good film"), TextInput("bad")], top_k=0)
    result = answer(classify.submit(query, RequestContext()))
    assert len(result.results) == 2
    assert result.model == ModelRef("mood", "1")
    for each in result.results:
        scores = [label.score for label in each.labels]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-6)
        assert {label.label for label in each.labels} == {"good", "bad", "neutral"}
        assert [("good", "bad", "neutral")[label.index] for label in each.labels] == [
            label.label for label in each.labels
        ]
    assert result.results[0].usage.num_units == 4


def test_the_same_text_gets_the_same_answer_alone_and_among_others(classify: Classify) -> None:
    text = TextInput("the cat sat on the mat")
    others = [TextInput("good"), text, TextInput("a very good film on the river bank")]
    alone = answer(classify.submit(ClassifyQuery(model=MOOD, inputs=[text]), RequestContext())).results[0]
    among = answer(classify.submit(ClassifyQuery(model=MOOD, inputs=others), RequestContext())).results[1]
    assert [label.label for label in alone.labels] == [label.label for label in among.labels]
    np.testing.assert_allclose(_scores(alone), _scores(among), rtol=1e-5)


def _scores(each: Classification) -> list[float]:
    return [label.score for label in each.labels]


def test_top_k_and_threshold_leave_the_best(classify: Classify) -> None:
    def labels(**wishes: object) -> list[tuple[str, float]]:
        query = ClassifyQuery(model=MOOD, inputs=[TextInput("good film")], **wishes)  # type: ignore[arg-type]
        (result,) = answer(classify.submit(query, RequestContext())).results
        return [(label.label, label.score) for label in result.labels]

    every = labels(top_k=0)
    assert labels(top_k=1) == every[:1]
    assert labels(top_k=100) == every
    assert labels(threshold=every[1][1]) == every[:2]
    assert labels(threshold=1.0) == []


@pytest.mark.parametrize(
    ("model", "given"),
    [
        ("picture", ImageInput(picture())),
        ("bytes", BytesInput(b"\x00\x01 some bytes")),
        ("table", FeaturesInput({"age": 30, "colour": "red"})),
        ("table", TensorsInput({"age": np.float32([30]), "colour": np.array(["red"], object)})),
    ],
)
def test_every_kind_of_input_is_read(classify: Classify, model: str, given: object) -> None:
    query = ClassifyQuery(model=ModelRef(model), inputs=[given])  # type: ignore[list-item]
    (result,) = answer(classify.submit(query, RequestContext())).results
    assert result.labels


def test_a_model_without_label_names_answers_with_indices(classify: Classify) -> None:
    (result,) = answer(
        classify.submit(ClassifyQuery(model=ModelRef("picture"), inputs=[ImageInput(picture())]), RequestContext())
    ).results
    assert {label.label for label in result.labels} == {"0", "1", "2", "3"}


def test_times_and_version_are_told_in_the_context(classify: Classify, metrics: ServingMetrics) -> None:
    context = RequestContext()
    answer(classify.submit(ClassifyQuery(model=MOOD, inputs=[TextInput("good")] * 3), context))
    timings = context.timings
    assert (timings.model, timings.model_version) == ("mood", "1")
    assert timings.batch_size >= 1
    assert timings.preprocess_ns > 0
    assert timings.infer_ns > 0
    assert timings.postprocess_ns > 0
    counts, _ = metrics.stages.child("mood", "1", "preprocess").read()
    assert sum(counts) >= 1


@pytest.mark.parametrize(
    ("query", "field", "words"),
    [
        (ClassifyQuery(model=ModelRef(""), inputs=[TextInput("a")]), "model.name", ("required",)),
        (ClassifyQuery(model=MOOD, inputs=[]), "inputs", ("0 inputs", "8")),
        (ClassifyQuery(model=MOOD, inputs=[TextInput("a")] * 9), "inputs", ("9 inputs", "8")),
        (ClassifyQuery(model=MOOD, inputs=[TextInput("a")], top_k=-1), "top_k", ("-1",)),
        (ClassifyQuery(model=MOOD, inputs=[TextInput("a")], top_k=101), "top_k", ("101", "100")),
        (ClassifyQuery(model=MOOD, inputs=[TextInput("a")], threshold=1.5), "threshold", ("1.5",)),
        (ClassifyQuery(model=MOOD, inputs=[TextInput("a")], threshold=float("nan")), "threshold", ("nan",)),
        (ClassifyQuery(model=MOOD, inputs=[TextInput("a"), ImageInput(b"x")]), "inputs[1]", ("image", "text")),
        (ClassifyQuery(model=ModelRef("picture"), inputs=[ImageInput(b"no")]), "inputs[0].image", ()),
    ],
)
def test_a_wrong_field_is_named_with_value_and_limit(
    classify: Classify, query: ClassifyQuery, field: str, words: tuple[str, ...]
) -> None:
    with refused(Reason.INVALID_INPUT, field=field, words=words):
        answer(classify.submit(query, RequestContext()))


def test_a_text_over_the_limit_is_refused_when_it_must_not_be_cut(classify: Classify) -> None:
    query = ClassifyQuery(
        model=MOOD, inputs=[TextInput("a"), TextInput("cat " * 16)], prepare=PrepareOptions(truncate=False)
    )
    with refused(Reason.INVALID_INPUT, field="inputs[1].text", words=("18 tokens", "16")):
        answer(classify.submit(query, RequestContext()))


def test_a_model_that_does_not_classify_is_the_wrong_one_and_says_what_it_does(classify: Classify) -> None:
    with refused(Reason.WRONG_TASK, words=("cannot classify", "embed")):
        answer(classify.submit(ClassifyQuery(model=ModelRef("sentence"), inputs=[TextInput("a")]), RequestContext()))


def test_a_model_or_version_that_is_not_there_is_named(classify: Classify) -> None:
    def ask(ref: ModelRef) -> None:
        answer(classify.submit(ClassifyQuery(model=ref, inputs=[TextInput("a")]), RequestContext()))

    with refused(Reason.MODEL_NOT_FOUND, words=("'moo'", "mood")):
        ask(ModelRef("moo"))
    with refused(Reason.VERSION_NOT_FOUND, words=("'7'",)):
        ask(ModelRef("mood", "7"))
    with refused(Reason.MODEL_FAILED, words=("broken",)):
        ask(ModelRef("broken"))


def test_a_result_that_is_no_number_is_said_of_the_input_that_made_it(classify: Classify) -> None:
    pixels = np.full((3, 32, 32), 3e38, np.float32)  # finite, but their sum is not
    inputs = [ImageInput(picture()), TensorsInput({"image": pixels})]
    with refused(Reason.INVALID_INPUT, field="inputs[1]", words=("no finite number",)):
        answer(classify.submit(ClassifyQuery(model=ModelRef("picture"), inputs=inputs), RequestContext()))


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_request_that_nobody_waits_for_is_not_prepared(classify: Classify, how: str) -> None:
    context = RequestContext(deadline=time.monotonic() - 1 if how == "expired" else None)
    if how == "cancelled":
        context.cancel()
    with refused(Reason.CANCELLED if how == "cancelled" else Reason.DEADLINE_EXCEEDED):
        answer(classify.submit(ClassifyQuery(model=MOOD, inputs=[TextInput("a")]), context))
    assert context.timings.preprocess_ns == 0


def test_a_future_cannot_be_cancelled_by_its_holder(classify: Classify) -> None:
    future = classify.submit(ClassifyQuery(model=MOOD, inputs=[TextInput("a")]), RequestContext())
    assert not future.cancel()
    assert answer(future).results
