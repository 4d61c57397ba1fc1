"""`headrace catalog …`: the catalogs of a running server, as any client keeps them; their export and import."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace_server.cli.faults import USAGE, fail, plain_failures

if TYPE_CHECKING:
    from headrace_client import CatalogInfo, Client
    from headrace_client.arrow import ImportProgress
    from headrace_client.catalogs import CatalogOptions

__all__ = ["catalog"]

catalog = typer.Typer(help="Keep the catalogs of a running server; export and import them.", no_args_is_help=True)

_ARROW_CURE = "pip install 'headrace[arrow]'"
_SAY_AFTER_S = 1.0  # on a terminal

# fmt: off
Address = Annotated[str, typer.Argument(metavar="ADDRESS", help="host:port or unix:PATH")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The catalog.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Metric = Annotated[str | None, typer.Option(help="cosine or dot. (default: cosine)")]
Fields = Annotated[list[str] | None, typer.Option(
    "--field", metavar="NAME:TYPE",
    help="A payload field to filter on: string, integer, number, boolean, string_list; more than once.")]
EmbeddingModel = Annotated[str | None, typer.Option(metavar="MODEL", help="Embeds inputs given instead of vectors.")]
Description = Annotated[str | None, typer.Option(help="A sentence for people.")]
MaxPayloadBytes = Annotated[int | None, typer.Option(min=0, help="Largest payload of an item. (default: 65536)")]
# fmt: on


@catalog.command("list")
def list_(address: Address, as_json: AsJson = False) -> None:
    """Every catalog, by name."""
    with _client(address) as client:
        infos = client.catalogs()
    if as_json:
        print(json.dumps([_plain(info) for info in infos], indent=2))
        return
    print(f"{'items':>12}  {'dimension':>9}  {'metric':6}  {'MB on disk':>10}  name")
    for info in infos:
        size = f"{info.disk_bytes / 1e6:.1f}"
        print(f"{info.num_items:>12,}  {info.dimension:>9}  {info.spec.metric:6}  {size:>10}  {info.name}")


@catalog.command()
def describe(address: Address, name: Name, as_json: AsJson = False) -> None:
    """One catalog as it stands."""
    with _client(address) as client:
        info = client.catalog(name)
    print(json.dumps(_plain(info), indent=2) if as_json else _text(info))


@catalog.command()
def create(
    address: Address,
    name: Name,
    dimension: Annotated[int, typer.Option(min=1, max=65_536, help="Elements of each vector.")],
    metric: Metric = None,
    fields: Fields = None,
    embedding_model: EmbeddingModel = None,
    max_payload_bytes: MaxPayloadBytes = None,
    description: Description = None,
) -> None:
    """Make an empty catalog."""
    options = _options(metric, fields, embedding_model, max_payload_bytes, description)
    with _client(address) as client:
        print(_text(client.create_catalog(name, dimension, **options)))


@catalog.command()
def drop(
    address: Address,
    name: Name,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="No error where it is not there.")] = False,
) -> None:
    """Remove a catalog with all its items."""
    with _client(address) as client:
        print(f"{name}: dropped, with {client.drop_catalog(name, allow_missing=allow_missing):,} items")


@catalog.command()
def swap(
    address: Address, name: Name, other: Annotated[str, typer.Argument(metavar="OTHER", help="Its new items.")]
) -> None:
    """Let each name stand for the other's items, from one request to the next."""
    with _client(address) as client:
        print(_text(client.swap_catalogs(name, other)))


@catalog.command("export")
def export_(
    address: Address,
    name: Name,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="*.parquet, or *.arrow, *.feather, *.ipc.")],
    one_revision: Annotated[
        bool, typer.Option("--one-revision", help="Fail where the catalog is written meanwhile.")
    ] = False,
) -> None:
    """Write a catalog to a Parquet or Arrow file."""
    with _client(address) as client, _arrow():
        from headrace_client.arrow import export_catalog

        said = _Progress()
        report = export_catalog(
            client, name, file, one_revision=one_revision, on_progress=lambda count: said.say(f"{count:,} items")
        )
    said.clear()
    revisions = f"revision {report.revision}"
    if report.last_revision != report.revision:
        revisions = f"revisions {report.revision} to {report.last_revision}, for it was written meanwhile"
    print(f"{file}: {report.num_items:,} items of {revisions}; {file.stat().st_size / 1e6:.1f} MB")


