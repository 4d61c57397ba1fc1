"""`headrace tensorrt`: plans compiled before serving, what TensorRT does not take of a graph, and what a plan holds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace_server.cli.faults import FAILURE, USAGE, fail, plain_failures
from headrace_server.errors import ServingError

if TYPE_CHECKING:
    from headrace_server.config import ShapeProfile
    from headrace_server.models.tensorrt_plan import PlanSidecar

__all__ = ["tensorrt"]

tensorrt = typer.Typer(help="Compile graphs for TensorRT, and look into plans.", no_args_is_help=True)

_SHOWN = 20

ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="An .onnx file, or a version's folder.")]
RtxOption = Annotated[bool, typer.Option("--rtx", help="With TensorRT for RTX, which compiles without a GPU.")]


@tensorrt.command()
def build(
    model: ModelArgument,
    out: Annotated[Path | None, typer.Option(help="The plan. (default: beside the graph, NAME.plan)")] = None,
    rtx: RtxOption = False,
    compute_capability: Annotated[
        list[str] | None, typer.Option(help="With --rtx: a GPU to compile for, such as 8.9; may be repeated.")
    ] = None,
    device: Annotated[int, typer.Option(min=0, help="The GPU to compile on and for.")] = 0,
    minimum: Annotated[
        list[str] | None,
        typer.Option("--min", help="Smallest shapes, a:1x1,b:1x1; repeated: profiles."),
    ] = None,
    optimum: Annotated[list[str] | None, typer.Option("--opt", help="Shapes to tune for, as --min.")] = None,
    maximum: Annotated[list[str] | None, typer.Option("--max", help="Largest shapes, as --min.")] = None,
    workspace_mb: Annotated[int, typer.Option(min=0, help="Device memory for tactics. (0: what there is)")] = 0,
    tf32: Annotated[bool, typer.Option("--tf32", help="Round fp32 products to 10 bits of mantissa.")] = False,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="Later TensorRT 11 can load it; it brings code of its own.")
    ] = False,
    timing_cache: Annotated[Path | None, typer.Option(help="Tactics timed before, which grow.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a plan that is there.")] = False,
) -> None:
    """Compile MODEL to a plan and write its sidecar beside it.

    Shapes come from --min, --opt and --max, else from the folder's headrace.toml, else from what the model is asked.
    """
    with _said():
        from headrace_server.engines.tensorrt.files import build_file, open_graph

        options: dict[str, Any] = {"tf32": tf32, "version_compatible": version_compatible, "workspace_mb": workspace_mb}
        profiles = _profiles(minimum or [], optimum or [], maximum or [])
        opened = open_graph(model, profiles=profiles, **{key: value for key, value in options.items() if value})
        target = out or opened.graph.with_suffix(".plan")
        if target.exists() and not force:
            raise fail(f"{target} is there already", cure="give another --out, or --force")
        if compute_capability and not rtx:
            raise fail("--compute-capability compiles for a GPU elsewhere", cure="add --rtx", status=USAGE)
        sidecar, seconds = build_file(
            opened, target, rtx=rtx, compute_capabilities=tuple(compute_capability or ()), index=device,
            timing_cache=timing_cache,
        )  # fmt: skip
    print(f"{target}: {sidecar.size_bytes / 1e6:.1f} MB, {sidecar.precision}, compiled in {seconds:.1f} s")
    print(_summary(sidecar))


@tensorrt.command()
def validate(
    model: ModelArgument,
    rtx: RtxOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say which nodes of MODEL TensorRT does not take, and why. Exit status 1 where there are any.

    Nothing is compiled. With --rtx no GPU is needed; the parsers of the two libraries may differ by a version.
    """
    with _said():
        from headrace_server.engines.tensorrt.files import open_graph, validate_file

        opened = open_graph(model)
        support, library = validate_file(opened, rtx=rtx)
    if as_json:
        print(json.dumps({"library": library} | asdict(support), indent=1))
    else:
        refused = "all taken" if support.supported else f"{len(support.faults)} not taken"
        print(f"{opened.graph.name}: {support.num_nodes} nodes, {refused} by {library}'s parser")
        for fault in support.faults[:_SHOWN]:
            print(f"  {fault}" + (f"\n    cure: {fault.cure}" if fault.cure else ""))
        if len(support.faults) > _SHOWN:
            print(f"  and {len(support.faults) - _SHOWN} more (--json shows all)")
    if not support.supported:
        raise typer.Exit(FAILURE)


