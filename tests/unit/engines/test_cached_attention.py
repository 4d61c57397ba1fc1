"""The kernels' attention over a cache: beside the runtime's own operator, which a graph says it means, and itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from headrace_kernels import _dispatch, graph_operators
from headrace_server.engines.onnx.operators import add_operators
from headrace_server.prepare.gguf.onnx_file import GRAPH_NAME, StreamedGraph
from headrace_server.prepare.gguf.row_operators import add_cached_attention, declare_attention

Floats = npt.NDArray[np.float32]
MAX_LENGTH = 90  # no multiple of what keys are scored by


@pytest.fixture(params=graph_operators.variants())
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    with _dispatch.force(request.param) as name:
        yield name


class Attention:
    """One layer's attention in a session, and a cache that it appends to in place."""

    def __init__(
        self, folder: Path, *, heads: int, kv_heads: int, dim: int, operators: bool = True, batch: int = 1
    ) -> None:
        self._width = (heads + 2 * kv_heads) * dim
        cache = ("batch", kv_heads, "length", dim)
        graph = StreamedGraph("attention")
        inputs = [graph.input("qkv", np.float32, ("batch", "sequence", self._width))]
        inputs += [graph.input(name, np.float32, cache) for name in ("past_key", "past_value")]
        inputs += [graph.input("seqlens_k", np.int32, ("batch",)), graph.input("total", np.int32, ())]
        angles = np.outer(np.arange(MAX_LENGTH, dtype=np.float32), 100.0 ** -(np.arange(dim // 2) * 2 / dim))
        inputs += [
            graph.constant("cosines", np.cos(angles).astype(np.float32)),
            graph.constant("sines", np.sin(angles).astype(np.float32)),
        ]
        outputs = [graph.output("attended", np.float32, ("batch", "sequence", heads * dim))]
        outputs += [graph.output(name, np.float32, cache) for name in ("present_key", "present_value")]
        declare_attention(graph)
        add_cached_attention(graph, inputs, outputs, num_heads=heads, num_kv_heads=kv_heads)
        graph.save(folder)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        if operators:
            add_operators(onnxruntime, options)
        self._session: Any = onnxruntime.InferenceSession(str(folder / GRAPH_NAME), options)
        self.cache = [np.full((batch, kv_heads, MAX_LENGTH, dim), 7, np.float32) for _ in range(2)]
        self._shape = (heads * dim,)

    def drawn(self, batch: int, sequence: int, seed: int = 0) -> Floats:
        return np.random.default_rng(seed).standard_normal((batch, sequence, self._width), dtype=np.float32)

    def run(self, qkv: Floats, lengths: list[int], row: int = 0, *, in_place: bool = True) -> Floats:
        """Of rows `row` and on, which hold `lengths` tokens once the new ones are in."""
        batch, sequence, _ = qkv.shape
        out = np.empty((batch, sequence, *self._shape), np.float32)
        seqlens, total = np.array(lengths, np.int32) - 1, np.array(max(lengths), np.int32)
        past = [memory[row : row + batch] for memory in self.cache]
        present = past if in_place else [np.zeros_like(memory) for memory in past]
        names = ("qkv", "seqlens_k", "total", "past_key", "past_value", "attended", "present_key", "present_value")
        binding = self._session.io_binding()
        for name, array in zip(names, (qkv, seqlens, total, *past, out, *present), strict=True):
            bind = binding.bind_output if name in names[5:] else binding.bind_input
            bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
        self._session.run_with_iobinding(binding)
        if not in_place:
            for memory, made in zip(past, present, strict=True):
                memory[:] = made
        return out


SHAPES = [(9, 3, 64), (4, 4, 16), (6, 1, 80), (2, 1, 32)]


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), SHAPES)
@pytest.mark.parametrize("in_place", [True, False])
def test_prompts_parts_and_steps_are_what_the_runtime_s_own_operator_says(
    variant: str, heads: int, kv_heads: int, dim: int, in_place: bool, tmp_path: Path
) -> None:
    both = [
        Attention(tmp_path, heads=heads, kv_heads=kv_heads, dim=dim, operators=operators) for operators in (True, False)
    ]
    length = 0
    for seed, size in enumerate((37, 1, 1, 20, 5, 26)):
        length += size
        mine, wanted = (
            each.run(each.drawn(1, size, seed), [length], in_place=in_place or each is both[1]) for each in both
        )
        assert np.allclose(mine, wanted, atol=3e-6)
        for memory, expected in zip(both[0].cache, both[1].cache, strict=True):
            assert np.allclose(memory[:, :, :length], expected[:, :, :length], atol=1e-6)
    assert length == MAX_LENGTH


def test_what_lies_beyond_a_row_in_the_cache_is_neither_read_nor_written(variant: str, tmp_path: Path) -> None:
    attention = Attention(tmp_path, heads=9, kv_heads=3, dim=64)
    usual = attention.run(attention.drawn(1, 40), [40])
    for memory in attention.cache:
        assert (memory[:, :, 40:] == 7).all()
        memory[:, :, 40:] = np.nan
    assert attention.run(attention.drawn(1, 40), [40]).tobytes() == usual.tobytes()


def test_a_row_has_the_same_bits_alone_and_in_every_batch(variant: str, tmp_path: Path) -> None:
    attention = Attention(tmp_path, heads=9, kv_heads=3, dim=64, batch=16)
    lengths = [3 + 5 * row for row in range(16)]
    for row, length in enumerate(lengths):
        attention.run(attention.drawn(1, length, row), [length], row)
    step = attention.drawn(16, 1, 99)
    together = attention.run(step, [length + 1 for length in lengths])
    for row, length in enumerate(lengths):
        alone = attention.run(step[row : row + 1], [length + 1], row)
        assert alone.tobytes() == together[row : row + 1].tobytes()


@pytest.mark.parametrize("size", [1, 2, 7, 16, 33])
def test_a_prompt_in_parts_has_the_bits_of_the_prompt_whole(variant: str, size: int, tmp_path: Path) -> None:
    whole, parts = (Attention(tmp_path, heads=9, kv_heads=3, dim=64) for _ in range(2))
    prompt = whole.drawn(1, 70)
    wanted = whole.run(prompt, [70])
    for at in range(0, 70, size):
        part = prompt[:, at : at + size]
        answer = parts.run(part, [at + part.shape[1]])
        assert answer.tobytes() == wanted[:, at : at + size].tobytes()


@pytest.mark.parametrize(("sequence", "length"), [(1, MAX_LENGTH + 1), (5, 4), (1, 0)])
@pytest.mark.skipif(not graph_operators.variants(), reason="this machine has no VNNI")
def test_lengths_that_leave_the_cache_are_refused(sequence: int, length: int, tmp_path: Path) -> None:
    attention = Attention(tmp_path, heads=2, kv_heads=1, dim=32)
    with pytest.raises(Exception, match="longer than the cache, or shorter"):
        attention.run(attention.drawn(1, sequence), [length])
