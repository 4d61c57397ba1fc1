"""`headrace convert`: models of other forms into folders that can be served."""

from __future__ import annotations

import enum
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from headrace_server.cli.faults import USAGE, fail, preparing

__all__ = ["convert"]

convert = typer.Typer(help="Turn models of other forms into folders that can be served.", no_args_is_help=True)


class Quantization(enum.Enum):
    """How weights are kept; `w8` is accurate, `rq8` is fast."""

    FP32 = "fp32"
    W8 = "w8"
    RQ8 = "rq8"


@convert.command()
def gguf(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A GGUF file of the llama architecture.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A model repository: OUT/NAME/VERSION is made.")],
    quantization: Annotated[Quantization, typer.Option(help="w8: accurate; rq8: fast.")] = Quantization.RQ8,
    name: Annotated[str, typer.Option(help="The model's name. (default: the file's)")] = "",
    version: Annotated[int, typer.Option(min=1, help="The model's version.")] = 1,
) -> None:
    """Make a decoder folder of a GGUF file: graph, tokenizer, chat template. Nothing is overwritten."""
    with preparing():
        try:
            from headrace_server.prepare.gguf.convert import convert_gguf
            from headrace_server.prepare.gguf.linear import Precision
            from headrace_server.prepare.gguf.reader import GgufFile
        except ImportError as error:
            raise fail(f"Python package {error.name} is not installed", cure="pip install 'headrace[demo]'") from None

        if name and (Path(name).name != name or name.startswith(".")):
            raise fail(f"--name {name}: a model's name is one folder's name", status=USAGE)
        started = time.monotonic()
        target = out / (name or file.stem) / str(version)
        if target.exists():
            raise fail(f"{target} is there already", cure="give another --name or --version, or remove it")
        opened = GgufFile.open(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the version, under a name that no server reads: a version appears whole or not at all.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as temporary:
            fresh = Path(temporary) / "new"
            fresh.mkdir(mode=0o755)
            made = convert_gguf(opened, fresh, precision=Precision(quantization.value))
            os.replace(fresh, target)
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target}: {made.title or file.stem}, {quantization.value}, {size / 1e6:.1f} MB")
    print(f"licence by the file: {made.licence or 'not said'}; made in {time.monotonic() - started:.1f} s")


@convert.command()
def measure_decoder(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A version's folder.")],
    reference: Annotated[Path, typer.Argument(metavar="FP32", help="The fp32 version's folder of the same model.")],
) -> None:
    """Print how near a quantized decoder stays to its fp32 build, as JSON: KL divergence, agreement, perplexity."""
    with preparing():
        from headrace_server.prepare.decoder_quality import measure_quality, quality_texts

        print(json.dumps(measure_quality(folder, reference, quality_texts()).as_json(), indent=1))
