"""tritonclient and the server in one process: each has messages of its own of the same names, whoever is first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from contract.inference_models import write_tensor_models

_ENVIRONMENT = Path(__file__).resolve().parents[2] / "build" / "venvs" / "tritonclient"
_SCRIPT = """
import importlib, sys

repository, packages, *names = sys.argv[1:]
sys.path.append(packages)  # after ours, whose protobuf and grpc are used by both
for name in names:
    importlib.import_module(name)

import numpy as np
import tritonclient.grpc as triton
from headrace_server.config import AdminOptions, ServerConfig, TransportOptions
from headrace_server.server import Server
from pathlib import Path

config = ServerConfig(
    repository=Path(repository), transport=TransportOptions(listen=("127.0.0.1:0",)), admin=AdminOptions(listen=None)
)
with Server(config) as server:
    with triton.InferenceServerClient(server.addresses.grpc[0]) as client:
        x = triton.InferInput("x", [2, 4], "FP32")
        x.set_data_from_numpy(np.ones((2, 4), np.float32))
        y = client.infer("patient", [x]).as_numpy("y")
        assert client.get_model_config("patient").config.max_batch_size == 16
print(y.tolist())
"""


@pytest.mark.parametrize("first", ["tritonclient.grpc", "headrace_server.rpc.endpoints"])
def test_tritonclient_and_server_live_in_one_process(first: str, tmp_path: Path) -> None:
    packages = next(_ENVIRONMENT.glob("lib/python*/site-packages"), None)
    if packages is None:
        assert not os.environ.get("CI"), "CI runs this (make build/venvs/tritonclient/.installed)"
        pytest.skip("tritonclient is not installed (make build/venvs/tritonclient/.installed)")
    write_tensor_models(tmp_path)
    names = sorted(["tritonclient.grpc", "headrace_server.rpc.endpoints"], key=lambda name: name != first)
    command = [sys.executable, "-W", "ignore", "-c", _SCRIPT, str(tmp_path), str(packages), *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == str([[2.0] * 4] * 2)
