"""GGUF files are read as they are, and refused in one line where they are not what they should be."""

from __future__ import annotations

import random
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from gguf_files import gguf_bytes, small_llama, small_metadata, small_tensors

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.gguf.convert import convert_gguf
from headrace_server.prepare.gguf.linear import Precision
from headrace_server.prepare.gguf.llama import LlamaConfig, LlamaWeights
from headrace_server.prepare.gguf.reader import GgufFile
from headrace_server.prepare.gguf.tokenizer import GgufTokenizer

SMALL = small_llama()
HEADER = SMALL.index(small_tensors()["token_embd.weight"].tobytes())


def read_whole(content: bytes) -> None:
    """Everything a conversion reads before it writes, and every weight."""
    file = GgufFile.parse(content, name="x.gguf")
    config = LlamaConfig.read(file)
    weights = LlamaWeights(file, config)
    GgufTokenizer.read(file, vocab_size=config.vocab_size, max_length=config.max_positions).json()
    for name in file.tensors:
        stem = name.removesuffix(".weight")
        (weights.vector if "norm" in stem else lambda stem: weights.matrix([stem]))(stem)


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_and_tensors_come_back_as_written(version: int) -> None:
    tensors = small_tensors()
    content = gguf_bytes(
        small_metadata(), {name: (0, each.shape, each.tobytes()) for name, each in tensors.items()}, version=version
    )
    file = GgufFile.parse(content, name="x.gguf")
    assert file.version == version
    assert file.metadata["general.name"] == "small"
    assert file.metadata["tokenizer.ggml.tokens"][-1] == "<|user|>"
    assert file.metadata["tokenizer.ggml.token_type"].tolist()[-4:] == [1, 3, 3, 3]
    for name, values in tensors.items():
        assert np.array_equal(file.tensors[name].values(), values)


def test_a_file_on_disk_is_the_same_as_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(SMALL)
    file = GgufFile.open(tmp_path / "small.gguf")
    assert np.array_equal(file.tensors["output_norm.weight"].values(), small_tensors()["output_norm.weight"])


