"""Unmodified tritonclients against a running server: what `tests/triton_client.py` did, scenario by scenario."""

from __future__ import annotations

import ast
import json
import os
import subprocess
from pathlib import Path

import pytest
from decoder_folders import write_decoder
from unit.models.small_models import write_classifier, write_embedder

from headrace_server.config import AdminOptions, ManagementOptions, ServerConfig, TransportOptions
from headrace_server.server import Server

_ROOT = Path(__file__).resolve().parents[2]
_PYTHON = _ROOT / "build" / "venvs" / "tritonclient" / "bin" / "python"
_SCRIPT = _ROOT / "tests" / "triton_client.py"
_SCENARIOS = [
    node.name
    for node in ast.parse(_SCRIPT.read_text()).body
    if isinstance(node, ast.FunctionDef) and any(ast.unparse(each) == "scenario" for each in node.decorator_list)
]


def _write_models(repository: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="onnx is not installed (pip install 'headrace[demo]')")
    types = onnx.TensorProto
    kinds = {
        "BOOL": types.BOOL, "INT8": types.INT8, "INT16": types.INT16, "INT32": types.INT32, "INT64": types.INT64,
        "UINT8": types.UINT8, "UINT16": types.UINT16, "UINT32": types.UINT32, "UINT64": types.UINT64,
        "FP16": types.FLOAT16, "FP32": types.FLOAT, "FP64": types.DOUBLE, "BYTES": types.STRING,
    }  # fmt: skip

    def save(name: str, nodes: list[object], inputs: list[object], outputs: list[object], manifest: str = "") -> None:
        folder = repository / name / "1"
        folder.mkdir(parents=True)
        graph = onnx.helper.make_graph(nodes, "graph", inputs, outputs)
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(made, folder / "model.onnx")
        if manifest:
            (folder / "headrace.toml").write_text(manifest)

    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    for name, named in (("every", kinds), ("typed", {key: kind for key, kind in kinds.items() if key != "FP16"})):
        save(
            name,
            [node("Identity", [key], [f"{key}_out"]) for key in named],
            [value(key, kind, ["n", 3]) for key, kind in named.items()],
            [value(f"{key}_out", kind, ["n", 3]) for key, kind in named.items()],
        )
    brain = types.BFLOAT16
    save("brain", [node("Identity", ["x"], ["y"])], [value("x", brain, ["n", 2])], [value("y", brain, ["n", 2])])
    for name in ("linear", "inline", "spare"):
        save(
            name,
            [node("Add", ["x", "x"], ["y"])],
            [value("x", types.FLOAT, ["n", 4])],
            [value("y", types.FLOAT, ["n", 4])],
            "[batching]\ninline = true\n" if name == "inline" else "",
        )
    write_classifier(repository / "mood" / "1")
    write_embedder(repository / "sentence" / "1")
    write_decoder(repository / "llama" / "1")


@pytest.fixture(scope="module", params=["direct", "aio"])
def outcome(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if not _PYTHON.exists():
        assert not os.environ.get("CI"), "CI runs these (make build/venvs/tritonclient/.installed)"
        pytest.skip("tritonclient is not installed (make build/venvs/tritonclient/.installed)")
    repository = tmp_path_factory.mktemp("models")
    _write_models(repository)
    config = ServerConfig(
        repository=repository,
        transport=TransportOptions(listen=("127.0.0.1:0",), transport=request.param),
        management=ManagementOptions(listen="127.0.0.1:0"),
        admin=AdminOptions(listen=None),
    )
    with Server(config) as server:
        command = [str(_PYTHON), str(_SCRIPT), server.addresses.grpc[0], server.addresses.management or ""]
        done = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.parametrize("scenario", _SCENARIOS)
def test_an_unmodified_client_sees_that(outcome: dict[str, str], scenario: str) -> None:
    assert outcome[scenario] == ""
