"""Server in one's own process: no socket, the same jobs, and every way that a repository can be wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from contract.services_models import BROKEN, MODELS, write_repository

import headrace_server
from headrace_server import Reason, Server, ServerConfig, ServingError, TextInput
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.catalog import ModelRef as CatalogModel
from headrace_server.items.open_catalog import ItemFields
from headrace_server.jobs.recommend_query import ByInputs, ByVectors


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


def test_every_public_name_is_there_and_sorted() -> None:
    assert headrace_server.__all__ == sorted(headrace_server.__all__)
    for name in headrace_server.__all__:
        assert getattr(headrace_server, name) is not None
    assert set(headrace_server.__all__) <= set(dir(headrace_server))
    with pytest.raises(AttributeError, match="Serve"):
        headrace_server.Serve  # noqa: B018


def test_the_block_starts_ready_and_ends_stopped(repository: Path) -> None:
    with Server(repository=repository, listen=()) as server:
        assert server.is_ready
        assert server.transport_name == ("", "")
        assert server.classify("mood", "good film", top_k=1).results[0].labels
        assert server.embed("sentence", ["a", "b"]).embeddings.shape == (2, 8)
        assert len(server.rerank("reranker", "cat", ["dog", "cat"]).documents) == 2
        states = {(status.name, status.version): status.state for status in server.models()}
        assert {name for name, _ in states} == {*MODELS, BROKEN}
        assert states[BROKEN, "1"] == "failed"
    assert not server.is_ready
    with pytest.raises(ServingError) as refused:
        server.classify("mood", "good film")
    assert refused.value.reason is Reason.SHUTTING_DOWN


def test_neither_grpc_nor_anything_for_building_is_imported_without_a_socket(repository: Path) -> None:
    program = (
        "import sys, headrace_server\n"
        f"with headrace_server.Server(repository={str(repository)!r}) as server:\n"
        "    server.classify('mood', 'good')\n"
        "heavy = {'grpc', 'google', 'onnx', 'sklearn', 'skl2onnx', 'scipy', 'typer', 'rich', 'prometheus_client',\n"
        "         'headrace_client', 'headrace_server.cli', 'headrace_server.prepare'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_a_repository_of_which_nothing_loads_is_an_error_that_says_why(tmp_path: Path) -> None:
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ServingError, match="no model could be loaded: bad/1: ") as raised, Server(repository=tmp_path):
        pass
    assert raised.value.reason is Reason.MODEL_FAILED


def test_an_empty_repository_is_an_error_with_the_cure(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="expected <name>/<version>/ folders"), Server(repository=tmp_path):
        pass
    with pytest.raises(ServingError, match="not a readable folder"), Server(repository=tmp_path / "missing"):
        pass


def test_an_address_that_cannot_be_opened_leaves_nothing_behind(repository: Path) -> None:
    before = threading.active_count()
    with pytest.raises(ServingError, match="256.0.0.1") as raised:  # noqa: RUF043
        Server(repository=repository, listen="256.0.0.1:0").start()
    assert raised.value.reason is Reason.CONFIG_INVALID
    assert threading.active_count() <= before + 1


def test_a_config_and_its_parts_are_not_given_together(repository: Path) -> None:
    with pytest.raises(TypeError, match="a config or a repository"):
        Server()
    with pytest.raises(TypeError, match="a config or a repository"):
        Server(ServerConfig(repository=repository), repository=repository)
    with pytest.raises(TypeError, match="stand in its config"):
        Server(ServerConfig(repository=repository), listen="127.0.0.1:0")
    with pytest.raises(TypeError, match="colour"):
        Server(repository=repository, colour="red")


def test_stopping_waits_for_requests_in_flight(repository: Path) -> None:
    server = Server(repository=repository)
    server.start()
    assert server.wait_ready(60)
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(len(server.embed("sentence", ["cat"] * 512).embeddings)))
    asking.start()
    while not any(status.queue_depth for status in server.models()) and asking.is_alive():
        pass
    stops = [threading.Thread(target=server.stop) for _ in range(2)]
    for stop in stops:
        stop.start()
    for thread in (asking, *stops):
        thread.join(30)
        assert not thread.is_alive()
    assert answers == [512]


def test_catalogs_are_kept_and_recommended_from_without_a_socket(repository: Path, tmp_path: Path) -> None:
    texts = ["the cat", "a dog", "the mat"]
    with Server(repository=repository, catalogs=tmp_path / "catalogs") as server:
        model = CatalogModel(name="sentence")
        server.catalogs.create(CatalogSpec(name="texts", dimension=8, embedding_model=model))
        assert server.catalogs.upsert("texts", texts, inputs=texts, payloads=[{"n": 1}, None, "{}"]).num_inserted == 3
    with Server(repository=repository, catalogs=tmp_path / "catalogs") as server:
        answer = server.catalogs.recommend("texts", ByInputs([TextInput("a dog")]), k=2)
        assert answer.results[0].items[0].item.id == "a dog"
        assert answer.results[0].exact
        vectors = server.embed("sentence", "the cat").embeddings
        found = server.catalogs.recommend("texts", ByVectors(vectors), k=1, fields=ItemFields(payload=True))
        assert found.results[0].items[0].item.payload == '{"n": 1}'
        assert server.catalogs.delete("texts", ["a dog"]).num_deleted == 1
        assert server.catalogs.get("texts", texts).missing_ids == ("a dog",)
        assert [info.num_items for info in server.catalogs.list()] == [2]
        assert server.catalogs.drop("texts") == 2
    with Server(repository=repository) as server, pytest.raises(ServingError, match="without a directory"):
        server.catalogs.list()


def test_one_models_folder_is_a_repository_too(repository: Path, tmp_path: Path) -> None:
    shutil.copytree(repository / "mood" / "1", tmp_path / "feelings")
    with Server(repository=tmp_path / "feelings") as server:
        assert server.classify("feelings", "good").model.version == "1"
