"""A model on TensorRT as callers meet it over gRPC, from its graph and from a plan made beforehand."""

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


@pytest.mark.parametrize("form", ["graph", "plan"])
def test_callers_over_grpc_get_the_vectors_of_the_cpu(
    demo_models: Path, tmp_path: Path, rehearsal: bool, form: str
) -> None:
    if rehearsal:
        pytest.skip("rehearsal: a server loads its libraries itself")
    from headrace_server import EngineOptions, Server, ServerConfig

    folder = tmp_path / "models" / "minilm" / "1"
    shutil.copytree(demo_models / "minilm" / "1", folder)
    said = (folder / "headrace.toml").read_text() if (folder / "headrace.toml").exists() else ""
    (folder / "headrace.toml").write_text(
        f'{said}\n[engine]\ndevice = "tensorrt:0"\nnum_workers = 2\n[engine.tensorrt]\ncuda_graphs = true\n'
    )
    if form == "plan":
        from headrace_server.engines.tensorrt.files import build_file, open_graph

        graph = folder / "onnx" / "model.onnx"
        build_file(open_graph(folder), graph.with_suffix(".plan"), rtx=False)
        graph.unlink()
    with Server(ServerConfig(repository=demo_models / "minilm" / "1", engine=EngineOptions(device="cpu"))) as server:
        expected = server.embed("minilm", TEXTS).embeddings
    with serving_models(tmp_path / "models", "direct") as serving:
        for status in serving.server.statuses():
            assert status.state is ModelState.READY, status.reason
            assert status.engine is not None
            assert (status.engine.engine, status.engine.device) == ("tensorrt", "tensorrt:0")
        answers: dict[int, np.ndarray] = {}

        def ask(caller: int) -> None:
            for _ in range(20):
                request = embedding_pb2.EmbedRequest(model=selector_pb2.ModelSelector(name="minilm"))
                request.inputs.add().text = TEXTS[caller % 4]
                answer = serving.embedding.Embed(request, timeout=60)  # type: ignore[attr-defined]
                answers[caller] = np.frombuffer(answer.embeddings.data, "<f4")

        threads = [threading.Thread(target=ask, args=(caller,)) for caller in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for caller in range(8):
            assert float(answers[caller] @ expected[caller % 4]) >= 0.999
