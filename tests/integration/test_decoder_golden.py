"""The packaged language model: its fp32 build beside transformers, token for token, and both served builds' answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from tokenizers import Tokenizer

from headrace_server.prepare.decoder_quality import answer_golden, measure_quality, quality_texts
from headrace_server.prepare.smollm2 import GOLDEN, QUALITY_PATH

_DATA = Path(__file__).resolve().parents[1] / "data" / "generation"
_PROMPTS = json.loads((_DATA / "greedy.json").read_text(encoding="utf-8"))["prompts"]
_SAMPLE = ("capital", "french", "chat-poem")
_CASES = [
    pytest.param(prompt, chunk, id=f"{prompt['name']}-{chunk or 'whole'}", marks=[] if normal else pytest.mark.full)
    for prompt in _PROMPTS
    for chunk in (0, 7, 128)
    if (normal := prompt["name"] in _SAMPLE and chunk != 128) or len(prompt["ids"]) > chunk
]


class Loop:
    """The plainest greedy loop there is: NumPy keeps the cache, one memory bound as past and as present."""

    def __init__(self, folder: Path, max_length: int) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        shapes = {node.name: node.shape for node in self.session.get_inputs() if node.name.startswith("past")}
        self.cache = {name: np.zeros((1, shape[1], max_length, shape[3]), np.float32) for name, shape in shapes.items()}
        self.vocabulary = self.session.get_outputs()[0].shape[1]

    def run(self, tokens: list[int], past: int) -> int:
        """The likeliest token after `tokens`, which follow `past` tokens in the cache."""
        binding, total = self.session.io_binding(), past + len(tokens)
        logits = np.empty((1, self.vocabulary), np.float32)
        feeds: dict[str, Any] = {
            "input_ids": np.array([tokens], np.int64),
            "seqlens_k": np.array([total - 1], np.int32),
            "total_sequence_length": np.array(total, np.int32),
            "logit_rows": np.array([len(tokens) - 1], np.int64),
        }
        for name, value in (feeds | self.cache).items():
            binding.bind_input(name, "cpu", 0, value.dtype.type, list(value.shape), value.ctypes.data)
        for name, value in self.cache.items():
            present = name.replace("past_key_values", "present")
            binding.bind_output(present, "cpu", 0, np.float32, list(value.shape), value.ctypes.data)
        binding.bind_output("logits", "cpu", 0, np.float32, list(logits.shape), logits.ctypes.data)
        self.session.run_with_iobinding(binding)
        return int(logits[0].argmax())

    def greedy(self, ids: list[int], new_tokens: int, end: int, chunk: int) -> list[int]:
        past = 0
        for start in range(0, len(ids), chunk or len(ids)):
            part = ids[start : start + (chunk or len(ids))]
            following = [self.run(part, past)]
            past += len(part)
        while len(following) < new_tokens and following[-1] != end:
            following.append(self.run(following[-1:], past))
            past += 1
        return following


@pytest.fixture(scope="module")
def loop(fp32_folder: Path) -> Loop:
    return Loop(fp32_folder, 512)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("prompt", "chunk"), _CASES)
def test_fp32_continues_as_transformers_does_token_for_token(loop: Loop, prompt: dict[str, Any], chunk: int) -> None:
    assert loop.greedy(prompt["ids"], prompt["new_tokens"], 2, chunk) == prompt["following"]


def test_the_fixtures_cover_what_they_are_for() -> None:
    assert len(_PROMPTS) >= 20
    assert max(len(prompt["ids"]) for prompt in _PROMPTS) >= 300
    assert all(len(prompt["margins"]) == len(prompt["following"]) for prompt in _PROMPTS)
    assert all(len(each["following"]) == each["new_tokens"] or each["following"][-1] == 2 for each in _PROMPTS)


@pytest.mark.parametrize("version", ["1", "2"])
def test_tokenizer_gives_the_reference_s_ids_and_the_text_back(demo_models: Path, version: str) -> None:
    tokenizer = Tokenizer.from_file(str(demo_models / "smollm2" / version / "tokenizer.json"))
    texts = json.loads((_DATA / "tokens.json").read_text(encoding="utf-8"))["texts"]
    assert len(texts) >= 40
    for each in (*texts, *_PROMPTS):
        ids = tokenizer.encode(each["text"], add_special_tokens=False).ids
        assert ids == each["ids"], each["text"]
        assert tokenizer.decode(ids, skip_special_tokens=False) == each["text"]


@pytest.mark.parametrize("version", ["1", "2"])
def test_golden_answers_hold_in_every_build(demo_models: Path, version: str) -> None:
    for each in answer_golden(demo_models / "smollm2" / version, GOLDEN):
        assert each.holds, each


@pytest.mark.parametrize(
    ("version", "names"),
    [("1", ["chat"]), ("2", ["chat"]), pytest.param("1", None, marks=pytest.mark.full),
     pytest.param("2", None, marks=pytest.mark.full)],
)  # fmt: skip
def test_decoder_quality_is_what_the_card_says(
    demo_models: Path, fp32_folder: Path, version: str, names: list[str] | None
) -> None:
    texts = {name: text for name, text in quality_texts().items() if names is None or name in names}
    said = {row["text"]: row for row in json.loads(QUALITY_PATH.read_text(encoding="utf-8"))[version]["beside_fp32"]}
    for row in measure_quality(demo_models / "smollm2" / version, fp32_folder, texts).as_json():
        if row["text"] == "all" and names is not None:
            continue
        # Another processor rounds otherwise: figures repeat nearly, not to the digit.
        assert row["kl_divergence"] == pytest.approx(said[row["text"]]["kl_divergence"], rel=0.25, abs=0.002)
        assert row["top1_agreement"] == pytest.approx(said[row["text"]]["top1_agreement"], abs=0.03)
        assert row["perplexity"] == pytest.approx(said[row["text"]]["perplexity"], rel=0.03)
        assert row["fp32_perplexity"] == pytest.approx(said[row["text"]]["fp32_perplexity"], rel=0.001)
