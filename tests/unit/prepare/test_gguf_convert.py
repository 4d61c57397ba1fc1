"""A small llama's GGUF file becomes a folder whose graph says what the same llama says, worked out in NumPy."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from gguf_files import SHAPE, small_llama, small_tensors
from tokenizers import Tokenizer
from typer.testing import CliRunner

from headrace_server.cli.app import app
from headrace_server.models.generation import CacheKind
from headrace_server.models.load import load_model
from headrace_server.prepare.gguf import onnx_file
from headrace_server.prepare.gguf.blocks import BLOCK_TYPES, dequantize
from headrace_server.prepare.gguf.convert import convert_gguf
from headrace_server.prepare.gguf.linear import Precision, quantize_blocks
from headrace_server.prepare.gguf.reader import GgufFile
from headrace_server.prepare.gguf.row_operators import quantize_rows

Array = npt.NDArray[Any]
TOKENS = [72, 101, 108, 108, 111, 3, 200, 258, 9]


def expected_logits(tokens: list[int]) -> Array:
    """f64[t, v], with rotation in the file's own order: neighbours 2j and 2j+1 are a pair."""
    weights = {name: value.astype(np.float64) for name, value in small_tensors().items()}
    heads, kv_heads, dim = SHAPE["heads"], SHAPE["kv_heads"], SHAPE["head_dim"]

    def norm(value: Array, name: str) -> Array:
        return np.asarray(value / np.sqrt((value**2).mean(-1, keepdims=True) + 1e-5) * weights[name])

    def rotate(value: Array) -> Array:
        pairs = value.reshape(len(tokens), -1, dim // 2, 2)
        angles = np.outer(np.arange(len(tokens)), 10000.0 ** -(np.arange(dim // 2) * 2 / dim))[:, None]
        first, second = pairs[..., 0], pairs[..., 1]
        turned = (first * np.cos(angles) - second * np.sin(angles), second * np.cos(angles) + first * np.sin(angles))
        return np.stack(turned, -1).reshape(len(tokens), -1, dim).swapaxes(0, 1)

    hidden = weights["token_embd.weight"][tokens]
    for layer in range(SHAPE["layers"]):

        def linear(value: Array, role: str, layer: int = layer) -> Array:
            return np.asarray(value @ weights[f"blk.{layer}.{role}.weight"].T)

        normed = norm(hidden, f"blk.{layer}.attn_norm.weight")
        queries, keys = rotate(linear(normed, "attn_q")), rotate(linear(normed, "attn_k"))
        values = linear(normed, "attn_v").reshape(len(tokens), kv_heads, dim).swapaxes(0, 1)
        keys, values = (np.repeat(each, heads // kv_heads, axis=0) for each in (keys, values))
        scores = np.where(np.tri(len(tokens)) > 0, queries @ keys.swapaxes(1, 2) / np.sqrt(dim), -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (shares / shares.sum(-1, keepdims=True) @ values).swapaxes(0, 1).reshape(len(tokens), -1)
        hidden = hidden + linear(attended, "attn_output")
        normed = norm(hidden, f"blk.{layer}.ffn_norm.weight")
        gate = linear(normed, "ffn_gate")
        hidden = hidden + linear(gate / (1 + np.exp(-gate)) * linear(normed, "ffn_up"), "ffn_down")
    return np.asarray(norm(hidden, "output_norm.weight") @ weights["token_embd.weight"].T)


def converted(folder: Path, precision: Precision) -> Path:
    convert_gguf(GgufFile.parse(small_llama(), name="small.gguf"), folder, precision=precision)
    return folder


def logits(folder: Path, tokens: list[int]) -> Array:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    feeds: dict[str, Array] = {
        "input_ids": np.array([tokens], np.int64),
        "seqlens_k": np.array([len(tokens) - 1], np.int32),
        "total_sequence_length": np.array(len(tokens), np.int32),
        "logit_rows": np.arange(len(tokens)),
    }
    for node in session.get_inputs():
        if node.name.startswith("past"):
            feeds[node.name] = np.zeros((1, SHAPE["kv_heads"], 16, SHAPE["head_dim"]), np.float32)
    return np.asarray(session.run(["logits"], feeds)[0])


def test_fp32_says_what_numpy_says(tmp_path: Path) -> None:
    assert np.abs(logits(converted(tmp_path, Precision.FP32), TOKENS) - expected_logits(TOKENS)).max() < 1e-4


@pytest.mark.parametrize(("precision", "limit"), [(Precision.W8, 0.05), (Precision.RQ8, 0.08)])
def test_quantized_builds_stay_near(tmp_path: Path, precision: Precision, limit: float) -> None:
    expected = expected_logits(TOKENS)
    error = logits(converted(tmp_path, precision), TOKENS) - expected
    assert np.sqrt((error**2).mean()) < limit * expected.std()


def test_weights_too_large_for_one_file_stand_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    one = logits(converted(tmp_path / "one", Precision.W8), TOKENS)
    monkeypatch.setattr(onnx_file, "_MAX_MESSAGE", 1000)
    two = logits(converted(tmp_path / "two", Precision.W8), TOKENS)
    assert (tmp_path / "two" / onnx_file.DATA_NAME).stat().st_size > 50_000
    assert (tmp_path / "two" / onnx_file.GRAPH_NAME).stat().st_size < 50_000
    assert np.array_equal(one, two)


def test_the_folder_says_what_the_contract_names(tmp_path: Path) -> None:
    folder = converted(tmp_path, Precision.RQ8)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["headrace"] == {"cache": "shared_buffer", "precision": "rq8"}
    assert (config["num_hidden_layers"], config["head_dim"], config["vocab_size"]) == (2, 16, 259)
    assert json.loads((folder / "generation_config.json").read_text()) == {"bos_token_id": 256, "eos_token_id": 257}
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["bos_token"], settings["eos_token"]) == ("<s>", "</s>")
    assert settings["chat_template"].startswith("{% for m")
    graph = onnx.load(folder / "model.onnx").graph
    assert [node.name for node in graph.input][:4] == ["input_ids", "seqlens_k", "total_sequence_length", "logit_rows"]
    assert [axis.dim_param or axis.dim_value for axis in graph.input[4].type.tensor_type.shape.dim] == [
        "batch", 2, "max_length", 16,
    ]  # fmt: skip


@pytest.mark.parametrize("precision", Precision)
def test_every_build_is_loaded_as_one_that_attends_in_place(precision: Precision, tmp_path: Path) -> None:
    generator = load_model(converted(tmp_path, precision), name="small", version="1").generator
    assert generator is not None
    assert generator.spec.cache is CacheKind.SHARED_BUFFER


def test_the_tokenizer_takes_bytes_apart_and_knows_its_control_tokens(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(str(converted(tmp_path, Precision.FP32) / "tokenizer.json"))
    ids = tokenizer.encode("é<|user|>\n").ids
    assert ids[2] == 258
    assert len(ids) == 4
    assert tokenizer.decode(ids, skip_special_tokens=False) == "é<|user|>\n"


def test_a_row_of_zeros_stays_zero() -> None:
    values, scales = quantize_rows(np.zeros((2, 32), np.float32))
    assert not values.any()
    assert np.isfinite(scales).all()
    assert (quantize_blocks(np.zeros((2, 64), np.float32))[0] == 128).all()


def test_q8_0_weights_come_back_unchanged() -> None:
    rng = np.random.default_rng(5)
    blocks = rng.integers(-127, 128, (40, 32)).astype(np.int8)
    blocks[:, 7] = 127  # the largest of a block is what its scale was made from
    scales = rng.uniform(1e-4, 1, 40).astype(np.float16)
    raw = b"".join(struct.pack("<e", scale) + block.tobytes() for scale, block in zip(scales, blocks, strict=True))
    matrix = dequantize(memoryview(raw), BLOCK_TYPES[8]).reshape(10, 128)
    values, found = quantize_blocks(matrix)
    assert np.array_equal(values.reshape(40, 32).astype(np.int16) - 128, blocks)
    assert np.array_equal(found.reshape(-1), scales.astype(np.float32))


def test_the_command_makes_a_version_and_overwrites_none(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(small_llama())
    command = ["convert", "gguf", str(tmp_path / "small.gguf"), str(tmp_path / "models"), "--quantization", "w8"]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert sorted(path.name for path in (tmp_path / "models" / "small" / "1").iterdir()) == [
        "config.json", "generation_config.json", "model.onnx", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    again = CliRunner().invoke(app, command)
    assert again.exit_code == 1
    assert "is there already" in again.output


def test_the_command_says_in_one_line_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(small_llama()[:5000])
    answer = CliRunner().invoke(app, ["convert", "gguf", str(tmp_path / "small.gguf"), str(tmp_path / "models")])
    assert answer.exit_code == 1
    assert answer.output.startswith("headrace: small.gguf: not a usable GGUF file: ")
    assert len(answer.output.splitlines()) == 2  # and its cure
    assert not (tmp_path / "models").exists()
