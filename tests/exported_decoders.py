"""Small decoders as users' exporters leave them (data/generation/make_exports.py), and what PyTorch makes of them."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import byte_tokenizer

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.decode import DecodeState
from headrace_server.engines.factory import create_decode_state
from headrace_server.models.load import load_model

__all__ = ["Answer", "answers", "open_decoder", "unpacked"]

_EXPORTS = Path(__file__).resolve().parent / "data" / "generation" / "exports"


@dataclass(frozen=True, slots=True)
class Answer:
    """What follows a prompt; logits are every eighth of the first and of the last step."""

    prompt: list[int]
    tokens: list[int]
    margin: float  # the least, over the steps, of the best logit over the second
    first: list[float]
    last: list[float]
    beams: dict[str, Any]


def answers(name: str) -> list[Answer]:
    """PyTorch's, for each recorded prompt, shortest first."""
    found = json.loads((_EXPORTS / f"{name}.json").read_text())
    return [Answer(**{"beams": {}, **each}) for each in found]


def unpacked(name: str, folder: Path) -> Path:
    """The export `name` as a version folder, with a tokenizer."""
    with tarfile.open(_EXPORTS / f"{name}.tar.xz") as packed:
        packed.extractall(folder, filter="data")
    (folder / "tokenizer.json").write_text(byte_tokenizer.definition())
    return folder


def open_decoder(folder: Path, *, name: str = "m", num_threads: int = 1) -> DecodeState:
    """As a server opens it."""
    model = load_model(folder, name=name, version="1")
    return create_decode_state(model, EngineOptions(intra_op_threads=num_threads), ThreadBudget(num_cores=num_threads))
