"""Recorded requests: answered by exactly the version that is to be served, and compared with what was recorded."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from contract.services_models import picture, write_repository
from decoder_folders import write_decoder
from unit.models.small_models import write_classifier

from headrace_server.config import ThreadBudget
from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.recorded_answer import difference
from headrace_server.jobs.recorded_request import Tolerance
from headrace_server.jobs.recorded_requests import RecordedRequests, record
from headrace_server.models.load import load_model
from headrace_server.serving.loading import load_servable
from headrace_server.serving.repository import ModelState, Repository

THREADS = ThreadBudget(num_cores=1)
CUBE = [[[[[1.0] * 5] * 4] * 3] * 2]
REQUESTS: dict[str, dict[str, Any]] = {
    "mood": {
        "task": "classify",
        "inputs": [{"text": "good"}, {"text": "bad", "pair": "good"}],
        "options": {"top_k": 2},
    },
    "sentence": {"task": "embed", "inputs": [{"text": "good bad"}], "options": {"dimensions": 4}},
    "reranker": {"task": "rerank", "query": "good", "documents": ["good", "bad"]},
    "picture": {"task": "embed", "inputs": [{"image_file": "a.png"}]},
    "bytes": {"task": "classify", "inputs": [{"bytes": base64.b64encode(b"hello").decode()}]},
    "table": {"task": "classify", "inputs": [{"features": {"age": 3, "colour": "red"}}]},
    "plain": {"task": "infer", "tensors": {"x": CUBE, "y": CUBE}},
}


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return write_repository(tmp_path / "models")


@pytest.fixture
def mood(tmp_path: Path) -> Path:
    return write_classifier(tmp_path / "mood" / "1")


def ask(folder: Path, request: dict[str, Any], name: str = "a.json") -> Path:
    """The request in the version's folder."""
    (folder / "warmup").mkdir(exist_ok=True)
    (folder / "warmup" / "a.png").write_bytes(picture())
    (folder / "warmup" / name).write_text(json.dumps(request))
    return folder / "warmup" / name


def check(folder: Path) -> None:
    servable = load_servable(load_model(folder, name="m", version="1"), THREADS)
    try:
        RecordedRequests().check(servable)
    finally:
        servable.close()


def fault(folder: Path) -> str:
    with pytest.raises(ServingError) as caught:
        check(folder)
    assert caught.value.reason is Reason.MODEL_INVALID
    return caught.value.message


@pytest.mark.parametrize("name", REQUESTS)
def test_what_was_recorded_is_answered_again_and_anything_else_is_told(folders: Path, name: str) -> None:
    folder = folders / name / "1"
    file = ask(folder, REQUESTS[name])
    assert fault(folder) == "warmup/a.json: nothing is expected; record it (headrace models record)"
    assert record(folder, threads=THREADS) == ["warmup/a.json"]
    check(folder)
    said = json.loads(file.read_text())
    assert said.pop("expected")
    assert said == REQUESTS[name]
    assert record(folder, threads=THREADS) == []
    text = file.read_text()
    assert record(folder, again=True, threads=THREADS) == ["warmup/a.json"]
    assert file.read_text() == text
    file.write_text(text.replace("0.", "1.").replace("2.0", "2.5"))
    assert fault(folder).startswith("warmup/a.json: not as recorded: ")


def test_text_is_generated_greedily_and_compared_exactly(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "llama" / "1")
    for name, prompt in (("a.json", {"prompt": "ab"}), ("b.json", {"messages": [{"role": "user", "content": "ab"}]})):
        ask(folder, {"task": "generate", "options": {"max_tokens": 5}, **prompt}, name)
    assert record(folder, threads=THREADS) == ["warmup/a.json", "warmup/b.json"]
    check(folder)
    said = json.loads((folder / "warmup" / "b.json").read_text())
    said["expected"][0]["text"] += "."
    ask(folder, said, "b.json")
    assert fault(folder).startswith("warmup/b.json: not as recorded: [0]: text: expected ")