def spoiled(at: int, replacement: bytes) -> bytes:
    return SMALL[:at] + replacement + SMALL[at + len(replacement) :]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "magic: needs 4 bytes"),
        (b"GGML" + SMALL[4:], "does not begin with GGUF"),
        (spoiled(4, struct.pack("<I", 1)), "version 1"),
        (spoiled(4, struct.pack(">I", 3)), "version 50331648"),
        (spoiled(8, struct.pack("<Q", 1 << 60)), "number of tensors: 1152921504606846976"),
        (spoiled(16, struct.pack("<Q", 1 << 40)), "number of metadata entries: 1099511627776"),
        (spoiled(24, struct.pack("<Q", 1 << 62)), "a metadata key, length: 4611686018427387904"),
        (SMALL[:-1], "needs 24576 bytes"),
        (small_llama(general__alignment=24), "general.alignment: 24 is no power of two"),
        (gguf_bytes({}, {"a": (0, (2, 0), b"")}), "tensor a: 0 numbers a row"),
        (gguf_bytes({}, {"a": (2, (33,), bytes(18))}), "Q4_0 needs multiples of 32"),
        (gguf_bytes({}, {"a": (99, (32,), bytes(18))}), "tensor a: type 99"),
        (gguf_bytes({}, {"a": (0, (1 << 40, 1 << 40), b"")}), "the file has 0 left"),
        (gguf_bytes({}, {"a": (0, (1,) * 5, bytes(4))}), "tensor a: 5 dimensions"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line(content: bytes, said: str) -> None:
    with pytest.raises(PrepareError) as error:
        GgufFile.parse(content, name="x.gguf")
    assert said in error.value.message
    assert error.value.message.startswith("x.gguf: not a usable GGUF file: ")
    assert "\n" not in error.value.message


def test_tensors_that_overlap_are_refused() -> None:
    content = gguf_bytes({}, {"a": (0, (16,), bytes(64)), "b": (0, (8,), bytes(32))})
    at = content.rindex(struct.pack("<Q", 64))  # b's offset
    with pytest.raises(PrepareError, match="tensor b: begins inside tensor a"):
        GgufFile.parse(content[:at] + struct.pack("<Q", 32) + content[at + 8 :], name="x")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"general__architecture": "mamba"}, "architecture 'mamba', only 'llama'"),
        ({"llama__expert_count": 8}, "mixture of experts"),
        ({"llama__rope__scaling__type": "yarn"}, "rotary scaling 'yarn'"),
        ({"llama__rope__dimension_count": 8}, "llama.rope.dimension_count is 8"),
        ({"llama__block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
        ({"llama__block_count": 1}, "tensor blk.1.attn_norm.weight is not one of a plain llama"),
        ({"llama__block_count": None}, "llama.block_count is missing"),
        ({"llama__block_count": 2000000000}, "llama.block_count is 2000000000"),
        ({"llama__context_length": 1 << 31}, "llama.context_length is 2147483648, 1 to 262144"),
        ({"llama__attention__head_count": 3}, "3 heads of 21 over 2 key heads"),
        ({"llama__attention__head_count_kv": 4}, "expected (64, 64)"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, "more than 0 is expected"),
        ({"llama__rope__freq_base": float("nan")}, "a number is expected"),
        ({"tokenizer__ggml__model": "llama"}, "tokenizer 'llama', only byte-level BPE"),
        ({"tokenizer__ggml__pre": "own"}, "pre-tokenizer 'own', known are"),
        ({"tokenizer__ggml__tokens": ["a", "b"]}, "2 tokens, 2 of them different, for a vocabulary of 259"),
        ({"tokenizer__ggml__merges": ["a zz"]}, "merge 'a zz' is no pair of tokens"),
        ({"tokenizer__ggml__eos_token_id": 300}, "eos_token_id is 300, 0 to 258"),
        ({"tokenizer__ggml__eos_token_id": None}, "eos_token_id is missing"),
        ({"tokenizer__ggml__token_type": [1, 2]}, "2 token types for 259 tokens"),
    ],
)
def test_what_cannot_be_converted_is_refused_before_anything_is_written(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    file = GgufFile.parse(small_llama(**changes), name="x.gguf")
    with pytest.raises(PrepareError) as error:
        convert_gguf(file, tmp_path, precision=Precision.FP32)
    assert said in error.value.message
    assert "\n" not in error.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_weight_that_is_no_number_is_refused() -> None:
    tensors = small_tensors()
    tensors["blk.1.ffn_up.weight"][3, 5] = np.inf
    content = gguf_bytes(small_metadata(), {name: (0, each.shape, each.tobytes()) for name, each in tensors.items()})
    with pytest.raises(PrepareError, match=r"blk\.1\.ffn_up\.weight holds a number that is not finite"):
        read_whole(content)


def fuzzed(seed: int) -> bytes:
    """A truncation, half of them inside the header, or some changed bits of the header."""
    rng = random.Random(seed)
    if seed % 3 == 0:
        return SMALL[: rng.randrange(len(SMALL) if seed % 2 else HEADER)]
    content = bytearray(SMALL)
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(HEADER)] ^= 1 << rng.randrange(8)
    return bytes(content)


def refusal(content: bytes) -> str | None:
    try:
        read_whole(content)
    except PrepareError as error:
        return error.message
    return None


@pytest.mark.parametrize(("first", "count"), [(0, 120), pytest.param(120, 1200, marks=pytest.mark.full)])
def test_damaged_files_are_read_or_refused_and_never_ask_for_much_memory(first: int, count: int) -> None:
    refused = 0
    tracemalloc.start()
    try:
        for seed in range(first, first + count):
            content = fuzzed(seed)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            message = refusal(content)
            refused += message is not None
            assert "\n" not in (message or "")
            assert len(message or "") < 600
            assert tracemalloc.get_traced_memory()[1] - before < 8 * len(SMALL)
    finally:
        tracemalloc.stop()
    assert refused > count // 2  # the rest: names, tokens and weights that are others, and as good
