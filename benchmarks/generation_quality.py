"""What quantization costs each engine, by one measure: its distributions beside those of fp32, on the same tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from generation_models import FOLDERS

from headrace_server.prepare.decoder_quality import (
    DecoderQuality,
    TextQuality,
    compare_logits,
    measure_quality,
    quality_texts,
    read_logits,
)

__all__ = ["measure_all"]


def measure_all(processes: Sequence[Any], builds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A row an engine: `processes` are asked for their logits, `builds` are ours."""
    texts = quality_texts()
    for name in builds:
        yield _row(name, measure_quality(FOLDERS[name], FOLDERS["fp32"], texts))
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "logits.npy"))
        found: dict[str, list[TextQuality]] = {process.name: [] for process in processes}
        for text, tokens, reference in read_logits(FOLDERS["fp32"], texts):
            for process in processes:
                process.ask("score", tokens=tokens.tolist(), path=path)
                found[process.name].append(compare_logits(text, tokens, np.load(path), reference))
    for name, qualities in found.items():
        yield _row(name, DecoderQuality(texts=tuple(qualities)))


def _row(name: str, quality: DecoderQuality) -> dict[str, Any]:
    total = quality.total
    return {
        "section": "quality",
        "case": total.num_tokens,
        "engine": name,
        "kl": total.kl_divergence,
        "top1": total.top1_agreement,
        "perplexity": total.perplexity,
        "fp32_perplexity": total.fp32_perplexity,
    }
