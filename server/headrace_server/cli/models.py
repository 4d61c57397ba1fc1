"""`headrace models …`: the versions of a running server, as any client of its management listener manages them.

Exit status: 0 done; 1 refused or failed; 2 a wrong option; 3 the server is not reached, or not in time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace_server.cli.faults import USAGE, fail, plain_failures
from headrace_server.cli.models_text import engine_text, models_table, statistics_table, traffic_text

if TYPE_CHECKING:
    from headrace_client import Client, RollbackRule

__all__ = ["UNREACHED", "models"]

models = typer.Typer(
    help="Load, unload, label, split and shadow the versions of a running server.", no_args_is_help=True
)

UNREACHED = 3
_MANAGEMENT = "127.0.0.1:50052"
_LOAD_TIMEOUT_S = 600.0
_FORCE = "`headrace quantize … --force`, which no broken batch invariance passes"

# fmt: off
Address = Annotated[str, typer.Option(
    envvar="HEADRACE_MANAGEMENT_ADDRESS", help="Of the management listener: host:port or unix:PATH.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The model.")]
Version = Annotated[str, typer.Argument(metavar="[VERSION]", help="The version.", show_default=False)]
TimeoutS = Annotated[float, typer.Option(min=0.001, help="How long to wait for the server, seconds.")]
# fmt: on


@models.command("list")
def list_(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="This model alone.", show_default=False)] = "",
    address: Address = _MANAGEMENT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 30,
) -> None:
    """Every version: its state, its labels, its share of the traffic; of one model also how its engine was chosen."""
    with _client(address, timeout_s) as client:
        found = [info for info in client.models() if name in ("", info.name)]
    if name and not found:
        raise fail(f"model {name!r} is not in the repository")
    detail = engine_text(found) if name else ""
    _show(found, as_json, lambda: "\n\n".join(part for part in (models_table(found), detail) if part))


@models.command()
def load(
    name: Name,
    version: Version = "",
    serve: Annotated[bool, typer.Option(help="Let it answer requests that name no version, once it is ready.")] = True,
    address: Address = _MANAGEMENT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = _LOAD_TIMEOUT_S,
) -> None:
    """Load a version (the newest in the directory where none is named) beside what serves; wait until it is ready."""
    with _client(address, timeout_s) as client:
        info = client.load_model(name, version=version, serve=serve, timeout_s=timeout_s)
        split = client.traffic(name).split if info.traffic_weight else None
    totals = {name: sum(split.shares.values())} if split is not None else None
    _show(info, as_json, lambda: models_table([info], totals))
    if serve and info.quantization is not None and info.quantization.held_because:
        raise fail(
            f"{name}/{info.version} is loaded and does not serve: {info.quantization.held_because}",
            cure=f"ask it by its version, or promote it: {_FORCE}",
        )


@models.command()
def unload(
    name: Name,
    version: Version = "",
    address: Address = _MANAGEMENT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 30,
) -> None:
    """Take a version, or all of a model's, out of service; they end the requests that they have."""
    with _client(address, timeout_s) as client:
        infos = client.unload_model(name, version=version)
    _show(infos, as_json, lambda: models_table(infos))


@models.command()
def label(
    name: Name,
    label: Annotated[str, typer.Argument(metavar="LABEL", help="a-z, 0-9, _ and -.")],
    version: Version = "",
    remove: Annotated[bool, typer.Option("--remove", help="Take the label off.")] = False,
    address: Address = _MANAGEMENT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 30,
) -> None:
    """Put a label on a version, or take it off."""
    if bool(version) == remove:
        raise fail("give a VERSION, or --remove", status=USAGE)
    with _client(address, timeout_s) as client:
        labels = client.set_model_label(name, label, version)
    _show(labels, as_json, lambda: "\n".join(f"{each}: {at}" for each, at in sorted(labels.items())) or "no labels")


@models.command()
def split(
    name: Name,
    shares: Annotated[
        list[str] | None, typer.Argument(metavar="[VERSION=WEIGHT]...", help="None: what stands.", show_default=False)
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="All to the serving version.")] = False,
    max_error_rate: Annotated[float | None, typer.Option(help="Roll back over this share of failures, 0…1.")] = None,
    max_p99_ms: Annotated[float | None, typer.Option(help="Roll back over this 99th percentile of latency.")] = None,
    max_disagreement: Annotated[
        float | None, typer.Option(help="Roll back over this share of shadowed answers that disagree, 0…1.")
    ] = None,
    window_s: Annotated[float, typer.Option(help="Over how long the rules look.")] = 60,
    min_requests: Annotated[int, typer.Option(help="How many requests they must have seen.")] = 20,
    address: Address = _MANAGEMENT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 30,
) -> None:
    """Split a model's traffic between versions, with rules that roll it back; or say how it is split."""
    weights = _weights(shares or ())
    if weights and clear:
        raise fail("give shares, or --clear", status=USAGE)
    with _client(address, timeout_s) as client:
        rules = _rules(max_error_rate, max_p99_ms, max_disagreement, window_s, min_requests)
        if rules and not weights:
            raise fail("rules need shares: there is nothing to roll back", status=USAGE)
        if weights or clear:
            client.set_traffic_split(name, weights, rules)
        traffic = client.traffic(name)
    _show(traffic, as_json, lambda: traffic_text(traffic))


