"""A real encoder quantized: MiniLM on sentences of the standard library's documentation."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import inspect
import json
import random
import re
import subprocess
import threading
from pathlib import Path

import pytest

from headrace_server.models.load import load_model

_MODULES = (argparse, collections, datetime, decimal, json, random, subprocess, threading)


def _sentences() -> list[str]:
    found: dict[str, None] = {}
    for module in _MODULES:
        for value in vars(module).values():
            text = (inspect.getdoc(value) or "") if callable(value) else ""
            sentence = re.split(r"(?<=\.)\s", text.replace("\n", " "))[0]
            if 20 < len(sentence) < 200:
                found[sentence] = None
    return sorted(found)


@pytest.fixture
def calib(tmp_path: Path) -> Path:
    """48 sentences, a line each."""
    sentences = _sentences()
    path = tmp_path / "sentences.txt"
    path.write_text("\n".join(sentences[:: len(sentences) // 48][:48]) + "\n", encoding="utf-8")
    return path


def test_minilm_keeps_its_vectors_in_8_bits_and_each_is_its_own(demo_models: Path, calib: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (pip install 'headrace[quantize]')")
    from headrace_server.prepare.quantize.run import QuantizeOptions, quantize

    options = QuantizeOptions(
        target="cpu", mode="dynamic", calib=calib, out=tmp_path / "minilm" / "2", latency_s=0, search_s=0
    )
    made = quantize(demo_models / "minilm" / "1", options)
    report = made.report
    assert report.held_because == ""
    assert dict(report.operators) == {"MatMul": 36}
    assert not report.left
    assert report.after["cosine_mean"] > 0.995
    assert report.after["cosine_min"] > 0.98
    assert report.invariance.max_difference < 1e-3
    assert report.size_after < 0.7 * report.size_before
    assert load_model(made.folder, name="minilm", version="2").quantization is not None


@pytest.mark.full
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("target", "mode"), [("cpu", "static"), ("cpu", "w8"), ("tensorrt", "static")])
def test_minilm_meets_a_higher_bar_in_other_modes_with_some_layers_left_out(
    demo_models: Path, calib: Path, tmp_path: Path, target: str, mode: str
) -> None:
    pytest.importorskip("onnx", reason="onnx is not installed (pip install 'headrace[quantize]')")
    from headrace_server.prepare.quality.quality import Bar
    from headrace_server.prepare.quantize.run import QuantizeOptions, quantize

    options = QuantizeOptions(
        target=target, mode=mode, calib=calib, out=tmp_path / "minilm" / "2", latency_s=0, bar=Bar(min_cosine=0.995)
    )
    report = quantize(demo_models / "minilm" / "1", options).report
    assert report.held_because == ""
    assert report.operators["MatMul"] >= 24
    if mode == "static":
        # The second matrix of a feed-forward block is the sensitive one.
        worst = min(report.sensitivity, key=lambda layer: report.sensitivity[layer])
        assert worst.endswith("/narrow/product")
