"""The sentence embedder all-MiniLM-L6-v2, as a sentence-transformers folder: version 1 in fp32, version 2 in int8."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from headrace_server.prepare.bert import BertConfig, Weights, add_bert_encoder, bert_inputs
from headrace_server.prepare.card import Measure, ModelCard
from headrace_server.prepare.fetch import Archive
from headrace_server.prepare.graph import GraphBuilder
from headrace_server.prepare.recipe import OpenPackage, Recipe
from headrace_server.prepare.sources import MINILM_FP32, MINILM_INT8

__all__ = ["MAX_TOKENS", "RECIPES", "build_fp32", "build_int8", "read_weights", "write_tokenizer"]

MAX_TOKENS = 256  # what sentence_bert_config.json says the model was trained to read

_LAYOUT = ("config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json")
_SENTENCES = "128 sentences of Python's standard library documentation"
_TEST = "`pytest tests/integration -k minilm`, which fails where a figure does not hold"


def build_fp32(folder: Path, open_package: OpenPackage) -> None:
    """Write version 1: the weights as an ONNX graph with the tokenizer and the pooling configuration beside it."""
    archive = open_package(MINILM_FP32)
    graph = GraphBuilder("all-MiniLM-L6-v2")
    bert_inputs(graph)
    config = BertConfig.from_json(archive.read("config.json"))
    hidden = add_bert_encoder(graph, read_weights(archive), config, out="last_hidden_state")
    graph.output(hidden, np.float32, ("batch", "sequence", config.hidden_size))
    graph.save(folder / "onnx" / "model.onnx", {"source": MINILM_FP32.requirement})
    _write_layout(folder, archive)
    ModelCard(
        title="minilm, version 1: all-MiniLM-L6-v2 in fp32",
        summary="A sentence embedder: a text of up to 256 tokens becomes 384 numbers, near for near meanings.",
        packages=(MINILM_FP32,),
        licence="Apache-2.0; `LICENSE` and `NOTICE` are copied beside the model.",
        made=(
            "`model.safetensors` (sentence-transformers/all-MiniLM-L6-v2) was written as an ONNX graph: opset 17, "
            "standard operators only, every value unchanged in fp32.",
            "The tokenizer was copied; its fixed padding to 128 was removed and its truncation set to 256 tokens.",
        ),
        measures=(
            Measure("largest difference to a NumPy forward pass in f64", "8 texts, pooled vectors", "< 1e-5"),
            Measure("cosine of a text alone to the same text in a padded batch", "8 texts", "≥ 0.99999"),
        ),
        measured_by=_TEST,
        limits=_LIMITS,
    ).write(folder)


def build_int8(folder: Path, open_package: OpenPackage) -> None:
    """Write version 2: the ready file with int8 weights, with version 1's tokenizer and pooling."""
    archive = open_package(MINILM_FP32)
    graph = folder / "onnx" / "model.onnx"
    graph.parent.mkdir(parents=True)
    graph.write_bytes(open_package(MINILM_INT8).read("model.onnx"))
    _write_layout(folder, archive)
    ModelCard(
        title="minilm, version 2: all-MiniLM-L6-v2 with int8 weights",
        summary="The same sentence embedder in a quarter of the size.",
        packages=(MINILM_INT8, MINILM_FP32),
        licence="Apache-2.0; `LICENSE` and `NOTICE` of the original weights are copied beside the model.",
        made=(
            "`model.onnx` was copied unchanged; tokenizer and pooling are version 1's.",
            "The file stores weights as int8 with scales and widens them when loaded: small on disk, run as fp32.",
        ),
        measures=(
            Measure("mean cosine to version 1", _SENTENCES, "0.9996"),
            Measure("smallest cosine to version 1", _SENTENCES, "0.9993"),
            Measure("smallest cosine to version 1", "8 odd texts, one of a single letter", "0.9985"),
            Measure("cosine of a text alone to the same text in a padded batch", "8 texts", "≥ 0.99999"),
        ),
        measured_by=_TEST,
        limits=_LIMITS,
    ).write(folder)


def read_weights(archive: Archive) -> Weights:
    """The encoder's weights by PyTorch name."""
    from safetensors.numpy import load

    return load(archive.read("model.safetensors"))


def write_tokenizer(folder: Path, archive: Archive, *, max_tokens: int) -> None:
    """Write tokenizer.json and what belongs to it, cutting texts at `max_tokens` and padding nothing by itself."""
    tokenizer = json.loads(archive.read("tokenizer.json"))
    tokenizer["padding"] = None
    tokenizer["truncation"] = {"direction": "Right", "max_length": max_tokens, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    settings = json.loads(archive.read("tokenizer_config.json")) | {"model_max_length": max_tokens}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    (folder / "special_tokens_map.json").write_bytes(archive.read("special_tokens_map.json"))


def _write_layout(folder: Path, archive: Archive) -> None:
    for name in (*_LAYOUT, "LICENSE", "NOTICE"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(archive.read(name))
    write_tokenizer(folder, archive, max_tokens=MAX_TOKENS)


_LIMITS = (
    "English. Texts are cut after 256 tokens.",
    "Nearness of meaning is not truth: a sentence and its denial can be near.",
)

_ROOM = "headrace_server.prepare"
_MODULES = tuple(f"{_ROOM}.{name}" for name in ("minilm", "bert", "graph", "card", "sources"))

RECIPES = (
    Recipe(model="minilm", version="1", packages=(MINILM_FP32,), modules=_MODULES, build=build_fp32),
    Recipe(model="minilm", version="2", packages=(MINILM_INT8, MINILM_FP32), modules=_MODULES, build=build_int8),
)
