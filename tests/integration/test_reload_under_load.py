"""Versions are swapped, and loads fail, while clients ask over gRPC: nobody's request fails.

Every content of a folder has labels of its own, so that an answer tells which one gave it.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from contract.services_models import Serving, serving_models
from unit.models.small_models import encoder, write_classifier

from headrace.v1 import classification_pb2, selector_pb2
from headrace_server.config import AdminOptions, LifecycleOptions, ServerConfig, ThreadBudget, TransportOptions
from headrace_server.server import Server
from headrace_server.serving.repository import ModelState, Repository
from headrace_server.serving.traffic import TrafficShare, TrafficSplit

NUM_ASKERS = 4


def counts(sample: int, whole: int) -> list[Any]:
    """How often: a few times in every run, the stated number of times where long tests are run."""
    long = [pytest.mark.full, pytest.mark.timeout(300)]
    return [pytest.param(sample, id="sample"), pytest.param(whole, id="whole", marks=long)]


def write_version(folder: Path, content: int, *, damage: int = 0) -> None:
    """A version folder whose labels name its content, put in place whole; `damage`: which way it is unfit, 0: none."""
    aside = folder.with_name(f".{folder.name}")
    config = {
        "architectures": ["BertForSequenceClassification"],
        "model_type": "bert",
        "id2label": {str(index): f"{content}-{name}" for index, name in enumerate(("good", "bad", "neutral"))},
        "max_position_embeddings": 16,
    }
    write_classifier(aside, config__json=config)
    graph = aside / "onnx" / "model.onnx"
    if damage == 1:
        graph.write_bytes(graph.read_bytes()[: graph.stat().st_size // 2])
    elif damage == 2:
        graph.write_bytes(b"\x99 this is no graph")
    elif damage == 3:
        (aside / "tokenizer.json").write_text("{")
    elif damage == 4:
        graph.write_bytes(encoder(head="logits", num_labels=2).SerializeToString())  # not the labels' number
    elif damage == 5:
        recorded = {"task": "classify", "inputs": [{"text": "good"}], "expected": [[{"label": "gone", "score": 1.0}]]}
        (aside / "warmup").mkdir()
        (aside / "warmup" / "a.json").write_text(json.dumps(recorded))
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


class Askers:
    """Clients that ask without a pause until the block ends."""

    def __init__(self, serving: Serving) -> None:
        self.failures: list[BaseException] = []
        self.contents: set[int] = set()
        self.num_answered = 0
        self._serving = serving
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(index,)) for index in range(NUM_ASKERS)]

    def __enter__(self) -> Askers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def ask(self, key: str = "") -> int:
        """The content that answers one request."""
        request = classification_pb2.ClassifyRequest(
            model=selector_pb2.ModelSelector(name="mood", routing_key=key), inputs=[{"text": "good bad"}]
        )
        response = self._serving.classification.Classify(request, timeout=30)
        (content,) = {int(label.label.partition("-")[0]) for label in response.results[0].labels}
        return content

    def _ask(self, index: int) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            try:
                content = self.ask(f"{index}-{number}")
            except Exception as error:
                self.failures.append(error)
                return
            self.contents.add(content)
            self.num_answered += 1


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Serving]:
    write_version(tmp_path / "mood" / "1", 0)
    with serving_models(tmp_path, "auto") as serving:
        yield serving


def repository_of(serving: Serving) -> Repository:
    return serving.server._repository


@pytest.mark.parametrize("count", counts(10, 200))
def test_swaps_under_load_fail_no_request(serving: Serving, tmp_path: Path, count: int) -> None:
    repository = repository_of(serving)
    with Askers(serving) as askers:
        for content in range(1, count + 1):
            write_version(tmp_path / "mood" / "1", content)
            status = repository.load("mood", "1").result(60)
            assert status.state is ModelState.READY
            assert askers.ask() == content  # whoever asks after the swap is answered by the new one
    assert askers.failures == []
    assert askers.num_answered > count
    assert len(askers.contents) > count / 2
    assert repository.num_loads() == {("mood", "succeeded"): count + 1}


@pytest.mark.parametrize("count", counts(3, 30))
def test_changes_that_a_poll_finds_under_load_fail_no_request(tmp_path: Path, count: int) -> None:
    write_version(tmp_path / "mood" / "1", 0)
    config = ServerConfig(
        repository=tmp_path,
        threads=ThreadBudget(num_cores=2),
        transport=TransportOptions(listen=("127.0.0.1:0",)),
        admin=AdminOptions(listen=None),
        lifecycle=LifecycleOptions(poll_s=0.02),
    )
    with Server(config) as server, grpc.insecure_channel(server.addresses.grpc[0]) as channel:
        with Askers(Serving(server, channel, server.addresses.grpc[0])) as askers:
            for content in range(1, count + 1):
                write_version(tmp_path / "mood" / "1", content)
                limit = time.monotonic() + 60
                while askers.ask() != content:
                    assert time.monotonic() < limit
        assert askers.failures == []
        assert askers.num_answered


@pytest.mark.parametrize("count", counts(10, 200))
def test_corrupt_loads_under_load_leave_the_old_version_serving(serving: Serving, tmp_path: Path, count: int) -> None:
    repository = repository_of(serving)
    with Askers(serving) as askers:
        for number in range(count):
            write_version(tmp_path / "mood" / str(1 + number // 5 % 2), 1 + number, damage=1 + number % 5)
            status = repository.load("mood", str(1 + number // 5 % 2)).result(60)
            assert status.state is ModelState.FAILED
            assert status.reason
            assert str(tmp_path) not in status.reason
            assert askers.ask() == 0
    assert askers.failures == []
    assert askers.contents == {0}
    assert repository.num_loads() == {("mood", "succeeded"): 1, ("mood", "failed"): count}
    by_version = {status.version: status for status in repository.status()}
    assert by_version["1"].reason.startswith("replacement failed: ")
    assert by_version["1"].serving
    assert by_version["2"].state is ModelState.FAILED


@pytest.mark.parametrize("count", counts(3, 60))
def test_a_new_version_is_canaried_promoted_and_the_old_unloaded_under_load(
    serving: Serving, tmp_path: Path, count: int
) -> None:
    repository = repository_of(serving)
    with Askers(serving) as askers:
        for content in range(1, count + 1):
            old, new = str(content), str(content + 1)
            write_version(tmp_path / "mood" / new, content)
            assert not repository.load("mood", new, serve=False).result(60).serving
            repository.set_split("mood", TrafficSplit(shares=(TrafficShare(old, 3), TrafficShare(new, 1))))
            assert {askers.ask(f"key-{number}") for number in range(48)} == {content - 1, content}
            repository.load("mood", new).result(60)
            repository.set_split("mood", TrafficSplit())
            assert askers.ask() == content
            repository.unload("mood", old)
    assert askers.failures == []
    assert askers.contents == set(range(count + 1))
