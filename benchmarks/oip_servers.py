"""The servers that bench_oip compares, each in a process of its own, and perf_analyzer."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
from load import ROOT, Served, served

from headrace_server.rpc.inference import messages as pb

TRITON = ROOT / "build" / "bench" / "triton"
WIDTH = 16  # elements of the identity's tensor
_BENCHMARKS = Path(__file__).resolve().parent
_INLINE = "[batching]\ninline = true\n"
_SERVICE = "/inference.GRPCInferenceService"


def write_repository(folder: Path, minilm: Path) -> Path:
    """identity, through the Batcher; identity_inline; minilm."""
    import onnx

    shape = ("n", WIDTH)
    value, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["INPUT0"], ["OUTPUT0"])],
        "identity",
        [value("INPUT0", kind, shape)],
        [value("OUTPUT0", kind, shape)],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    for name, manifest in (("identity", "[batching]\nmax_batch_size = 64\n"), ("identity_inline", _INLINE)):
        version = folder / name / "1"
        version.mkdir(parents=True)
        onnx.save(made, version / "model.onnx")
        (version / "headrace.toml").write_text(manifest)
    shutil.copytree(minilm, folder / "minilm" / "1")
    return folder


@contextlib.contextmanager
def headrace(repository: Path) -> Iterator[Served]:
    with served(repository) as server:
        yield server


@contextlib.contextmanager
def plain_aio(minilm: Path) -> Iterator[Served]:
    started = time.perf_counter()
    command = [sys.executable, str(_BENCHMARKS / "oip_aio_server.py"), str(minilm)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            address = process.stdout.readline().strip()
            yield Served(address, time.perf_counter() - started, psutil.Process(process.pid))
        finally:
            process.stdin.close()
            process.wait(30)


@contextlib.contextmanager
def triton(minilm: Path) -> Iterator[Served]:
    """Triton's server with its Python backend, from nvidia-pytriton's wheel."""
    home = TRITON / "packages" / "pytriton" / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = home / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy(home / "python_backend_stubs" / version / stub.name, stub)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    packages = sysconfig.get_paths()["purelib"]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{_BENCHMARKS}:{TRITON / 'packages'}:{packages}",  # its NumPy before ours
        "MINILM": str(minilm),
        "LD_LIBRARY_PATH": str(sysconfig.get_config_var("LIBDIR")),
    }
    command = [
        *(str(home / "bin" / "tritonserver"), "--model-repository", str(_BENCHMARKS / "triton_models")),
        *("--backend-directory", str(home / "backends"), "--grpc-address", "127.0.0.1", "--grpc-port", str(port)),
        *("--allow-http", "false", "--allow-metrics", "false"),
    ]
    started = time.perf_counter()
    log = TRITON / "server.log"
    with log.open("wb") as output, subprocess.Popen(command, stderr=output, stdout=output, env=environment) as process:
        try:
            address = f"127.0.0.1:{port}"
            wait_ready(address, process, log)
            yield Served(address, time.perf_counter() - started, psutil.Process(process.pid))
        finally:
            process.terminate()
            process.wait(60)


def wait_ready(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.perf_counter() + 60
    with grpc.insecure_channel(address) as channel:
        ready = channel.unary_unary(
            f"{_SERVICE}/ServerReady",
            request_serializer=pb.ServerReadyRequest.SerializeToString,
            response_deserializer=pb.ServerReadyResponse.FromString,
        )
        while time.perf_counter() < until and process.poll() is None:
            with contextlib.suppress(grpc.RpcError):
                if ready(pb.ServerReadyRequest(), timeout=1).ready:
                    return
            time.sleep(0.05)
    raise RuntimeError(f"Triton did not become ready: {log.read_text()[-2000:]}")


def infer(address: str, request: bytes) -> bytes:
    """One answer, as bytes."""
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(f"{_SERVICE}/ModelInfer", request_serializer=None, response_deserializer=None)
        answer: bytes = ask(request, timeout=30)
        return answer


def perf_analyzer(address: str, model: str, concurrency: int, seconds: float) -> str:
    """Its report."""
    command = [
        *(str(TRITON / "packages" / "bin" / "perf_analyzer"), "-m", model, "-u", address, "-i", "grpc", "-a"),
        *("--concurrency-range", str(concurrency), "-p", str(int(seconds * 1000)), "-s", "50", "-r", "3"),
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": str(TRITON / "lib")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr
