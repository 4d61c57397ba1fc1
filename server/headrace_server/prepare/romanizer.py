"""romanizer: Arabic names in Latin letters. An encoder and a decoder (GRUs with attention), letter by letter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from headrace_server.prepare.card import Measure, ModelCard
from headrace_server.prepare.recipe import OpenPackage, Recipe
from headrace_server.prepare.sources import ROMANIZER

__all__ = ["RECIPES", "build", "letter_tokenizer"]


def build(folder: Path, open_package: OpenPackage) -> None:
    """Write the version: both graphs as they are, their letters as a tokenizer, and what the graphs call things."""
    archive = open_package(ROMANIZER)
    for graph in ("encoder.onnx", "decoder.onnx"):
        (folder / graph).write_bytes(archive.read(graph))
    settings = json.loads(archive.read("meta.json"))
    tokens = json.loads(archive.read("vocab.json"))["tokens"]
    (folder / "tokenizer.json").write_text(letter_tokenizer(tokens).to_str(), encoding="utf-8")
    (folder / "headrace.toml").write_text(_manifest(tokens, settings), encoding="utf-8")
    _CARD.write(folder)


def letter_tokenizer(tokens: list[str]) -> Tokenizer:
    """Each letter a token; a name is read with its country and part unknown, as the package does without a hint."""
    numbers = {token: index for index, token in enumerate(tokens)}
    tokenizer: Tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<UNK>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(pattern=Regex("(?m)."), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    special = [token for token in tokens if token.startswith("<") and token.endswith(">")]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    around = ("<UNK_COUNTRY>", "<ROLE_UNKNOWN>", "<EOS>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<UNK_COUNTRY> <ROLE_UNKNOWN> $A <EOS>", special_tokens=[(token, numbers[token]) for token in around]
    )
    return tokenizer


def _manifest(tokens: list[str], settings: dict[str, Any]) -> str:
    return f"""\
graph = "decoder.onnx"

# The graphs' own names; the encoder's mask marks padding, and `hidden` is what the decoder remembers.
[encoder_decoder]
encoder = "encoder.onnx"
start_id = {tokens.index("<BOS>")}
end_ids = [{tokens.index("<EOS>")}]
max_length = 64
tokens = "prefix"
logits = "logprobs"
source = "src"
source_mask = "src_mask"
mask_marks = "padding"
num_beams = {settings["beam_width"]}
length_penalty = {settings["length_alpha"]}

[encoder_decoder.memory]
memory = "memory_out"
src_mask = "src_mask_out"

[encoder_decoder.first]
hidden = "hidden_out"

[encoder_decoder.states]
hidden = "hidden_out"
"""


_CARD = ModelCard(
    title="romanizer: Arabic names in Latin letters",
    summary="Writes a name in Arabic letters as its bearers write it in Latin ones: محمد as Mohamed.",
    packages=(ROMANIZER,),
    licence="MIT, by the package's licence file; its THIRD_PARTY_NOTICES.md names the data that the weights come from.",
    made=(
        "`encoder.onnx` and `decoder.onnx` were copied unchanged.",
        "`tokenizer.json` was written from the package's `vocab.json`, `headrace.toml` from its `meta.json`.",
    ),
    measures=(Measure("best guess of the package's own beam search", "200 names, two beams", "the same for each"),),
    measured_by="`pytest tests/integration -k romanizer`, which fails where a figure does not hold",
    limits=(
        "The package's own dictionary, rules and spelling normalization are not served: names are read as written.",
    ),
)

RECIPES = (
    Recipe(
        model="romanizer",
        version="1",
        packages=(ROMANIZER,),
        modules=tuple(f"headrace_server.prepare.{name}" for name in ("romanizer", "card", "sources")),
        build=build,
    ),
)
