"""Infer: tensors cut into rows and joined again, without a copy where a request is a whole run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from asking import answer, refused
from contract.inference_models import write_tensor_models

from headrace_server.config import BatchPolicy, InputLimits, ThreadBudget
from headrace_server.engines.base import Array, Engine
from headrace_server.errors import Reason
from headrace_server.jobs.infer import Infer
from headrace_server.jobs.infer_queries import InferQuery, WantedOutput
from headrace_server.jobs.queries import ModelRef
from headrace_server.jobs.signatures import signature_of, split_name
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.models.model import Task
from headrace_server.serving.context import RequestContext
from headrace_server.serving.repository import Repository
from headrace_server.serving.row_servable import RowServable

BATCH = 4


class Watched:
    """A real engine, and what it was given."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.feeds: list[Mapping[str, Array]] = []
        self.outputs: list[Mapping[str, Array]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
        made = self._engine.run(feeds, outputs)
        self.feeds.append(dict(feeds))
        self.outputs.append(made)
        return made


@pytest.fixture(scope="module")
def tensor_models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Repository]:
    directory = write_tensor_models(tmp_path_factory.mktemp("tensor-models"))
    (directory / "patient" / "1" / "headrace.toml").unlink()
    repository = Repository(
        directory,
        defaults=LoadDefaults(batching=BatchPolicy(max_batch_size=BATCH)),
        threads=ThreadBudget(num_cores=1),
    )
    repository.start()
    assert repository.wait_ready(60)
    yield repository
    repository.close()


@pytest.fixture
def infer(tensor_models: Repository) -> Infer:
    return Infer(tensor_models, InputLimits())


@pytest.fixture
def watched(tensor_models: Repository) -> Iterator[Watched]:
    """The engine of `patient`, which gives twice x[batch, 4]."""
    with tensor_models.acquire("patient") as lease:
        servable = lease.servable
        assert isinstance(servable, RowServable)
        engine = Watched(servable._engine)
        servable._engine = engine  # type: ignore[assignment]
    yield engine
    servable._engine = engine._engine


def ask(infer: Infer, model: str, outputs: Sequence[WantedOutput] = (), **tensors: Array) -> Mapping[str, Array]:
    query = InferQuery(model=ModelRef(model), inputs=tensors, outputs=outputs)
    return answer(infer.submit(query, RequestContext())).outputs


def numbers(num_rows: int) -> Array:
    return np.arange(num_rows * 4, dtype=np.float32).reshape(num_rows, 4)


@pytest.mark.parametrize("num_rows", [1, BATCH])
def test_request_that_is_a_whole_run_is_copied_nowhere(infer: Infer, watched: Watched, num_rows: int) -> None:
    x = numbers(num_rows)
    y = ask(infer, "patient", x=x)["y"]
    (feeds,), (made,) = watched.feeds, watched.outputs
    assert feeds["x"].shape == x.shape
    assert np.shares_memory(feeds["x"], x)
    assert np.shares_memory(y, made["y"])
    np.testing.assert_array_equal(y, 2 * x)


def test_request_of_several_runs_is_cut_without_a_copy(infer: Infer, watched: Watched) -> None:
    x = numbers(3 * BATCH - 1)
    y = ask(infer, "patient", x=x)["y"]
    assert [len(feeds["x"]) for feeds in watched.feeds] == [BATCH, BATCH, BATCH - 1]
    assert all(np.shares_memory(feeds["x"], x) for feeds in watched.feeds)
    np.testing.assert_array_equal(y, 2 * x)


def test_inputs_may_come_in_any_order(infer: Infer, tensor_models: Repository) -> None:
    with tensor_models.acquire("every") as lease:
        specs = lease.servable.model.inputs
    tensors = {
        spec.name: np.array([["a", "b"]], object) if spec.dtype == "string" else np.ones((1, 2), spec.dtype)
        for spec in specs
    }
    backwards = dict(reversed(tensors.items()))
    assert list(ask(infer, "every", **tensors)) == list(ask(infer, "every", **backwards))


def test_graph_without_a_batch_axis_gets_its_tensors_whole(infer: Infer) -> None:
    a, b = numbers(3)[:, :3], np.ones((3, 5), np.float32)
    np.testing.assert_allclose(ask(infer, "product", a=np.ascontiguousarray(a), b=b)["product"], a @ b)


def test_classes_of_a_tensor_are_ranked_with_nan_last(infer: Infer) -> None:
    x = np.array([[1, np.nan, 3, 3]], np.float32)
    wanted = [WantedOutput("y", num_classes=9)]
    texts = ask(infer, "patient", wanted, x=x)["y"]
    assert texts.tolist() == [["6.000000:2", "6.000000:3", "2.000000:0", "nan:1"]]


def test_name_says_model_and_task() -> None:
    assert split_name("spam") == ("spam", None)
    assert split_name("bge-v1.5") == ("bge-v1.5", None)
    assert split_name("bge-v1.5.embed") == ("bge-v1.5", Task.EMBED)
    assert split_name(".embed") == (".embed", None)


def test_model_whose_own_name_ends_as_a_task_is_reached(tmp_path: Path) -> None:
    write_tensor_models(tmp_path)
    (tmp_path / "patient").rename(tmp_path / "patient.classify")
    repository = Repository(tmp_path, threads=ThreadBudget(num_cores=1))
    repository.start()
    try:
        assert repository.wait_ready(60)
        outputs = ask(Infer(repository, InputLimits()), "patient.classify", x=numbers(1))
        np.testing.assert_array_equal(outputs["y"], 2 * numbers(1))
    finally:
        repository.close()


def test_texts_are_asked_one_an_element(repository: Repository, limits: InputLimits) -> None:
    infer = Infer(repository, limits)
    texts = np.array([b"the cat", b"a dog"], object)
    for shape in ((2,), (2, 1)):
        outputs = ask(infer, "mood.classify", text_input=texts.reshape(shape))
        assert outputs["scores"].shape == (2, 3)
        assert outputs["label"].shape == (2, 1)
    with refused(Reason.INVALID_INPUT, field='inputs["text_input"]', words=("shape [1,2]",)):
        ask(infer, "mood.classify", text_input=texts.reshape(1, 2))
    with refused(Reason.INVALID_INPUT, field='inputs["text_input"][0].text', words=("65 bytes, limit 64",)):
        ask(infer, "mood.classify", text_input=np.array([b"x" * 65], object))
    with refused(Reason.INVALID_INPUT, field='inputs["text_pair_input"]', words=("1 elements, text_input has 2",)):
        ask(infer, "mood.classify", text_input=texts, text_pair_input=texts[:1])


def test_rows_are_cut_only_where_every_tensor_has_the_same_first_axis(tensor_models: Repository) -> None:
    for name, size in (("every", BATCH), ("product", 0)):
        with tensor_models.acquire(name) as lease:
            signature = signature_of(lease.servable.model, None)
        assert signature is not None
        assert signature.max_batch_size == size
        assert all((spec.shape[0] == -1) is bool(size) for spec in signature.inputs[1:])


def test_signature_of_a_generator_is_text_to_text(tmp_path: Path) -> None:
    from decoder_folders import write_decoder

    write_decoder(tmp_path / "1")
    signature = signature_of(load_model(tmp_path / "1", name="writer", version="1"), None)
    assert signature is not None
    assert signature.decoupled
    assert [spec.name for spec in signature.inputs if spec.name not in signature.optional] == ["text_input"]
