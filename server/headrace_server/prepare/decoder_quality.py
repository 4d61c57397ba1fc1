"""How near a quantized decoder stays to its fp32 build: divergence, agreement, perplexity, golden answers.

Each text is read once by both (teacher forcing): at every position the two say how likely each next token is.

KL divergence      of the quantized distribution from fp32's, in nats, mean over positions: 0 is the same
top-1 agreement    share of positions where both find the same token the likeliest
perplexity         exp of the mean negative log-likelihood of the text's own next tokens
golden answers     prompts whose greedy continuation must begin as said: perplexity alone does not notice a head that
                   is wrong where it matters
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.decode import DecodeState
from headrace_server.engines.factory import create_decode_state
from headrace_server.models.load import load_model
from headrace_server.prepare.fault import PrepareError

__all__ = [
    "DecoderQuality",
    "GoldenAnswer",
    "TextQuality",
    "answer_golden",
    "compare_logits",
    "measure_quality",
    "quality_texts",
    "read_logits",
]

Floats = npt.NDArray[np.float32]

_ROWS = 64  # positions whose distributions are in memory at once: 49,152 numbers each
_TEXTS = "data/generation-texts.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextQuality:
    """Of one text: `perplexity` of the quantized build and of fp32; `num_tokens` are the positions compared."""

    text: str
    num_tokens: int
    kl_divergence: float
    top1_agreement: float
    perplexity: float
    fp32_perplexity: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenAnswer:
    """What followed a prompt, greedily, and whether it begins as it must."""

    prompt: str
    expected: str
    answer: str

    @property
    def holds(self) -> bool:
        return self.answer.strip().startswith(self.expected)


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderQuality:
    """Of one build: every text, and all of them together (each position counts once)."""

    texts: tuple[TextQuality, ...]

    @property
    def total(self) -> TextQuality:
        weights = np.array([text.num_tokens for text in self.texts], np.float64)

        def mean(name: str) -> float:
            values = np.array([getattr(text, name) for text in self.texts])
            if name.endswith("perplexity"):
                return float(np.exp(np.average(np.log(values), weights=weights)))
            return float(np.average(values, weights=weights))

        names = ("kl_divergence", "top1_agreement", "perplexity", "fp32_perplexity")
        return TextQuality(text="all", num_tokens=int(weights.sum()), **{name: mean(name) for name in names})

    def as_json(self) -> list[dict[str, Any]]:
        """The figures for programs, the total last; rounded to what repeats from machine to machine."""
        rows = [asdict(text) for text in (*self.texts, self.total)]
        return [
            {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()} for row in rows
        ]


def quality_texts() -> Mapping[str, str]:
    """The texts that figures are measured on, by name: prose, prose with code, a templated chat, three languages."""
    raw = resources.files("headrace_server.prepare").joinpath(_TEXTS).read_text(encoding="utf-8")
    texts: dict[str, str] = json.loads(raw)["texts"]
    return texts


def measure_quality(folder: Path, fp32_folder: Path, texts: Mapping[str, str]) -> DecoderQuality:
    """The build in `folder` beside the fp32 build of the same model, on each text.

    time    about a second a text and build on two cores
    memory  both builds, and for the longest text one distribution a position, twice
    """
    tokenizer = _tokenizer(folder)
    ids = {name: np.array(tokenizer.encode(text, add_special_tokens=False).ids) for name, text in texts.items()}
    longest = max(map(len, ids.values())) + 1
    found = []
    with _opened(folder, longest) as build, _opened(fp32_folder, longest) as reference:
        for name, tokens in ids.items():
            found.append(compare_logits(name, tokens, _logits(build, tokens), _logits(reference, tokens)))
    return DecoderQuality(texts=tuple(found))


def read_logits(folder: Path, texts: Mapping[str, str]) -> Iterator[tuple[str, npt.NDArray[np.int64], Floats]]:
    """Of each text its name, its n tokens, and logits f32[n − 1, v]: what the build says of each next token."""
    tokenizer = _tokenizer(folder)
    ids = {name: np.array(tokenizer.encode(text, add_special_tokens=False).ids) for name, text in texts.items()}
    with _opened(folder, max(map(len, ids.values())) + 1) as build:
        for name, tokens in ids.items():
            yield name, tokens, _logits(build, tokens)


def answer_golden(folder: Path, golden: Sequence[tuple[str, str]], *, num_tokens: int = 16) -> list[GoldenAnswer]:
    """Greedy continuations of (prompt, expected) pairs. A prompt is given as it is, special tokens written out."""
    tokenizer = _tokenizer(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    ends = np.atleast_1d(config["eos_token_id"])
    prompts = [np.array(tokenizer.encode(prompt, add_special_tokens=False).ids) for prompt, _ in golden]
    answers = []
    with _opened(folder, max(map(len, prompts)) + num_tokens + 1) as build:
        for tokens, (prompt, expected) in zip(prompts, golden, strict=True):
            build.clear(0)
            new = [int(build.prefill(0, tokens).argmax())]
            while len(new) < num_tokens and new[-1] not in ends:
                new.append(int(build.decode(np.array(new[-1:]))[0].argmax()))
            answers.append(GoldenAnswer(prompt=prompt, expected=expected, answer=tokenizer.decode(new)))
    return answers


def _tokenizer(folder: Path) -> Tokenizer:
    tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tokenizer


@contextmanager
def _opened(folder: Path, max_length: int) -> Iterator[DecodeState]:
    model = load_model(folder, name=folder.parent.name, version=folder.name)
    if model.generator is None:
        raise PrepareError(f"{folder}: the model in it does not generate text", cure="give a decoder's version folder")
    policy = replace(model.generator.spec.policy, max_slots=1, max_length=max_length)
    spec = replace(model.generator.spec, policy=policy)
    generator = replace(model.generator, spec=spec)
    state = create_decode_state(replace(model, generator=generator), EngineOptions(), ThreadBudget())
    try:
        yield state
    finally:
        state.close()


def _logits(state: DecodeState, tokens: npt.NDArray[np.int64]) -> Floats:
    """f32[n − 1, v]: what is said of each next token of the text."""
    state.clear(0)
    return state.prefill(0, tokens[:-1], all_rows=True)


def compare_logits(name: str, tokens: npt.NDArray[np.int64], build: Floats, reference: Floats) -> TextQuality:
    """What two builds, f32[n − 1, v] each, say of the n tokens of one text."""
    divergence, agreement = 0.0, 0
    likelihoods = np.zeros(2)
    for start in range(0, len(build), _ROWS):
        rows = slice(start, start + _ROWS)
        own, true = (_log_softmax(logits[rows]) for logits in (build, reference))
        divergence += float((np.exp(true) * (true - own)).sum())
        agreement += int((own.argmax(-1) == true.argmax(-1)).sum())
        following = tokens[1:][rows, None]
        likelihoods += [float(np.take_along_axis(each, following, -1).sum()) for each in (own, true)]
    count = len(build)
    perplexity, fp32_perplexity = np.exp(-likelihoods / count)
    return TextQuality(
        text=name,
        num_tokens=count,
        kl_divergence=divergence / count,
        top1_agreement=agreement / count,
        perplexity=float(perplexity),
        fp32_perplexity=float(fp32_perplexity),
    )


def _log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    shifted = (logits - logits.max(-1, keepdims=True)).astype(np.float64)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
