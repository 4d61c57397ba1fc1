"""`headrace serve` as an operator runs it: a process of its own, asked over its sockets, ended by signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from contract.services_models import write_repository
from grpc_health.v1 import health_pb2, health_pb2_grpc

from headrace_client import Client, HeadraceError

pytestmark = pytest.mark.timeout(120)

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}


@dataclass
class Served:
    """A serving process and where it listens."""

    process: subprocess.Popen[str]
    grpc: list[str]
    admin: str
    log: Path

    def page(self, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=10) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def serving(repository: Path, folder: Path, *options: str, ready: bool = True) -> Iterator[Served]:
    ports, log = folder / "ports", folder / "log"
    command = [sys.executable, "-m", "headrace_server", "serve", str(repository), "--port-file", str(ports), *options]
    with log.open("w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=ENVIRONMENT)
    try:
        limit = time.monotonic() + 60
        while not ports.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < limit
            time.sleep(0.02)
        lines = [line.split(" ", 1) for line in ports.read_text().splitlines()]
        served = Served(
            process,
            [address for kind, address in lines if kind == "grpc"],
            next((address for kind, address in lines if kind == "admin"), ""),
            log,
        )
        if ready:
            with Client(served.grpc[0]) as client:
                while not client.is_ready():
                    assert process.poll() is None, log.read_text()
                    assert time.monotonic() < limit
                    time.sleep(0.05)
        yield served
    finally:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_repository(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def served(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    options = ("--listen", "127.0.0.1:0", "--listen", f"unix:{folder}/h.sock", "--admin", "127.0.0.1:0")
    with serving(repository, folder, *options, "--log-level", "debug") as served:
        yield served


def test_both_listeners_answer(served: Served) -> None:
    assert len(served.grpc) == 2
    assert served.grpc[1].startswith("unix:")
    for address in served.grpc:
        with Client(address) as client:
            assert client.classify("mood", "good film").results[0].labels


def test_metrics_tell_latency_stages_batches_models_and_the_transport(served: Served) -> None:
    with Client(served.grpc[0]) as client:
        client.classify("mood", ["good", "bad"])
        with pytest.raises(Exception, match="moo"):
            client.classify("moo", "good")
    status, text = served.page("/metrics")
    assert status == 200
    for line in (
        'headrace_rpc_seconds_count{code="OK",method="Classify",model="mood",service="headrace.v1.ClassificationService"}',
        'headrace_rpc_seconds_count{code="NOT_FOUND",method="Classify",model="",'
        'service="headrace.v1.ClassificationService"} 1.0',
        'headrace_batch_stage_seconds_count{model="mood",stage="infer",version="1"}',
        'headrace_request_stage_seconds_count{model="mood",stage="preprocess",version="1"}',
        'headrace_batch_rows_count{model="mood",version="1"}',
        'headrace_queue_rows{model="mood",version="1"} 0.0',
        'headrace_model_state{model="mood",state="ready",version="1"} 1.0',
        'headrace_model_state{model="broken",state="failed",version="1"} 1.0',
        'headrace_model_info{device="cpu",engine="onnx",model="mood",precision="fp32"',
        'headrace_transport_info{name="direct",reason=""} 1.0',
        "headrace_ready 1.0",
        "process_resident_memory_bytes",
    ):
        assert line in text, line


def test_the_log_is_json_with_the_configuration_and_the_access(served: Served) -> None:
    with Client(served.grpc[0]) as client:
        mark = client.classify("mood", "good").timings.request_id
    until = time.monotonic() + 10  # the record of a call is written after its reply has gone out
    while not any(event.get("request_id") == mark for event in served.events()) and time.monotonic() < until:
        time.sleep(0.02)
    events = served.events()
    (configuration,) = [event for event in events if event["event"] == "configuration"]
    assert configuration["batching.max_batch_size"] == 16
    assert configuration["threads.num_workers"] != 0
    assert any(event["event"] == "listening" and event["transport"] == "direct" for event in events)
    (call,) = [event for event in events if event.get("request_id") == mark]
    assert (call["model"], call["code"]) == ("mood", "OK")
    assert any("broken" in str(event["event"]) and event["level"] == "error" for event in events)


def test_a_stopped_server_ends_with_0_and_removes_its_files(repository: Path, tmp_path: Path) -> None:
    options = ("--listen", f"unix:{tmp_path}/h.sock", "--admin", "127.0.0.1:0", "--transport", "aio")
    with serving(repository, tmp_path, *options) as served:
        assert served.page("/readyz") == (200, "ready\n")
        assert 'headrace_transport_info{name="aio",reason=""} 1.0' in served.page("/metrics")[1]
        assert served.end(signal.SIGINT) == 0
        assert not (tmp_path / "ports").exists()
        assert not (tmp_path / "h.sock").exists()
        assert served.events()[-1]["event"] == "stopped"


def test_a_signal_lets_requests_in_flight_be_answered(repository: Path, tmp_path: Path) -> None:
    with serving(repository, tmp_path, "--listen", "127.0.0.1:0", "--admin", "off") as served:
        answers: list[int] = []
        with Client(served.grpc[0]) as client:
            texts = ["the cat sat on the mat"] * 900

            def ask() -> None:
                answers.append(len(client.embed("sentence", texts).vectors))

            client.embed("sentence", "cat")
            asking = [threading.Thread(target=ask) for _ in range(2)]
            for thread in asking:
                thread.start()
            time.sleep(0.05)
            assert served.end() == 0
            for thread in asking:
                thread.join(10)
        assert answers == [900, 900]
        (draining,) = [event for event in served.events() if event["event"] == "draining"]
        assert draining["num_calls"], "nothing was in flight, so nothing was shown"


def test_a_second_signal_ends_it_at_once(repository: Path, tmp_path: Path) -> None:
    options = ("--listen", "127.0.0.1:0", "--admin", "off")
    with serving(repository, tmp_path, *options) as served, Client(served.grpc[0]) as client:
        go_on = threading.Event()

        def batches() -> Iterator[str]:
            yield "cat"
            go_on.wait(30)

        answers = client.embed_stream("sentence", batches())
        next(answers)  # a stream that stays open holds the drain up
        served.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert served.process.poll() is None
        began = time.monotonic()
        assert served.end() == 128 + signal.SIGTERM
        assert time.monotonic() - began < 5
        go_on.set()


def failed(repository: Path, *options: str) -> str:
    """What `serve` says on standard error when it ends with status 1."""
    command = [sys.executable, "-m", "headrace_server", "serve", str(repository), "--log-level", "error", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith("{"))


def test_a_port_that_is_taken_is_named(repository: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        assert address in failed(repository, "--listen", address, "--admin", "off")
        assert f"admin.listen: '{address}'" in failed(repository, "--listen", "127.0.0.1:0", "--admin", address)


def test_a_server_without_a_model_ends_and_says_why(repository: Path, tmp_path: Path) -> None:
    said = failed(tmp_path, "--listen", "127.0.0.1:0", "--admin", "off")
    assert said.startswith("headrace: no model could be loaded: no model found")
    assert "cure: `headrace inspect DIR`" in said
    strict = failed(repository, "--listen", "127.0.0.1:0", "--admin", "off", "--strict")
    assert "--strict, and not every model could be loaded: broken/1" in strict


def test_catalogs_are_served_and_measured_without_a_model_that_loads(tmp_path: Path) -> None:
    models, catalogs, folder = (tmp_path / name for name in ("models", "catalogs", "served"))
    for made in (models, models / "broken" / "1", folder):
        made.mkdir(parents=True, exist_ok=True)
    (models / "broken" / "1" / "model.onnx").write_bytes(b"no graph")
    options = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--catalogs", str(catalogs))
    with serving(models, folder, *options) as served:
        with Client(served.grpc[0]) as client:
            client.create_catalog("points", 2, metric="dot")
            client.upsert("points", ["a", "b"], vectors=[[1, 0], [0, 1]])
            assert client.recommend("points", vectors=[0, 1], k=1).results[0][0].id == "b"
            with pytest.raises(HeadraceError, match="broken"):
                client.embed("broken", "x")
        with grpc.insecure_channel(served.grpc[0]) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            states = {
                service: check(health_pb2.HealthCheckRequest(service=service), timeout=20).status
                for service in ("", "headrace.v1.CatalogService", "headrace.v1.EmbeddingService", "model:broken")
            }
        assert [name for name, state in states.items() if state == health_pb2.HealthCheckResponse.SERVING] == [
            "", "headrace.v1.CatalogService",
        ]  # fmt: skip
        assert served.page("/readyz")[0] == 200
        text = served.page("/metrics")[1]
        for line in (
            "headrace_ready 1.0",
            'headrace_catalog_items{catalog="points"} 2.0',
            'headrace_catalog_revision{catalog="points"} 1.0',
            'headrace_catalog_indexed_revision{catalog="points"} 1.0',
            'headrace_catalog_disk_bytes{catalog="points"}',
            'headrace_catalog_memory_bytes{catalog="points"}',
        ):
            assert line in text, line
        assert served.end() == 0
        assert "catalogs alone are served: no model could be loaded: broken/1" in served.log.read_text()


def test_a_tour_asks_what_the_server_can_and_says_what_it_cannot(served: Served) -> None:
    command = [sys.executable, "-m", "headrace_server", "tour", served.grpc[0]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mood/1: classify" in done.stdout
    assert "(no model here does that)" in done.stdout  # the table's columns are not those of the demo's
    assert "questions answered" in done.stdout
