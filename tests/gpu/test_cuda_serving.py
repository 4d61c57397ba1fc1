"""Models on a GPU as callers meet them: over gRPC, while versions are swapped, and what `headrace doctor` says."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from contract.services_models import serving_models

from headrace.v1 import embedding_pb2, selector_pb2
from headrace_server.serving.repository import ModelState

pytestmark = pytest.mark.gpu

TEXTS = ["a river runs", "the mill stands still", "bread and salt", "where does the water come from in winter?"]


@pytest.fixture
def repository(demo_models: Path, tmp_path: Path, device: str) -> Path:
    """MiniLM's first version twice, both on the GPU."""
    for version in ("1", "2"):
        shutil.copytree(demo_models / "minilm" / "1", tmp_path / "models" / "minilm" / version)
        manifest = tmp_path / "models" / "minilm" / version / "headrace.toml"
        said = manifest.read_text() if manifest.exists() else ""
        manifest.write_text(f'{said}\n[engine]\ndevice = "{device}"\nnum_workers = 2\n')
    return tmp_path / "models"


def embed(serving: object, text: str, version: str = "") -> np.ndarray:
    request = embedding_pb2.EmbedRequest(model=selector_pb2.ModelSelector(name="minilm", version=version))
    request.inputs.add().text = text
    answer = serving.embedding.Embed(request, timeout=60)  # type: ignore[attr-defined]
    return np.frombuffer(answer.embeddings.data, "<f4")


def test_callers_over_grpc_get_the_vectors_of_the_cpu(
    repository: Path, demo_models: Path, tmp_path: Path, device: str
) -> None:
    from headrace_server import AdminOptions, EngineOptions, Server, ServerConfig

    shutil.copytree(demo_models / "minilm" / "1", tmp_path / "cpu" / "minilm" / "1")
    config = ServerConfig(
        repository=tmp_path / "cpu", engine=EngineOptions(device="cpu"), transport=None, admin=AdminOptions(listen=None)
    )
    with Server(config) as server:
        expected = server.embed("minilm", TEXTS).embeddings
    with serving_models(repository, "direct") as serving:
        for status in serving.server.models():
            assert status.state is ModelState.READY, status.reason
            assert status.engine is not None
            assert status.engine.device == device
        answers: dict[int, np.ndarray] = {}

        def ask(caller: int) -> None:
            for _ in range(20):
                answers[caller] = embed(serving, TEXTS[caller % 4])

        threads = [threading.Thread(target=ask, args=(caller,)) for caller in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for caller in range(8):
            assert float(answers[caller] @ expected[caller % 4]) >= 0.9999


def test_versions_are_swapped_while_callers_ask(repository: Path) -> None:
    with serving_models(repository, "direct") as serving:
        stop, faults, count = threading.Event(), [], [0]

        def ask() -> None:
            while not stop.is_set():
                try:
                    embed(serving, TEXTS[count[0] % 4])
                    count[0] += 1
                except Exception as error:
                    faults.append(repr(error))
                    return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        versions = serving.server._repository
        for _ in range(5):
            for new, old in (("1", "2"), ("2", "1")):
                assert versions.load("minilm", new).result(120).serving
                versions.unload("minilm", old)
        stop.set()
        for thread in threads:
            thread.join(120)
        assert faults == []
        assert count[0] > 0


def test_doctor_says_that_the_gpu_runs(rehearsal: bool) -> None:
    from headrace_server.engines.probes.probe import probe_engines, probes_of

    (found,) = probe_engines(probes_of("cpu" if rehearsal else "cuda:0"))
    assert found.runs, found.fault