@catalog.command("import")
def import_(
    address: Address,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="*.parquet, or *.arrow, *.feather, *.ipc.")],
    name: Annotated[str, typer.Option(metavar="NAME", help="The catalog. (default: as the file says)")] = "",
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the catalog's place whole, once all rows are there.")
    ] = False,
    from_row: Annotated[int, typer.Option(min=0, help="Go on with this row.")] = 0,
    id_column: Annotated[str, typer.Option(help="Strings.")] = "id",
    vector_column: Annotated[str, typer.Option(help="Lists of float32.")] = "vector",
    skip_columns: Annotated[
        list[str] | None, typer.Option("--skip-column", metavar="COLUMN", help="Not read; more than once.")
    ] = None,
    cast_vectors: Annotated[
        bool, typer.Option("--cast-vectors", help="Round float64 to float32 instead of refusing it.")
    ] = False,
    metric: Metric = None,
    fields: Fields = None,
    embedding_model: EmbeddingModel = None,
    max_payload_bytes: MaxPayloadBytes = None,
    description: Description = None,
) -> None:
    """Add a file's rows to a catalog, which is made where it is missing; importing it again does no harm."""
    options = _options(metric, fields, embedding_model, max_payload_bytes, description)
    with _client(address) as client, _arrow():
        from headrace_client.arrow import ImportStopped, import_catalog

        said = _Progress()

        def tell(progress: ImportProgress) -> None:
            said.say(f"{progress.next_row:,} of {progress.num_rows:,} rows")

        try:
            report = import_catalog(
                client,
                file,
                name,
                options=options,
                replace_all=replace,
                from_row=from_row,
                id_column=id_column,
                vector_column=vector_column,
                skip_columns=skip_columns or (),
                cast_vectors=cast_vectors,
                on_progress=tell,
            )
        except ImportStopped as stopped:
            said.clear()
            raise fail(f"{file}: {stopped}", cure=_go_on(stopped.next_row)) from None
    said.clear()
    made = ", made" if report.created else ""
    print(f"{report.catalog.name}: {report.num_rows:,} rows{made}; it has {report.catalog.num_items:,} items")


@contextmanager
def _client(address: str) -> Iterator[Client]:
    try:
        from headrace_client import Client, HeadraceError
    except ImportError:
        cure = "pip install headrace-client"
        raise fail("catalogs are kept through headrace-client, which is not installed", cure=cure) from None
    with plain_failures(), Client(address) as client:
        try:
            yield client
        except HeadraceError as error:
            raise fail(error.message) from None
        except ValueError as error:  # of an option, or of a file: the text names it
            raise fail(str(error)) from None


@contextmanager
def _arrow() -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pyarrow":
            raise
        raise fail("Parquet and Arrow files need pyarrow, which is not installed", cure=_ARROW_CURE) from None


def _options(
    metric: str | None,
    fields: list[str] | None,
    embedding_model: str | None,
    max_payload_bytes: int | None,
    description: str | None,
) -> CatalogOptions:
    given: dict[str, Any] = {
        "metric": metric,
        "fields": None if not fields else dict(map(_field, fields)),
        "embedding_model": embedding_model,
        "max_payload_bytes": max_payload_bytes,
        "description": description,
    }
    options: Any = {option: value for option, value in given.items() if value is not None}
    return options  # type: ignore[no-any-return]


def _field(text: str) -> tuple[str, str]:
    name, colon, kind = text.rpartition(":")
    if not colon or not name:
        raise fail(f"--field: {text!r}, must be NAME:TYPE", cure="--field price:number", status=USAGE)
    return name, kind


def _go_on(next_row: int) -> str:
    """The same command from where it stopped."""
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--from-row=")]
    while "--from-row" in given:
        place = given.index("--from-row")
        del given[place : place + 2]
    return f"go on with: headrace {shlex.join([*given, '--from-row', str(next_row)])}"


def _plain(info: CatalogInfo) -> dict[str, Any]:
    said = asdict(info)
    times = {name: said[name].isoformat() + "Z" for name in ("create_time", "update_time")}
    return {**said.pop("spec"), **said, **times}


def _text(info: CatalogInfo) -> str:
    spec = info.spec
    model = ":".join(part for part in (spec.embedding_model, spec.embedding_model_version) if part)
    lines = {
        "description": spec.description,
        "items": f"{info.num_items:,} of dimension {spec.dimension}, by {spec.metric}",
        "fields": ", ".join(f"{name}:{kind}" for name, kind in spec.fields.items()),
        "model": model + (f" ({spec.embedding_model_label})" if spec.embedding_model_label else ""),
        "payloads": f"at most {spec.max_payload_bytes:,} bytes",
        "revision": f"{info.revision}, {info.indexed_revision} is searched",
        "size": f"{info.disk_bytes / 1e6:.1f} MB on disk, {info.memory_bytes / 1e6:.1f} MB in memory",
        "changed": f"{info.update_time:%Y-%m-%d %H:%M:%S} UTC",
    }
    return "\n".join([info.name, *(f"  {name:11} {value}" for name, value in lines.items() if value)])


class _Progress:
    """One line on a terminal, written over; nothing elsewhere."""

    def __init__(self) -> None:
        self._shown = sys.stderr.isatty()
        self._said = time.monotonic()
        self._width = 0

    def say(self, text: str) -> None:
        """At most once a second."""
        if self._shown and time.monotonic() - self._said >= _SAY_AFTER_S:
            self._said = time.monotonic()
            print(f"\r{text:{self._width}}", end="", file=sys.stderr, flush=True)
            self._width = len(text)

    def clear(self) -> None:
        """The line is gone."""
        if self._width:
            print(f"\r{'':{self._width}}\r", end="", file=sys.stderr, flush=True)