@models.command()
def shadow(
    name: Name,
    version: Version = "",
    sample_rate: Annotated[float, typer.Option(help="Share of the requests that are copied, 0…1.")] = 1.0,
    clear: Annotated[bool, typer.Option("--clear", help="No copies any more.")] = False,
    address: Address = _MANAGEMENT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 30,
) -> None:
    """Send copies of a model's requests to a version and compare the answers; or say where copies go."""
    if version and clear:
        raise fail("give a VERSION, or --clear", status=USAGE)
    with _client(address, timeout_s) as client:
        if version or clear:
            client.set_shadow(name, version, sample_rate=sample_rate)
        traffic = client.traffic(name)
    _show(traffic, as_json, lambda: traffic_text(traffic))


@models.command()
def reset(
    name: Name,
    section: Annotated[
        list[str] | None,
        typer.Option(help="labels, split, shadow or versions; repeatable. None: all.", show_default=False),
    ] = None,
    address: Address = _MANAGEMENT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 30,
) -> None:
    """Forget what operators decided about a model: its versions.toml and the server's --versions hold again."""
    with _client(address, timeout_s) as client:
        traffic = client.reset_model(name, tuple(section or ()))  # type: ignore[arg-type]  # the client refuses others
    _show(traffic, as_json, lambda: traffic_text(traffic))


@models.command()
def stats(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="This model alone.", show_default=False)] = "",
    version: Version = "",
    address: Address = _MANAGEMENT,
    as_json: AsJson = False,
    timeout_s: TimeoutS = 30,
) -> None:
    """Counts and mean times of each version since it was loaded, and how shadows fare."""
    with _client(address, timeout_s) as client:
        found = client.model_statistics(name, version=version)
    _show(found, as_json, lambda: statistics_table(found))


@models.command()
def record(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A version's: DIR/NAME/VERSION.")],
    again: Annotated[bool, typer.Option("--again", help="Those that have an answer too.")] = False,
) -> None:
    """Write what a version answers into its `warmup/*.json`: every later load of it must answer so before it serves.

    It is loaded here, no server is asked. A request is a file such as
    warmup/smoke.json: {"task": "classify", "inputs": [{"text": "…"}]}
    """
    with plain_failures():
        from headrace_server.jobs.recorded_requests import record as record_folder

        written = record_folder(folder, again=again)
    for each in written:
        print(f"{folder / each}: recorded")
    if not written:
        print("nothing to record: every request in warmup/ has its answer (--again records it anew), or there is none")


@contextmanager
def _client(address: str, timeout_s: float) -> Iterator[Client]:
    try:
        from headrace_client import Client, DeadlineExceeded, HeadraceError, PermissionDenied, Unavailable
    except ImportError:
        cure = "pip install headrace-client"
        raise fail("models are managed through headrace-client, which is not installed", cure=cure) from None
    with plain_failures(), Client(address, timeout_s=timeout_s) as client:
        try:
            yield client
        except PermissionDenied as error:
            raise fail(error.message, cure="give --address what `headrace serve` says of management") from None
        except Unavailable as error:
            cure = "--address is what `headrace serve` says of management; it may be off there"
            raise fail(f"{address}: {error.message}", cure=cure, status=UNREACHED) from None
        except DeadlineExceeded as error:
            cure = "--timeout-s; a load goes on, `headrace models list` shows how far it is"
            raise fail(f"{address}: {error.message}", cure=cure, status=UNREACHED) from None
        except HeadraceError as error:
            raise fail(error.message) from None
        except ValueError as error:  # of what no message can hold: the text names it
            raise fail(str(error), status=USAGE) from None


def _weights(shares: Iterable[str]) -> dict[str, int]:
    weights: dict[str, int] = {}
    for text in shares:
        version, equals, weight = text.rpartition("=")
        if not equals or not version or not (weight.isascii() and weight.isdigit()):
            raise fail(f"{text!r}, must be VERSION=WEIGHT", cure="headrace models split NAME 1=95 2=5", status=USAGE)
        if version in weights:
            raise fail(f"{text!r}: version {version!r} has a share already", status=USAGE)
        weights[version] = int(weight)
    return weights


def _rules(
    error_rate: float | None, p99_ms: float | None, disagreement: float | None, window_s: float, min_requests: int
) -> list[RollbackRule]:
    from headrace_client import RollbackRule

    given: list[dict[str, float]] = []
    if error_rate is not None:
        given.append({"max_error_rate": error_rate})
    if p99_ms is not None:
        given.append({"max_p99_latency_s": p99_ms / 1000})
    if disagreement is not None:
        given.append({"max_disagreement": disagreement})
    return [RollbackRule(**limit, window_s=window_s, min_requests=min_requests) for limit in given]


def _show(answer: Any, as_json: bool, text: Callable[[], str]) -> None:
    print(json.dumps(_plain(answer), indent=2) if as_json else text())


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value.isoformat() if isinstance(value, datetime) else value
