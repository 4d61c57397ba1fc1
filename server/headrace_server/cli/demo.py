"""`headrace demo`: the demo models, built from pinned registry packages, served, and asked."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from headrace_server.cli.engine_cache import engine_cache as engine_cache_directory
from headrace_server.cli.faults import FAILURE, fail, plain_failures, preparing
from headrace_server.cli.management import AUTO, OFF, kept_state, management_address
from headrace_server.cli.serve import (
    Device,
    EngineCache,
    IdleUnloadS,
    LogFormat,
    LogLevel,
    Management,
    ManagementOnDataPort,
    MemoryBudgetMb,
    PollS,
    State,
    TraceEndpoint,
    TraceSampleRatio,
    Versions,
    admin_address,
    log_style,
)
from headrace_server.config import (
    AdminOptions,
    CatalogOptions,
    EngineOptions,
    LifecycleOptions,
    ManagementOptions,
    ServerConfig,
    TracingOptions,
    TransportOptions,
)

__all__ = ["demo"]

demo = typer.Typer(help="Build the demo models, serve them, show their answers.", no_args_is_help=True)

_DIRECTORY = Path("build/demo-models")
_CACHE = Path("build/cache")
_CATALOGS_NAME = "demo-catalogs"  # beside the models
_LIFECYCLE, _TRACING = LifecycleOptions(), TracingOptions()

Directory = Annotated[Path, typer.Argument(metavar="[DIR]", envvar="HEADRACE_DEMO_MODELS", help="Where they stand.")]
Catalogs = Annotated[
    Path | None,
    typer.Option(
        envvar="HEADRACE_CATALOGS",
        help=f"Where catalogs stand. (default: {_CATALOGS_NAME}, beside DIR)",
        show_default=False,
    ),
]
Cache = Annotated[Path, typer.Option(envvar="HEADRACE_CACHE", help="Where fetched packages are kept.")]


@demo.command()
def build(
    directory: Directory = _DIRECTORY,
    only: Annotated[list[str] | None, typer.Option(metavar="MODEL", help="Only these; more than once.")] = None,
    cache: Cache = _CACHE,
    catalogs: Catalogs = None,
) -> None:
    """Build the demo models and catalogs, or bring them up to date; models from pinned, digest-checked packages."""
    with preparing():
        from headrace_server.prepare.demo import build_demo

        report = build_demo(directory, cache=cache, only=only or ())
    for version in report.versions:
        did = "up to date" if version.kept else f"built in {version.seconds:.1f} s"
        print(f"{version.model}/{version.version}  {version.size_bytes / 1e6:.1f} MB, {did}")
    print(f"{report.directory}: {report.size_bytes / 1e6:.1f} MB in {report.seconds:.1f} s")
    if only:
        return  # named models alone
    with preparing():
        from headrace_server.prepare.package_graph_catalogs import build_demo_catalogs

        built = build_demo_catalogs(_catalogs(directory, catalogs), models=directory)
    for catalog in built:
        did = "up to date" if catalog.kept else f"built in {catalog.seconds:.1f} s"
        print(f"catalog {catalog.name}  {catalog.num_items} vectors of {catalog.dimension}, {did}")


def _catalogs(directory: Path, catalogs: Path | None) -> Path:
    return directory.parent / _CATALOGS_NAME if catalogs is None else catalogs


@demo.command()
def train_spam(
    directory: Directory = _DIRECTORY,
    cache: Cache = _CACHE,
    output: Annotated[Path | None, typer.Option(help="The head's file. (default: the committed one)")] = None,
    max_mails: Annotated[int, typer.Option(min=0, help="Train on so many mails alone; 0: on all.")] = 0,
) -> None:
    """Train the head of the text classifier again; ten minutes on two cores, and npm fetches the corpus."""
    with preparing():
        try:
            from headrace_server.prepare.spam_head import HEAD_PATH
            from headrace_server.prepare.spam_training import train_spam as train
        except ImportError as error:
            raise fail(f"Python package {error.name} is not installed", cure="pip install 'headrace[demo]'") from None

        train(models=directory, cache=cache, output=output or HEAD_PATH, max_mails=max_mails)


@demo.command()
def measure_smollm2(
    cache: Cache = _CACHE,
    output: Annotated[Path | None, typer.Option(help="The figures' file. (default: the committed one)")] = None,
) -> None:
    """Measure both builds of the text generator beside fp32 again; half a minute, and 0.9 GB of temporary space."""
    with preparing():
        from headrace_server.prepare.fetch import fetch
        from headrace_server.prepare.smollm2 import QUALITY_PATH
        from headrace_server.prepare.smollm2 import measure_smollm2 as measure

        with tempfile.TemporaryDirectory(prefix="headrace-smollm2-") as directory:
            figures = measure(Path(directory), lambda package: fetch(package, cache, print))
    path = output or QUALITY_PATH
    path.write_text(json.dumps(figures, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    print(path)


@demo.command()
def run(
    directory: Directory = _DIRECTORY,
    listen: Annotated[str, typer.Option(envvar="HEADRACE_LISTEN", help="host:port; port 0: a free one.")] = (
        "127.0.0.1:50051"
    ),
    admin: Annotated[str, typer.Option(envvar="HEADRACE_ADMIN", help="host:port, or off.")] = "127.0.0.1:9090",
    management: Management = AUTO,
    management_on_data_port: ManagementOnDataPort = False,
    catalogs: Catalogs = None,
    device: Device = "auto",
    engine_cache: EngineCache = AUTO,
    versions: Versions = _LIFECYCLE.versions,
    poll_s: PollS = _LIFECYCLE.poll_s,
    state: State = OFF,
    memory_budget_mb: MemoryBudgetMb = _LIFECYCLE.memory_budget_mb,
    idle_unload_s: IdleUnloadS = _LIFECYCLE.idle_unload_s,
    trace_endpoint: TraceEndpoint = None,
    trace_sample_ratio: TraceSampleRatio = _TRACING.sample_ratio,
    once: Annotated[bool, typer.Option("--once", help="End after the tour.")] = False,
    log_level: Annotated[LogLevel, typer.Option(envvar="HEADRACE_LOG_LEVEL")] = LogLevel.WARNING,
    log_format: Annotated[LogFormat, typer.Option(envvar="HEADRACE_LOG_FORMAT")] = LogFormat.AUTO,
) -> None:
    """Serve the demo models, ask them one question of each job, and serve on."""
    from headrace_server.cli.running import run_server
    from headrace_server.cli.tour import take_tour
    from headrace_server.server import Addresses

    failed = False

    def show(addresses: Addresses) -> bool:
        nonlocal failed
        failed = take_tour(addresses.grpc[0]) > 0
        if not once:
            print(f"\nserving {addresses.grpc[0]}; Ctrl-C stops it", flush=True)
        return not once

    with plain_failures(), kept_state(directory, state) as (state_file, remark):
        config = ServerConfig(
            repository=directory,
            catalogs=CatalogOptions(directory=_catalogs(directory, catalogs)),
            engine=EngineOptions(device=device, cache=engine_cache_directory(engine_cache)),
            transport=TransportOptions(listen=(listen,)),
            admin=AdminOptions(listen=admin_address(admin)),
            lifecycle=LifecycleOptions(
                versions=versions,
                poll_s=poll_s,
                state_file=state_file,
                memory_budget_mb=memory_budget_mb,
                idle_unload_s=idle_unload_s,
            ),
            management=ManagementOptions(
                listen=management_address(management, [listen]), on_data_port=management_on_data_port
            ),
            tracing=TracingOptions(endpoint=trace_endpoint, sample_ratio=trace_sample_ratio),
            log_level=log_level.value,
            log_format=log_style(log_format),
        )
        run_server(config, remark=remark, when_ready=show)
    if once and failed:
        raise typer.Exit(FAILURE)