@tensorrt.command()
def inspect(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="A plan, or its sidecar.")],
    layers: Annotated[bool, typer.Option("--layers", help="The compiled layers too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The sidecar as it is.")] = False,
) -> None:
    """Say what a plan holds, by its sidecar, and whether the plan is the one it describes. Needs no GPU."""
    with _said():
        from headrace_server.engines.tensorrt.files import read_plan

        sidecar, whole = read_plan(plan)
    if as_json:
        print(sidecar.encode().decode(), end="")
    else:
        print(_summary(sidecar))
        if layers:
            print("\n".join(f"  layer       {layer}" for layer in sidecar.layers) or "  no layers are recorded")
    if not whole:
        raise fail("the plan is not the one that its sidecar describes", cure="build it again, or copy both again")


@contextmanager
def _said() -> Iterator[None]:
    """As `plain_failures`; these errors name their cure themselves."""
    with plain_failures():
        try:
            yield
        except ServingError as error:
            raise fail(error.message) from None


def _profiles(minimum: list[str], optimum: list[str], maximum: list[str]) -> tuple[ShapeProfile, ...]:
    from headrace_server.config import ShapeProfile

    if not len(minimum) == len(optimum) == len(maximum):
        raise fail("--min, --opt and --max come together, once a profile", status=USAGE)
    return tuple(
        ShapeProfile(min=_shapes(low), opt=_shapes(opt), max=_shapes(high))
        for low, opt, high in zip(minimum, optimum, maximum, strict=True)
    )


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for part in text.split(","):
        name, _, sizes = part.rpartition(":")
        numbers = sizes.split("x")
        if not name or not all(number.isdecimal() for number in numbers):
            raise fail(f"{part!r} is no shape", cure="write input:1x128, several with commas", status=USAGE)
        shapes[name] = tuple(map(int, numbers))
    return shapes


def _summary(sidecar: PlanSidecar) -> str:
    runs_on = f"compute capability {', '.join(sidecar.compute_capabilities)}" + (
        f", tuned on {sidecar.gpu}" if sidecar.gpu else ", compiled without a GPU"
    )
    lines = [
        f"library     {sidecar.library} {sidecar.library_version}, CUDA {sidecar.cuda_major}"
        + (", version-compatible" if sidecar.version_compatible else ""),
        f"runs on     {runs_on}",
        f"precision   {sidecar.precision}",
        f"source      {sidecar.source}, SHA-256 {sidecar.source_sha256[:16]}…",
        f"plan        {sidecar.size_bytes / 1e6:.1f} MB, SHA-256 {sidecar.sha256[:16]}…, {len(sidecar.layers)} layers",
    ]
    lines += [f"input       {each.name} {each.dtype}{_axes(each.shape)}" for each in sidecar.inputs]
    lines += [f"output      {each.name} {each.dtype}{_axes(each.shape)}" for each in sidecar.outputs]
    for index, profile in enumerate(sidecar.profiles):
        for name in profile.min:
            low, opt, high = list(profile.min[name]), list(profile.opt[name]), list(profile.max[name])
            lines.append(f"profile {index}   {name} {low} to {high}, tuned for {opt}")
    return "\n".join(f"  {line}" for line in lines)


def _axes(shape: Sequence[int]) -> str:
    return "[" + ",".join("?" if size < 0 else str(size) for size in shape) + "]"
