"""The command line: options and environment into a configuration, and failures in one line with an exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from contract.services_models import write_repository
from typer.testing import CliRunner
from unit.models.small_models import write_classifier, write_folder

from headrace_server.cli import running
from headrace_server.cli.app import app
from headrace_server.config import EngineOptions, LifecycleOptions, ManagementOptions, ServerConfig, TracingOptions


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[ServerConfig, dict[str, Any]]]:
    """The configurations that `serve` would run, instead of running them."""
    seen: list[tuple[ServerConfig, dict[str, Any]]] = []
    monkeypatch.setattr(running, "run_server", lambda config, **more: seen.append((config, more)))
    return seen


def run(*arguments: str, **environment: str) -> Any:
    return CliRunner().invoke(app, arguments, env=environment)


def test_options_become_the_configuration(configured: list[tuple[ServerConfig, dict[str, Any]]]) -> None:
    result = run(
        "serve", "models", "--listen", "127.0.0.1:0", "--listen", "unix:/tmp/h.sock", "--admin", "off",
        "--transport", "aio", "--device", "cpu", "--precision", "int8", "--workers", "3", "--intra-op-threads", "2",
        "--max-batch-size", "4", "--max-delay-ms", "1.5", "--max-queue-rows", "9", "--max-message-bytes", "1000",
        "--max-concurrent-streams", "7", "--no-reflection", "--log-level", "debug", "--log-format", "text",
        "--drain-grace-s", "2", "--port-file", "ports", "--strict", "--tls-cert", "c", "--tls-key", "k",
        "--tls-client-ca", "a", "--management", "unix:/tmp/m.sock", "--management-on-data-port",
        "--versions", "latest:2", "--log-slow-s", "0.5",
        "--poll-s", "5", "--state", "off", "--memory-budget-mb", "900", "--idle-unload-s", "60",
        "--trace-endpoint", "http://collector:4318", "--trace-sample-ratio", "0.5", "--engine-cache", "off",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    ((config, more),) = configured
    assert config.repository == Path("models")
    transport = config.transport
    assert transport is not None
    assert transport.listen == ("127.0.0.1:0", "unix:/tmp/h.sock")
    assert (transport.transport, transport.reflection, transport.drain_grace_s) == ("aio", False, 2)
    assert (transport.max_message_bytes, transport.max_concurrent_streams) == (1000, 7)
    assert transport.tls is not None
    assert transport.tls.client_authorities == Path("a")
    assert config.admin.listen is None
    assert config.engine == EngineOptions(device="cpu", precision="int8")
    assert (config.threads.num_workers, config.threads.intra_op_threads) == (3, 2)
    batching = config.batching
    assert (batching.max_batch_size, batching.max_delay_ms, batching.max_queue_rows) == (4, 1.5, 9)
    assert (config.log_level, config.log_format, config.log_slow_s) == ("debug", "text", 0.5)
    assert config.management == ManagementOptions(listen="unix:/tmp/m.sock", on_data_port=True)
    assert config.lifecycle == LifecycleOptions(versions="latest:2", poll_s=5, memory_budget_mb=900, idle_unload_s=60)
    assert config.tracing == TracingOptions(endpoint="http://collector:4318", sample_ratio=0.5)
    assert more == {"port_file": Path("ports"), "strict": True, "remark": ""}


def test_defaults_are_those_of_the_configuration(configured: list[tuple[ServerConfig, dict[str, Any]]]) -> None:
    assert run("serve", "models", XDG_CACHE_HOME="/cache").exit_code == 0
    ((config, more),) = configured
    assert config == ServerConfig(
        repository=Path("models"),
        management=ManagementOptions(listen="127.0.0.1:50052"),
        engine=EngineOptions(cache=Path("/cache/headrace/engines")),
    )
    assert more == {"port_file": None, "strict": False, "remark": ""}


def test_the_environment_stands_in_for_options(configured: list[tuple[ServerConfig, dict[str, Any]]]) -> None:
    environment = {
        "HEADRACE_REPOSITORY": "other",
        "HEADRACE_LISTEN": "127.0.0.1:1 127.0.0.1:2",
        "HEADRACE_ADMIN": "off",
        "HEADRACE_MAX_BATCH_SIZE": "2",
        "HEADRACE_REFLECTION": "0",
    }
    assert run("serve", **environment).exit_code == 0
    assert run("serve", "models", "--max-batch-size", "3", **environment).exit_code == 0
    (first, _), (second, _) = configured
    assert first.repository == Path("other")
    assert first.transport is not None
    assert first.transport.listen == ("127.0.0.1:1", "127.0.0.1:2")
    assert not first.transport.reflection
    assert first.admin.listen is None
    assert first.batching.max_batch_size == 2
    assert (second.repository, second.batching.max_batch_size) == (Path("models"), 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max-batch-size", "0"), "--max-batch-size: 0, from 1 to 65536"),
        (("--device", "gpu"), "--device: 'gpu', one of auto"),
        (("--workers", "-1"), "--workers: -1"),
        (("--drain-grace-s", "-1"), "--drain-grace-s: -1"),
        (("--versions", "newest"), "--versions: 'newest', one of all, latest, latest:N"),
        (("--poll-s", "-1"), "--poll-s: -1"),
        (("--trace-sample-ratio", "2"), "--trace-sample-ratio: 2"),
        (("--state", "/nowhere/at/all/state.json"), "--state: /nowhere/at/all/state.json cannot be written"),
        (("--tls-cert", "c"), "both a certificate and its key"),
        (("--max-batch-size", "many"), "--max-batch-size"),
        (("--transport", "carrier-pigeon"), "--transport"),
        (("--colour",), "--colour"),
    ],
)
def test_a_wrong_option_is_named_with_exit_status_2(arguments: tuple[str, ...], said: str) -> None:
    result = run("serve", "models", *arguments, NO_COLOR="1", COLUMNS="200", TERM="dumb")
    assert result.exit_code == 2
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_inspect_says_what_it_found_and_how_it_is_read(tmp_path: Path) -> None:
    write_classifier(tmp_path / "mood" / "1")
    write_folder(tmp_path / "nothing" / "1", notes__txt="no model")
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 1, "one version cannot be served"
    for word in ("mood/1", "classify", "huggingface", "3: good, bad, neutral", "nothing/1", "cannot be served"):
        assert word in result.stdout


def test_inspect_speaks_json(tmp_path: Path) -> None:
    write_repository(tmp_path)
    found = json.loads(run("inspect", str(tmp_path), "--json").stdout)
    by_key = {(model["name"], model["version"]): model for model in found["models"]}
    assert set(by_key) >= {("mood", "1"), ("sentence", "2"), ("table", "1"), ("broken", "1")}
    assert by_key["broken", "1"]["problem"]
    sentence = by_key["sentence", "2"]
    assert (sentence["embedding_dimension"], sentence["problem"], sentence["tasks"]) == (8, "", ["embed", "infer"])
    assert sentence["digest"]
    assert [column["name"] for column in by_key["table", "1"]["features"]] == ["age", "colour"]


def test_inspecting_what_holds_no_model_fails_with_the_cure(tmp_path: Path) -> None:
    result = run("inspect", str(tmp_path))
    assert result.exit_code == 1
    assert "no model found" in result.stdout
    missing = run("inspect", str(tmp_path / "missing"))
    assert missing.exit_code == 1
    assert missing.stderr.startswith("headrace: ")
    assert "Traceback" not in missing.stderr


def test_a_demo_model_that_is_not_known_is_named_with_those_that_are(tmp_path: Path) -> None:
    pytest.importorskip("skl2onnx", reason="the demo extra is not installed")
    result = run("demo", "build", str(tmp_path / "demo"), "--cache", str(tmp_path / "cache"), "--only", "maxilm")
    assert result.exit_code == 1
    assert "maxilm" in result.stderr
    assert "cure: name one of" in result.stderr
    assert "minilm" in result.stderr


def test_training_without_its_encoder_names_the_cure(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the demo extra is not installed")
    result = run("demo", "train-spam", str(tmp_path), "--cache", str(tmp_path), "--output", str(tmp_path / "head"))
    assert result.exit_code == 1
    assert "cure: run: headrace demo build" in result.stderr


def test_a_tour_of_nobody_fails_in_one_line() -> None:
    result = run("tour", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "no answer from 127.0.0.1:1" in result.stderr
    assert "cure: `headrace serve DIR`" in result.stderr


def test_version_names_the_distribution_and_its_libraries() -> None:
    assert run("version").stdout.startswith("headrace ")
    assert "onnxruntime" in run("version", "--verbose").stdout


def test_help_lists_the_commands() -> None:
    result = run("--help", NO_COLOR="1", TERM="dumb")
    for command in ("serve", "inspect", "demo", "tour", "version"):
        assert command in result.stdout
