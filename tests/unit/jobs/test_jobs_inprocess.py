"""The jobs as plain calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from contract.services_models import picture
from unit.jobs.asking import refused

from headrace_server.config import InputLimits
from headrace_server.errors import Reason
from headrace_server.jobs.classify import Classify
from headrace_server.jobs.embed import Embed
from headrace_server.jobs.generate import Generate
from headrace_server.jobs.infer import Infer
from headrace_server.jobs.inprocess import InProcess, Jobs
from headrace_server.jobs.queries import ModelRef
from headrace_server.jobs.rerank import Rerank
from headrace_server.jobs.similarity import Similarity
from headrace_server.jobs.submission import Finish, RowResult, Submissions
from headrace_server.jobs.tokenize import Tokenize
from headrace_server.models.inputs import ImageInput, TextInput
from headrace_server.models.model import Model, PrepareOptions, Row, Task
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository


@pytest.fixture(scope="module")
def asked(repository: Repository) -> InProcess:
    limits = InputLimits()
    jobs = Jobs(
        classify=Classify(repository, limits),
        embed=Embed(repository, limits),
        similarity=Similarity(repository, limits),
        rerank=Rerank(repository, limits),
        tokenize=Tokenize(repository, limits),
        infer=Infer(repository, limits),
        generate=Generate(repository, limits),
    )
    return InProcess(jobs, repository)


@pytest.mark.parametrize(
    ("model", "inputs", "count"),
    [
        ("mood", "good film", 1),
        ("mood", ["good film", TextInput("bad")], 2),
        ("mood", ("good", "bad"), 1),
        ("mood", [("good", "bad"), "bad"], 2),
        ("picture", picture(), 1),
        ("picture", [picture(), bytearray(picture()), ImageInput(picture())], 3),
        ("bytes", b"some bytes", 1),
        ("table", {"age": 30, "colour": "red"}, 1),
        ("table", [{"age": 30.5, "colour": "red"}, {"age": np.float32([1]), "colour": np.array(["b"], object)}], 2),
    ],
)
def test_plain_values_become_the_inputs_that_the_model_reads(
    asked: InProcess, model: str, inputs: object, count: int
) -> None:
    assert len(asked.classify(model, inputs).results) == count  # type: ignore[arg-type]


def test_what_is_no_input_is_a_type_error(asked: InProcess) -> None:
    with pytest.raises(TypeError, match="int is no input"):
        asked.classify("mood", [3])  # type: ignore[list-item]


def test_every_job_answers(asked: InProcess) -> None:
    vectors = asked.embed(ModelRef("sentence", "1"), ["cat", "dog"], dimensions=4)
    assert vectors.embeddings.shape == (2, 4)
    assert vectors.model.version == "1"
    assert asked.similarity("cat", ["cat", "dog"], model="sentence").scores.shape == (1, 2)
    assert asked.similarity(vectors.embeddings).scores.shape == (2, 2)
    assert asked.similarity(vectors.embeddings, vectors.embeddings, mode="pairs", metric="dot").scores.shape == (2, 1)
    assert len(asked.rerank("sentence", "cat", ["cat", "dog"], top_k=1).documents) == 1
    assert len(asked.tokenize("mood", "good").results[0].tokens) == 3


def test_errors_are_those_of_the_jobs(asked: InProcess) -> None:
    with refused(Reason.MODEL_NOT_FOUND):
        asked.classify("nobody", b"x")
    with refused(Reason.INVALID_INPUT, field="model.name"):
        asked.similarity("cat", "dog")
    with refused(Reason.DEADLINE_EXCEEDED):
        asked.classify("mood", "good", timeout_s=-1)


def test_a_caller_waits_no_longer_than_its_timeout(asked: InProcess, repository: Repository) -> None:
    go_on, held = threading.Event(), threading.Event()

    def hold(results: Sequence[RowResult]) -> int:
        held.set()
        go_on.wait(10)
        return len(results)

    def admit(model: Model) -> tuple[Task, list[Row], Finish[int]]:
        return Task.EMBED, model.pipelines[Task.EMBED].prepare([TextInput("cat")], PrepareOptions()), hold

    holder = Submissions(repository).through_model(ModelRef("sentence"), RequestContext(), admit)
    assert held.wait(10)  # the one worker of this model
    began = time.monotonic()
    with refused(Reason.DEADLINE_EXCEEDED):
        asked.embed("sentence", "cat", timeout_s=0.1)
    assert time.monotonic() - began < 5
    go_on.set()
    assert holder.result(10) == 1


def test_threads_share_batches_and_get_their_own_answers(asked: InProcess) -> None:
    texts = [f"{word} {count}" for word in ("cat", "dog", "river") for count in ("a", "the", "very")] * 6
    expected = asked.embed("sentence", texts).embeddings
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda text: asked.embed("sentence", text).embeddings[0], texts))
    np.testing.assert_allclose(np.stack(found), expected, atol=1e-5)
