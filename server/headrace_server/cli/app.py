"""The commands, put together. Each command's own imports wait until it is asked for."""

from __future__ import annotations

from typing import Annotated

import typer

from headrace_server.cli.catalog import catalog
from headrace_server.cli.convert import convert
from headrace_server.cli.demo import demo
from headrace_server.cli.doctor import doctor
from headrace_server.cli.inspect import inspect
from headrace_server.cli.models import models
from headrace_server.cli.quantize import quantize
from headrace_server.cli.recommend import recommend
from headrace_server.cli.serve import serve
from headrace_server.cli.tensorrt import tensorrt
from headrace_server.cli.tour import tour

__all__ = ["app"]

app = typer.Typer(
    name="headrace",
    help="One gRPC server for classification, embedding, similarity and recommendation on ONNX Runtime.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(serve)
app.command()(inspect)
app.command()(doctor)
app.command()(quantize)
app.command()(tour)
app.add_typer(catalog, name="catalog")
app.add_typer(convert, name="convert")
app.add_typer(demo, name="demo")
app.add_typer(models, name="models")
app.add_typer(recommend, name="recommend")
app.add_typer(tensorrt, name="tensorrt")


@app.command()
def version(verbose: Annotated[bool, typer.Option("--verbose", help="Libraries too.")] = False) -> None:
    """Say which version this is."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as version_of

    for name in ("headrace", "onnxruntime", "grpcio", "protobuf", "numpy", "tokenizers"):
        try:
            print(f"{name} {version_of(name)}")
        except PackageNotFoundError:
            print(f"{name} is not installed")
        if not verbose:
            break
