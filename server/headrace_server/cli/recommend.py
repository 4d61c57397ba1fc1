"""`headrace recommend train`: a recommender from a file of interactions, into catalogs, with a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace_server.cli.faults import USAGE, fail, preparing

if TYPE_CHECKING:
    from headrace_server.prepare.recommend_catalogs import CatalogAccess
    from headrace_server.prepare.recommend_train import Trained

__all__ = ["recommend"]

recommend = typer.Typer(help="Fit recommenders to interactions.", no_args_is_help=True)

_MAX_USER_NUMBERS = 50_000_000  # of users' vectors that are written without being asked for: 200 MB


class ModelChoice(StrEnum):
    """Which model is fitted."""

    EASE = "ease"
    ALS = "als"


def _option(help_text: str, panel: str, **more: Any) -> Any:
    return typer.Option(help=help_text, rich_help_panel=panel, **more)


_INPUT, _OUTPUT, _MODEL, _TEST = "Interactions", "Catalogs", "Model", "Test"


# fmt: off
@recommend.command()
def train(
    interactions: Annotated[Path, typer.Argument(
        metavar="FILE", help=".csv, .tsv or .parquet with columns user, item and, if you like, weight, timestamp.")],
    catalogs: Annotated[Path | None, _option(
        "Directory of catalogs to write to; no server may have it open.", _OUTPUT, envvar="HEADRACE_CATALOGS")] = None,
    address: Annotated[str | None, _option("host:port or unix:PATH of a server to write to, instead.", _OUTPUT)] = None,
    name: Annotated[str, _option("The catalog of the items; that of the users is NAME.users.", _OUTPUT)] = "items",
    users: Annotated[bool | None, _option(
        "Write the users too. (default: where their vectors take less than 200 MB)", _OUTPUT,
        show_default=False)] = None,
    overwrite: Annotated[bool, _option("Let it take the place of a catalog that is there.", _OUTPUT)] = False,
    report: Annotated[Path | None, _option(
        "Folder for the report, NAME.md and NAME.json; without it the page is printed.", _OUTPUT)] = None,
    items: Annotated[Path | None, _option(
        "What is known of the items: .csv, .tsv or .parquet with a column as --item-column; kept in their payloads.",
        _INPUT)] = None,
    user_column: Annotated[str, _option("", _INPUT)] = "user",
    item_column: Annotated[str, _option("", _INPUT)] = "item",
    weight_column: Annotated[str, _option(
        "Read where it is there: how much an interaction counts.", _INPUT)] = "weight",
    timestamp_column: Annotated[str, _option(
        "Read where it is there: the latest of each user is held out.", _INPUT)] = "timestamp",
    min_user_items: Annotated[int, _option("Leave out users with fewer items.", _INPUT, min=1)] = 2,
    min_item_users: Annotated[int, _option("Leave out items with fewer users.", _INPUT, min=1)] = 2,
    model: Annotated[ModelChoice, _option("ease: to 5000 items; als: to millions.", _MODEL)] = ModelChoice.EASE,
    regularization: Annotated[float, _option("0: chosen (ease), 10 (als).", _MODEL, min=0)] = 0.0,
    dimension: Annotated[int, _option("ease: 0 is exact, one an item; fewer are smaller.", _MODEL, min=0)] = 0,
    factors: Annotated[int, _option("als: dimensions.", _MODEL, min=1, max=4096)] = 64,
    alpha: Annotated[float, _option("als: how much surer a weight of 1 makes.", _MODEL, min=0.0)] = 10.0,
    iterations: Annotated[int, _option("als: passes.", _MODEL, min=1, max=1000)] = 15,
    k: Annotated[int, _option("Length of the lists that are tested.", _TEST, min=1, max=1000)] = 10,
    seed: Annotated[int, _option("Of what is held out, and of als.", _TEST, min=0)] = 0,
) -> None:
    """Fit a recommender to a file of interactions, test it on held-out ones, and write it into catalogs."""
    # fmt: on
    if (catalogs is None) == (address is None):
        raise fail("give --catalogs or --address, one of them", cure="`headrace recommend train --help`", status=USAGE)
    with preparing():
        from headrace_server.items.catalog import require_name
        from headrace_server.prepare.recommend_catalogs import (
            item_catalog,
            require_absent,
            user_catalog,
            write_catalog,
        )
        from headrace_server.prepare.recommend_files import InteractionColumns, read_interactions, read_items
        from headrace_server.prepare.recommend_train import TrainOptions
        from headrace_server.prepare.recommend_train import train as train_model

        names = (name, f"{name}.users")
        for each in names:
            require_name("--name", each)
        columns = InteractionColumns(
            user=user_column, item=item_column, weight=weight_column, timestamp=timestamp_column
        )
        options = TrainOptions(
            model=model.value, k=k, seed=seed, min_user_items=min_user_items, min_item_users=min_item_users,
            regularization=regularization, dimension=dimension, factors=factors, alpha=alpha, iterations=iterations,
        )  # fmt: skip
        with _access(catalogs, address) as access:  # open before the work: what is in the way is told at once
            for each in () if overwrite else names:
                require_absent(access, each)
            table, num_repeated = read_interactions(interactions, columns)
            known = None if items is None else read_items(items, item_column)
            trained = train_model(table, options, num_repeated=num_repeated)
            contents = [item_catalog(name, trained, known=known, description=_description(trained, interactions))]
            if users or (users is None and len(trained.table.users) * trained.model.dimension <= _MAX_USER_NUMBERS):
                contents.append(user_catalog(names[1], trained, description=f"users of catalog {name}"))
            for content in contents:
                write_catalog(access, content, overwrite=overwrite)
                print(f"catalog {content.spec.name}: {len(content.ids)} vectors of {content.spec.dimension}")
    _tell(trained, name, report)


def _description(trained: Trained, interactions: Path) -> str:
    table = trained.table
    return f"{trained.model.name} of {len(table.users)} users, {len(table)} pairs of {interactions.name}"[:1000]


def _tell(trained: Trained, name: str, folder: Path | None) -> None:
    page = trained.report.to_markdown()
    if folder is None:
        print(f"\n{page}", end="")
        return
    with preparing():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(page, encoding="utf-8")
        (folder / f"{name}.json").write_text(trained.report.to_json() + "\n", encoding="utf-8")
    print(f"report: {folder / name}.md, .json")


@contextmanager
def _access(catalogs: Path | None, address: str | None) -> Iterator[CatalogAccess]:
    """The place to write to, open."""
    if catalogs is not None:
        from headrace_server.items.store import CatalogStore
        from headrace_server.prepare.recommend_catalogs import StoreAccess

        store = CatalogStore(catalogs)
        try:
            yield StoreAccess(store)
        finally:
            store.close()
        return
    try:
        from headrace_client import Client, HeadraceError
    except ImportError:
        cure = "pip install headrace-client"
        raise fail("a server is written to through headrace-client, which is not installed", cure=cure) from None
    from headrace_server.cli.recommend_server import ServerAccess

    assert address is not None
    try:
        with Client(address) as client:
            yield ServerAccess(client)
    except HeadraceError as error:
        raise fail(f"{address}: {error.message}", cure="`headrace serve DIR --catalogs DIR` starts a server") from None
