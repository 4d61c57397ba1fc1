"""A trained recommender, served: the server gives the lists that the report counted; the command writes there too."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from contract.services_models import write_repository
from typer.testing import CliRunner

from headrace_client import Client, NotFound
from headrace_server import Server
from headrace_server.cli.app import app
from headrace_server.cli.recommend_server import ServerAccess
from headrace_server.items.store import CatalogStore
from headrace_server.prepare.package_graph import PackageGraph
from headrace_server.prepare.package_graph_catalogs import GRAPH_OPTIONS, graph_interactions
from headrace_server.prepare.recommend_catalogs import (
    HISTORY_WEIGHT,
    StoreAccess,
    item_catalog,
    user_catalog,
    write_catalog,
)
from headrace_server.prepare.recommend_interactions import interactions_of
from headrace_server.prepare.recommend_report import Quality, evaluate
from headrace_server.prepare.recommend_split import HeldOut, leave_one_out
from headrace_server.prepare.recommend_train import Trained, TrainOptions, fit, train


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = write_repository(tmp_path_factory.mktemp("models"))
    with Server(repository=models, listen="127.0.0.1:0", catalogs=tmp_path_factory.mktemp("catalogs")) as server:
        yield server.addresses.grpc[0]


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address) as client:
        yield client


def served(client: Client, name: str, options: TrainOptions, max_users: int = 0) -> tuple[HeldOut, list[Quality]]:
    """A model fitted without the held-out part, in catalogs `name` and `name`.users; what its report says."""
    table = graph_interactions(PackageGraph.read()).of_at_least(
        user_items=options.min_user_items, item_users=options.min_item_users
    )
    held = leave_one_out(table, seed=options.seed, max_users=max_users)
    model = fit(held.train, options, options.regularization or 10.0)
    qualities = evaluate(model, held, k=options.k, seed=options.seed)
    trained = Trained(table=held.train, model=model, report=None)  # type: ignore[arg-type]
    for content in (item_catalog(name, trained), user_catalog(f"{name}.users", trained)):
        write_catalog(ServerAccess(client), content, overwrite=True)
    return held, qualities


def hit_rate(held: HeldOut, ask: Callable[[str, list[str]], Any]) -> float:
    """The share of users to whom the server gives their held-out item, asked with name and held-in history."""
    table = held.train

    def hit(place: int) -> bool:
        user, item = int(held.user[place]), table.items[held.item[place]]
        history = [table.items[each] for each in table.item[table.span(user)]]
        found = ask(table.users[user], history)
        assert found.exact
        ids = [each.id for each in found.results[0]]
        assert not set(ids) & set(history)
        return item in ids

    with ThreadPoolExecutor(4) as pool:
        return float(np.mean(list(pool.map(hit, range(len(held.user))))))


@pytest.mark.parametrize("max_users", [400, pytest.param(0, marks=pytest.mark.full)])
def test_served_histories_and_users_hit_as_often_as_the_report_says(client: Client, max_users: int) -> None:
    held, (by_user, weighted, alike, popular, _) = served(client, "graph", GRAPH_OPTIONS, max_users)
    weights = {}
    for first in range(0, len(held.train.items), 100):
        for item in client.get("graph", held.train.items[first : first + 100]):
            weights[item.id] = item.payload[HISTORY_WEIGHT]

    assert weighted.hit_rate == hit_rate(
        held, lambda _, history: client.recommend("graph", history={each: weights[each] for each in history})
    )
    assert alike.hit_rate == hit_rate(held, lambda _, history: client.recommend("graph", items=history))
    assert by_user.hit_rate == hit_rate(
        held, lambda user, history: client.recommend("graph", user=("graph.users", user), exclude_ids=history)
    )
    assert by_user.low > popular.high, "well above popularity, beyond chance"


def test_served_als_hits_as_often_as_its_report_says(client: Client) -> None:
    pytest.importorskip("implicit", reason="the train extra is not installed")
    options = TrainOptions(model="als", factors=32, min_user_items=4, min_item_users=20)
    held, (by_user, alike, *_) = served(client, "factors", options, max_users=300)
    assert by_user.hit_rate == hit_rate(
        held, lambda user, history: client.recommend("factors", user=("factors.users", user), exclude_ids=history)
    )
    assert alike.hit_rate == hit_rate(held, lambda _, history: client.recommend("factors", items=history))


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """A file of interactions of the graph's larger packages."""
    path = tmp_path / "events.tsv"
    pairs = [pair for pair in PackageGraph.read().pairs() if pair[0] < "python3-e"]
    path.write_text("user\titem\n" + "".join(f"{user}\t{item}\n" for user, item in pairs), encoding="utf-8")
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["recommend", "train", *map(str, arguments)], env={"HEADRACE_CATALOGS": None})