def test_the_difference_is_named_with_both_sides(mood: Path) -> None:
    expected = [[{"label": "bad", "score": 0.9}]]
    ask(mood, {"task": "classify", "inputs": [{"text": "good"}], "expected": expected})
    assert fault(mood) == "warmup/a.json: not as recorded: [0]: expected 'bad' 0.9000, got 0.1338"
    ask(mood, {"task": "classify", "inputs": [{"text": "good"}], "expected": [[{"label": "joy", "score": 0.9}]]})
    said = fault(mood)
    assert said.startswith(
        "warmup/a.json: not as recorded: [0]: expected 'joy' 0.9000, not among those given: 'good' 0."
    )


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"task": "clasify"}, "warmup/a.json: Invalid enum value 'clasify'"),
        ({"task": "classify", "input": []}, "warmup/a.json: input: unknown key, the nearest valid one is inputs"),
        ({"task": "classify"}, "warmup/a.json: classify needs inputs"),
        ({"task": "rerank", "query": "a"}, "warmup/a.json: rerank needs query and documents"),
        ({"task": "generate"}, "warmup/a.json: generate needs either prompt or messages"),
        ({"task": "infer"}, "warmup/a.json: infer needs tensors"),
        ({"task": "classify", "inputs": [{}], "expected": []}, "warmup/a.json: inputs[0]: has nothing, one kind"),
        ({"task": "classify", "inputs": [{"text": "a", "bytes": ""}], "expected": []}, "inputs[0]: has text, bytes"),
        ({"task": "classify", "inputs": [{"image": "!"}], "expected": []}, "inputs[0]: not base64"),
        (
            {"task": "classify", "inputs": [{"image_file": "../a.png"}], "expected": []},
            "inputs[0]: warmup/../a.png: no",
        ),
        (
            {"task": "embed", "inputs": [{"text": "a"}], "expected": []},
            "warmup/a.json: not answered: model 'm' version '1' cannot",
        ),
        ({"task": "infer", "tensors": {"x": []}, "expected": {}}, "warmup/a.json: tensors.input_ids: missing"),
        ({"task": "classify", "inputs": [{"text": "a"}], "expected": 7}, "expected is not what classify answers"),
    ],
)
def test_a_request_that_makes_no_sense_is_told(mood: Path, request_: dict[str, Any], said: str) -> None:
    ask(mood, request_)
    assert said in fault(mood)


def test_a_version_that_answers_otherwise_is_not_served(mood: Path, tmp_path: Path) -> None:
    other = write_classifier(tmp_path / "mood" / "2")
    for folder in (mood, other):
        ask(folder, {"task": "classify", "inputs": [{"text": "good"}]})
    record(mood, threads=THREADS)
    ask(other, {"task": "classify", "inputs": [{"text": "good"}], "expected": [[{"label": "bad", "score": 1.0}]]})
    repository = Repository(tmp_path, threads=THREADS, check=RecordedRequests().check)
    repository.start()
    try:
        assert repository.wait_ready(30)
        newer, older = repository.status()
        assert (newer.state, older.state) == (ModelState.FAILED, ModelState.READY)
        assert newer.reason == "warmup/a.json: not as recorded: [0]: expected 'bad' 1.0000, got 0.1338"
        assert older.serving
        ((_, _, counts),) = repository.statistics()
        assert (counts.num_succeeded, counts.num_batches) == (0, 0)  # what is asked to check it is no traffic
    finally:
        repository.close()


LABELS = [[{"label": "a", "score": 0.6}, {"label": "b", "score": 0.4}]]


@pytest.mark.parametrize(
    ("task", "expected", "got", "same"),
    [
        ("classify", LABELS, [[{"label": "a", "score": 0.605}, {"label": "b", "score": 0.395}]], True),
        ("classify", LABELS, [[{"label": "a", "score": 0.65}, {"label": "b", "score": 0.35}]], False),
        ("classify", LABELS, [[{"label": "a", "score": 0.6}]], False),
        ("classify", [LABELS[0][:1]], LABELS, True),
        ("classify", LABELS, [], False),
        # A tie within the tolerance may turn; a clear first may not.
        (
            "classify",
            [[{"label": "a", "score": 0.5}, {"label": "b", "score": 0.499}]],
            [[{"label": "b", "score": 0.5}, {"label": "a", "score": 0.499}]],
            True,
        ),
        ("rerank", [{"index": 1, "score": 2.0}], [{"index": 1, "score": 2.005}], True),
        ("rerank", [{"index": 1, "score": 2.0}], [{"index": 0, "score": 3.0}], False),
        ("embed", [[1.0, 0.0]], [[2.0, 0.01]], True),
        ("embed", [[1.0, 0.0]], [[1.0, 0.1]], False),
        ("embed", [[1.0, 0.0]], [[1.0]], False),
        ("generate", [{"text": "a b", "finish_reason": "end"}], [{"text": "a b", "finish_reason": "end"}], True),
        ("generate", [{"text": "a b"}], [{"text": "a b", "finish_reason": "end"}], True),
        ("generate", [{"text": "a b"}], [{"text": "a c", "finish_reason": "end"}], False),
        ("infer", {"y": [[1.0, 2.0]]}, {"y": [[1.005, 2.0]], "z": []}, True),
        ("infer", {"y": [[1.0, 2.0]]}, {"y": [[1.1, 2.0]]}, False),
        ("infer", {"y": [[1, 2]]}, {"y": [[1, 3]]}, False),
        ("infer", {"y": ["a"]}, {"y": ["b"]}, False),
        ("infer", {"y": [1.0]}, {"y": [[1.0]]}, False),
        ("infer", {"y": [1.0]}, {"z": [1.0]}, False),
        ("infer", {"y": [1.0]}, {"y": [float("nan")]}, False),
    ],
)
def test_answers_are_compared_within_the_tolerance(task: str, expected: Any, got: Any, same: bool) -> None:
    assert (difference(task, expected, got, Tolerance()) == "") is same
