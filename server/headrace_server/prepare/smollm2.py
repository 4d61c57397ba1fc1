"""The text generator SmolLM2-135M-Instruct: version 1 accurate (w8), version 2 fast (rq8), served by default.

Figures stand in data/smollm2-quality.json, which `headrace demo measure-smollm2` writes; building only copies them into
the card, so that it takes seconds. A test measures again and compares.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headrace_server.prepare.card import Measure, ModelCard
from headrace_server.prepare.gguf.convert import convert_gguf
from headrace_server.prepare.gguf.linear import Precision
from headrace_server.prepare.gguf.reader import GgufFile
from headrace_server.prepare.recipe import OpenPackage, Recipe
from headrace_server.prepare.sources import SMOLLM2

__all__ = ["FP32", "GOLDEN", "QUALITY_PATH", "RECIPES", "build_fp32", "measure_smollm2"]

QUALITY_PATH = Path(__file__).with_name("data") / "smollm2-quality.json"

_CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"  # without the system text of the template
GOLDEN = (
    ("The capital of France is", "Paris"),
    ("2, 4, 6, 8, 10,", "12, 14, 16, 18"),
    ("The opposite of hot is", "cold"),
    ("Water freezes at zero degrees", "Celsius"),
    ("a b c d e f", "g h i j k l m"),
    (_CHAT.format("What is the capital of Italy?"), "The capital of Italy is Rome."),
)
"""Prompts with what must follow, in every build."""

_PRECISIONS = {"1": Precision.W8, "2": Precision.RQ8}
_TITLES = {"1": "accurate (8-bit weights in blocks)", "2": "fast (8-bit weights and activations)"}
_MADE = {
    "1": (
        "Weights have one scale each 32 inputs (w8, `MatMulNBits`, 8 bits, accuracy level 4: products are integer "
        "ones, activations are quantized in the same blocks).",
    ),
    "2": (
        "Weights have one scale an output, and activations one a row, found while it runs (rq8, operators of the "
        "kernels, or the runtime's `MatMulIntegerToFloat`): products at the speed of the machine's matrix units.",
        "Before rounding, channels whose activations are large were evened out into the weights around them "
        "(smoothing, on four short texts of our own).",
        "The head keeps one scale each 32 inputs, as in version 1: golden answers need it.",
    ),
}


def build_version(folder: Path, open_package: OpenPackage, version: str) -> None:
    """Write a version: graph, configuration, tokenizer, template, licence, card."""
    _convert(folder, open_package, _PRECISIONS[version])
    quality = json.loads(QUALITY_PATH.read_text(encoding="utf-8"))[version]
    (folder / "card.json").write_text(json.dumps(quality, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    _card(version, quality).write(folder)


def build_fp32(folder: Path, open_package: OpenPackage) -> None:
    """Write the fp32 build: what the file's weights say, unrounded. For tests and measures; it is not served."""
    _convert(folder, open_package, Precision.FP32)


def measure_smollm2(directory: Path, open_package: OpenPackage) -> dict[str, Any]:
    """The content of data/smollm2-quality.json, measured now; builds go below `directory` (0.9 GB)."""
    from headrace_server.prepare.decoder_quality import answer_golden, measure_quality, quality_texts

    fp32 = directory / "fp32"
    fp32.mkdir(parents=True)
    build_fp32(fp32, open_package)
    measured = {}
    for version, precision in _PRECISIONS.items():
        folder = directory / version
        folder.mkdir()
        _convert(folder, open_package, precision)
        answers = answer_golden(folder, GOLDEN)
        measured[version] = {
            "precision": precision.value,
            "beside_fp32": measure_quality(folder, fp32, quality_texts()).as_json(),
            "golden": [
                {"prompt": each.prompt, "expected": each.expected, "answer": each.answer, "holds": each.holds}
                for each in answers
            ],
        }
    return measured


def _convert(folder: Path, open_package: OpenPackage, precision: Precision) -> None:
    archive = open_package(SMOLLM2)
    member, _ = SMOLLM2.files["model.gguf"]
    file = GgufFile.parse(archive.read("model.gguf"), name=Path(member).name)
    convert_gguf(file, folder, precision=precision)
    (folder / "LICENSE").write_bytes(archive.read("LICENSE"))


def _card(version: str, quality: Mapping[str, Any]) -> ModelCard:
    rows = quality["beside_fp32"]
    return ModelCard(
        title=f"smollm2, version {version}: SmolLM2-135M-Instruct, {_TITLES[version]}",
        summary="A small language model of 135 million weights that follows simple instructions in English.",
        packages=(SMOLLM2,),
        licence="Apache-2.0; `LICENSE` is copied beside the model.",
        made=(
            "The GGUF file's weights (Q4_1; the embedding Q8_0) were dequantized and written as an ONNX graph; query "
            "and key rows were put back into the order that half-rotating operators expect.",
            *_MADE[version],
            "The embedding keeps its file's 8-bit blocks unchanged and is shared with the head.",
            "Vocabulary, merges and chat template are the file's; numbers are cut into digits, as its kind "
            "(`smollm`) says.",
        ),
        measures=tuple(_measures(rows) + _golden(quality["golden"])),
        measured_by=(
            "`headrace demo measure-smollm2`, beside an fp32 build of the same file; card.json has every text. Checked "
            "by `pytest tests/integration -k decoder_quality`, which fails where a figure does not hold"
        ),
        limits=(
            "It is small: facts are often wrong, and other languages than English are weak.",
            "8,192 tokens of context at most; 46 KB of memory a token in fp32.",
            "Figures compare with the file's own weights, which were rounded to about 5 bits when the file was made.",
        ),
    )


def _measures(rows: Sequence[Mapping[str, Any]]) -> list[Measure]:
    measures = []
    for row in rows:
        on = f"text `{row['text']}`" if row["text"] != "all" else f"all {len(rows) - 1} texts"
        value = (
            f"{row['kl_divergence']:.4f} / {row['top1_agreement']:.3f} / {row['perplexity']:.2f} "
            f"(fp32 {row['fp32_perplexity']:.2f})"
        )
        measures.append(
            Measure("KL divergence / top-1 agreement / perplexity", f"{on}, {row['num_tokens']} tokens", value)
        )
    return measures


def _golden(answers: Sequence[Mapping[str, Any]]) -> list[Measure]:
    held = sum(answer["holds"] for answer in answers)
    prompts = ", ".join(f"“{answer['expected']}”" for answer in answers)
    return [Measure("golden answers", prompts, f"{held} of {len(answers)}")]


_ROOM = "headrace_server.prepare"
_PARTS = (
    *("reader", "cursor", "blocks", "llama", "linear", "decoder", "onnx_file", "tokenizer", "convert"),
    *("calibrate", "smoothing", "row_operators"),
)
_MODULES = (
    *(f"{_ROOM}.{name}" for name in ("smollm2", "card", "sources")),
    *(f"{_ROOM}.gguf.{name}" for name in _PARTS),
)


def _recipe(version: str) -> Recipe:
    return Recipe(
        model="smollm2",
        version=version,
        packages=(SMOLLM2,),
        modules=_MODULES,
        build=lambda folder, open_package: build_version(folder, open_package, version),
        data=(QUALITY_PATH, QUALITY_PATH.with_name("calibration-texts.json")),
    )


RECIPES = tuple(_recipe(version) for version in _PRECISIONS)
FP32 = Recipe(model="smollm2-fp32", version="1", packages=(SMOLLM2,), modules=_MODULES[1:], build=build_fp32)
"""Not part of the demo repository: tests build it when they need it."""
