"""`headrace models …` against a running server, as an operator types it; and the Python client underneath."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from contract.managed_models import Managed, managing, write_broken, write_mood
from test_serve_command import serving
from typer.testing import CliRunner, Result

from headrace_client import (
    AsyncClient,
    Client,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    RollbackRule,
    Shadow,
    TrafficSplit,
)
from headrace_server.cli.app import app


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mood(tmp_path_factory.mktemp("models"), "1", "2")


@pytest.fixture(scope="module")
def managed(repository: Path) -> Iterator[Managed]:
    with managing(repository) as served:
        yield served


@pytest.fixture
def address(managed: Managed) -> str:
    assert managed.server.addresses.management is not None
    return managed.server.addresses.management


def run(address: str, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["models", *arguments, "--address", address], env={"NO_COLOR": "1"})


def told(address: str, *arguments: str) -> Any:
    result = run(address, *arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_list_shows_every_version_with_state_labels_and_traffic(address: str) -> None:
    try:
        assert told(address, "label", "mood", "stable", "1") == {"stable": "1"}
        traffic = told(address, "split", "mood", "1=3", "2=1", "--max-error-rate", "0.5", "--max-p99-ms", "250")
        assert traffic["split"]["shares"] == {"1": 3, "2": 1}
        assert [rule["max_p99_latency_s"] for rule in traffic["split"]["rules"]] == [None, 0.25]
        assert told(address, "shadow", "mood", "2", "--sample-rate", "0.5")["shadow"]["sample_rate"] == 0.5
        lines = [line.split() for line in run(address, "list").stdout.splitlines()]
        assert ["mood", "1", "ready", "serves", "stable", "75.0%", "fp32", "cpu"] in lines
        assert ["mood", "2", "ready", "serves", "25.0%,", "shadow", "of", "50%", "fp32", "cpu"] in lines
        loaded = run(address, "load", "mood", "2").stdout.splitlines()[-1].split()
        assert "25.0%," in loaded, "of the whole split, though one version is shown"
        said = run(address, "split", "mood").stdout
        assert "1 75.0%, 2 25.0%" in said
        assert "p99 over 250 ms in 60 s, from 20 requests" in said
    finally:
        told(address, "split", "mood", "--clear")
        told(address, "shadow", "mood", "--clear")
        told(address, "label", "mood", "stable", "--remove")
    after = told(address, "split", "mood")
    assert (after["split"], after["shadow"], after["labels"]) == (None, None, {})


def test_load_waits_until_the_version_answers_and_says_why_one_does_not(
    address: str, managed: Managed, repository: Path
) -> None:
    write_mood(repository, "3")
    loaded = told(address, "load", "mood")
    assert (loaded["version"], loaded["state"], loaded["serving"]) == ("3", "ready", True)
    assert managed.version_that_answers() == "3"
    (unloaded,) = told(address, "unload", "mood", "3")
    assert unloaded["version"] == "3"
    assert managed.version_that_answers() == "2"
    write_broken(repository, "4")
    failed = run(address, "load", "mood", "4")
    assert failed.exit_code == 1
    assert "model 'mood' version '4' could not be loaded: " in failed.stderr
    assert managed.version_that_answers() == "2"
    assert "failed" in run(address, "list", "mood").stdout


def test_reset_has_the_models_own_file_hold_again(address: str, managed: Managed, repository: Path) -> None:
    def state_of(version: str) -> str:
        return next(str(each["state"]) for each in told(address, "list", "mood") if each["version"] == version)

    file = repository / "mood" / "versions.toml"
    try:
        told(address, "label", "mood", "stable", "2")
        told(address, "split", "mood", "1=1", "2=1")
        told(address, "shadow", "mood", "1")
        told(address, "unload", "mood", "2")
        file.write_text('labels = { stable = "1", old = "1" }\nshadow = { version = "2", sample_rate = 0.5 }\n')
        for _ in range(2):  # the first look has nothing to compare with
            managed.server._repository.look()
        before = told(address, "split", "mood")
        assert before["labels"] == {"stable": "2"}, "what was decided stands over the file"
        after = told(address, "reset", "mood", "--section", "labels")
        assert after["labels"] == {"stable": "1", "old": "1"}
        assert (after["split"], after["shadow"]) == (before["split"], before["shadow"])
        after = told(address, "reset", "mood")
        assert (after["split"], after["shadow"]) == (None, {"version": "2", "sample_rate": 0.5})
        until = time.monotonic() + 20
        while state_of("2") != "ready":  # what was unloaded by hand is being loaded
            assert time.monotonic() < until, run(address, "list").stdout
            time.sleep(0.02)
        assert "stable: 1" in run(address, "reset", "mood").stdout, "nothing is left to forget"
    finally:
        file.unlink(missing_ok=True)
        managed.server._repository.look()
        told(address, "load", "mood", "2")
        told(address, "reset", "mood")
    assert told(address, "split", "mood")["labels"] == {}


def test_stats_count_requests(address: str, managed: Managed) -> None:
    def answered() -> int:
        return next(each["num_succeeded"] for each in told(address, "stats", "mood") if each["version"] == "2")

    before = answered()
    managed.version_that_answers(version="2")
    assert answered() == before + 1
    header, *lines = run(address, "stats").stdout.splitlines()
    assert header.split()[:4] == ["model", "version", "answered", "failed"]
    assert any(line.startswith("mood") for line in lines)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("label", "mood", "stable"), 2, "give a VERSION, or --remove"),
        (("label", "mood", "Stable", "1"), 1, "label: 'Stable'"),
        (("split", "mood", "1"), 2, "must be VERSION=WEIGHT"),
        (("split", "mood", "1=1", "--clear"), 2, "give shares, or --clear"),
        (("split", "mood", "1=1", "2=1", "1=5"), 2, "version '1' has a share already"),
        (("split", "mood", "--max-error-rate", "0.1"), 2, "rules need shares"),
        (("split", "mood", "1=0", "2=0"), 1, "every weight is 0"),
        (("split", "mood", "1=1", "--max-error-rate", "7"), 1, "split.rollback_rules[0].max_error_rate: 7.0"),
        (("split", "mood", "1=99999999999"), 2, "99999999999"),
        (("shadow", "mood", "2", "--sample-rate", "2"), 1, "sample_rate: 2.0"),
        (("shadow", "mood", "2", "--clear"), 2, "give a VERSION, or --clear"),
        (("load", "moood"), 1, "moood"),
        (("unload", "mood", "99"), 1, "99"),
        (("reset", "nobody"), 1, "'nobody' is not in the repository"),
        (("reset", "mood", "--section", "policy"), 2, "section 'policy', must be one of labels"),
        (("list", "nobody"), 1, "'nobody' is not in the repository"),
        (("list", "--no-such-option"), 2, "--no-such-option"),
    ],
)
def test_what_is_refused_is_one_line_and_an_exit_status(
    address: str, arguments: tuple[str, ...], status: int, said: str
) -> None:
    result = run(address, *arguments)
    assert (result.exit_code, said in result.stderr) == (status, True), result.output
    assert "Traceback" not in result.output


def test_data_listener_and_a_silent_address_are_told_apart(managed: Managed) -> None:
    data = managed.server.addresses.grpc[0]
    assert run(data, "list").exit_code == 0
    denied = run(data, "unload", "mood")
    assert denied.exit_code == 1
    assert "management listener" in denied.stderr
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        nobody = run(f"127.0.0.1:{unused.getsockname()[1]}", "list", "--timeout-s", "2")
    assert nobody.exit_code == 3
    assert "cure: " in nobody.stderr


def test_record_fills_in_what_a_version_answers(tmp_path: Path) -> None:
    folder = write_mood(tmp_path, "1") / "mood" / "1"
    (folder / "warmup").mkdir()
    request = folder / "warmup" / "smoke.json"
    request.write_text(json.dumps({"task": "classify", "inputs": [{"text": "red"}]}))
    result = CliRunner().invoke(app, ["models", "record", str(folder)])
    assert result.exit_code == 0, result.output
    assert "smoke.json: recorded" in result.stdout
    assert json.loads(request.read_text())["expected"][0][0]["label"] in ("good", "bad", "neutral")
    assert "nothing to record" in CliRunner().invoke(app, ["models", "record", str(folder)]).stdout
    request.write_text(json.dumps({"task": "classify", "inputs": 7}))
    wrong = CliRunner().invoke(app, ["models", "record", str(folder)])
    assert wrong.exit_code == 1
    assert "smoke.json" in wrong.stderr


def test_client_manages_and_its_errors_are_typed(address: str, managed: Managed) -> None:
    with Client(address) as client:
        rule = RollbackRule(max_disagreement=0.25, window_s=30, min_requests=5)
        split = TrafficSplit(shares={"1": 1, "2": 9}, rules=(rule,))
        try:
            assert client.set_traffic_split("mood", split.shares, split.rules) == split
            assert client.set_shadow("mood", "1") == Shadow("1", 1.0)
            assert client.set_model_label("mood", "canary", "2") == {"canary": "2"}
            traffic = client.traffic("mood")
            assert traffic.serving_version == "2", "the version with the largest share"
            assert (traffic.split, traffic.shadow, traffic.labels) == (split, Shadow("1", 1.0), {"canary": "2"})
            assert client.model("mood", label="canary").version_labels == ("canary",)
        finally:
            client.set_traffic_split("mood", {})
            client.set_shadow("mood", "")
            client.set_model_label("mood", "canary", "")
        assert client.traffic("mood").split is None
        with pytest.raises(InvalidArgument) as wrong:
            client.set_traffic_split("mood", {"1": 0})
        assert wrong.value.violations[0].field == "split.shares"
        with pytest.raises(NotFound) as missing:
            client.load_model("mood", version="77")
        assert missing.value.resource is not None
        assert missing.value.resource.name == "mood/77"
    with Client(managed.server.addresses.grpc[0]) as data, pytest.raises(PermissionDenied):
        data.unload_model("mood")
    with pytest.raises(ValueError, match="exactly one"):
        RollbackRule(max_error_rate=0.1, max_disagreement=0.1)


def test_async_client_manages_alike(address: str, repository: Path) -> None:
    write_broken(repository, "5")

    async def manage() -> None:
        async with AsyncClient(address) as client:
            loaded, listed = await asyncio.gather(client.load_model("mood", version="1", serve=False), client.models())
            assert (loaded.version, loaded.state) == ("1", "ready")
            assert {info.name for info in listed} == {"mood"}
            assert await client.set_model_label("mood", "a", "1") == {"a": "1"}
            assert await client.set_model_label("mood", "a", "") == {}
            assert (await client.set_traffic_split("mood", {"1": 1})).shares == {"1": 1}
            assert (await client.set_traffic_split("mood", {})).shares == {}
            assert await client.set_shadow("mood", "") is None
            assert (await client.traffic("mood")).split is None
            assert await client.set_model_label("mood", "b", "1") == {"b": "1"}
            assert (await client.reset_model("mood", ["labels", "split"])).labels == {}
            assert (await client.model_statistics("mood", version="1"))[0].version == "1"
            with pytest.raises(FailedPrecondition):
                await client.load_model("mood", version="5")
            assert [info.version for info in await client.unload_model("mood", version="5")] == ["5"]

    asyncio.run(manage())


def test_served_process_is_managed_where_it_says_and_remembers(tmp_path: Path) -> None:
    models = write_mood(tmp_path / "models", "1", "2")
    folders = [tmp_path / name for name in ("first", "again", "beside")]
    for folder in folders:
        folder.mkdir()
    options = ("--listen", "127.0.0.1:0", "--admin", "off", "--versions", "latest")

    def management(folder: Path) -> str:
        lines = dict(line.split(" ", 1) for line in (folder / "ports").read_text().splitlines())
        return lines["management"]

    with serving(models, folders[0], *options):
        address = management(folders[0])
        states = {info["version"]: info["state"] for info in told(address, "list")}
        assert states == {"1": "unloaded", "2": "ready"}
        assert told(address, "load", "mood", "1")["serving"]
        assert told(address, "label", "mood", "stable", "1") == {"stable": "1"}
    assert (models / ".headrace-state.json").is_file()
    with serving(models, folders[1], *options) as served, Client(served.grpc[0]) as client:
        assert told(management(folders[1]), "split", "mood")["labels"] == {"stable": "1"}
        assert client.classify("mood", "red").model.version == "1", "what was made to serve still does"
        assert client.classify("mood", "red", label="stable").model.version == "1"
        with serving(models, folders[2], *options) as second:
            events = [event for event in second.events() if "another server uses" in str(event)]
            assert events, "the second server of a directory says that it keeps nothing"
            assert second.end() == 0
        assert served.end() == 0