def test_the_command_writes_to_a_directory_and_reports(events: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.csv"
    known.write_text("item,kind,rank\npython3-numpy,maths,1\npython3-six,old,2\n", encoding="utf-8")
    options = ("--min-item-users", 5, "--regularization", 30, "--items", known, "--name", "deps")
    done = run(events, "--catalogs", tmp_path / "catalogs", "--report", tmp_path / "reports", *options)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "reports" / "deps.json").read_text(encoding="utf-8"))
    assert "| by the history, weighted |" in (tmp_path / "reports" / "deps.md").read_text(encoding="utf-8")
    assert report["qualities"][0]["hit_rate"] > report["qualities"][3]["hit_rate"]
    store = CatalogStore(tmp_path / "catalogs")
    try:
        assert [info.spec.name for info in store.list_catalogs()[0]] == ["deps", "deps.users"]
        info = store.describe("deps")
        fields = {field.name: field.type.value for field in info.spec.fields}
        assert fields == {"kind": "string", "rank": "integer", "num_users": "integer", "history_weight": "number"}
        assert info.num_items == report["num_items"]
    finally:
        store.close()


def test_a_catalog_that_is_there_is_kept_unless_it_may_be_overwritten(
    events: Path, address: str, client: Client
) -> None:
    options = ("--address", address, "--name", "again", "--min-item-users", 5, "--regularization", 30)
    assert run(events, *options).exit_code == 0
    first = client.catalog("again")
    refused = run(events, *options)
    assert refused.exit_code == 1
    assert "headrace: a catalog 'again' exists already" in refused.stderr
    assert client.catalog("again").create_time == first.create_time
    done = run(events, *options, "--overwrite")
    assert done.exit_code == 0, done.output
    assert client.catalog("again").create_time > first.create_time
    # another dimension: it cannot be swapped in, and takes its place all the same
    assert run(events, *options, "--overwrite", "--dimension", 7, "--no-users").exit_code == 0
    assert client.catalog("again").dimension == 7
    with pytest.raises(NotFound):
        client.catalog("again.new")


def test_bad_input_ends_the_command_in_one_line(tmp_path: Path) -> None:
    events = tmp_path / "events.csv"
    events.write_text("user,item,weight\na,x,1\na,y,-3\n", encoding="utf-8")
    cases = {
        (events, "--catalogs", tmp_path / "c"): "events.csv, line 3, column weight: '-3', must be a number above 0",
        (events, "--catalogs", tmp_path / "c", "--name", "a b"): "--name: 'a b', must be",
        (events, "--address", "127.0.0.1:1"): "127.0.0.1:1: ",
        (tmp_path / "none.csv", "--catalogs", tmp_path / "c"): "No such file",
    }
    for arguments, said in cases.items():
        done = run(*arguments)
        assert done.exit_code == 1, done.output
        assert said in done.stderr
        assert "Traceback" not in done.stderr
    both = run(events, "--catalogs", tmp_path / "c", "--address", "127.0.0.1:1")
    assert (both.exit_code, "give --catalogs or --address" in both.stderr) == (2, True)
    assert run(events).exit_code == 2


def test_what_training_leaves_half_written_is_removed(tmp_path: Path) -> None:
    table = interactions_of(["a", "a", "b", "b"], ["x", "y", "y", "z"])[0]
    trained = train(table, TrainOptions(regularization=1.0, min_item_users=1), report=lambda _: None)
    content = item_catalog("broken", trained)
    store = CatalogStore(tmp_path / "catalogs")

    def fails(*_: object) -> Any:
        raise KeyboardInterrupt

    try:
        with pytest.raises(KeyboardInterrupt):
            write_catalog(StoreAccess(store), replace(content, vectors=fails))
        assert store.list_catalogs()[0] == []
    finally:
        store.close()
