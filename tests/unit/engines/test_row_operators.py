"""The kernels' graph operators: their answers beside whole numbers in NumPy, and beside what graphs say they mean."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from headrace_kernels import _dispatch, graph_operators
from headrace_server.engines.onnx.operators import add_operators
from headrace_server.prepare.gguf.onnx_file import GRAPH_NAME, StreamedGraph
from headrace_server.prepare.gguf.row_operators import (
    ROW_DOMAIN,
    add_row_feed_forward,
    add_row_linear,
    declare_row_operators,
    quantize_rows,
)

Floats = npt.NDArray[np.float32]
Run = Callable[[Floats], Floats]

needs_operators = pytest.mark.skipif(not graph_operators.variants(), reason="this machine has no VNNI")


@pytest.fixture(params=graph_operators.variants())
def variant(request: pytest.FixtureRequest) -> Iterator[str]:
    with _dispatch.force(request.param) as name:
        yield name


def opened(graph: StreamedGraph, folder: Path, *, operators: bool = True, threads: int = 2) -> Run:
    """The graph of `x` → `y` in a session."""
    graph.save(folder)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if operators:
        add_operators(onnxruntime, options)
    session: Any = onnxruntime.InferenceSession(str(folder / GRAPH_NAME), options)
    return lambda x: session.run(["y"], {"x": x})[0]


def graph_of(width: int, outputs: int) -> StreamedGraph:
    graph = StreamedGraph("rows")
    graph.input("x", np.float32, ("rows", width))
    graph.output("y", np.float32, ("rows", outputs))
    declare_row_operators(graph)
    return graph


def linear_graph(matrix: Floats) -> StreamedGraph:
    graph = graph_of(matrix.shape[1], matrix.shape[0])
    add_row_linear(graph, "x", lambda: matrix, matrix.shape, out="y")
    return graph


def feed_forward_graph(gate: Floats, up: Floats, down: Floats) -> StreamedGraph:
    graph = graph_of(gate.shape[1], gate.shape[1])
    add_row_feed_forward(graph, "x", [lambda: gate, lambda: up, lambda: down], gate.shape, out="y")
    return graph


def drawn(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def product(x: Floats, matrix: Floats) -> npt.NDArray[np.float64]:
    """The product of both quantized by rows, in f64."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    codes = np.rint(x * (np.float32(127) / np.abs(x).max(-1, keepdims=True)))
    weights, scales = quantize_rows(matrix)
    answer: npt.NDArray[np.float64] = (codes.astype(np.float64) @ weights.T.astype(np.float64)) * scales * scale
    return answer


@pytest.mark.parametrize("rows", [1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 70])
def test_a_product_is_that_of_the_quantized_rows(variant: str, rows: int, tmp_path: Path) -> None:
    matrix = drawn(7 * 16, 96)
    x = drawn(rows, 96, seed=rows)
    assert np.allclose(opened(linear_graph(matrix), tmp_path)(x), product(x, matrix), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("width", [32, 64, 96])
@pytest.mark.parametrize("blocks", [1, 2, 3, 7, 70])
def test_every_width_and_number_of_outputs_is_computed_whole(
    variant: str, width: int, blocks: int, tmp_path: Path
) -> None:
    matrix = drawn(blocks * 16, width)
    run = opened(linear_graph(matrix), tmp_path)
    for rows in (3, 40):
        x = drawn(rows, width, seed=blocks)
        assert np.allclose(run(x), product(x, matrix), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("width", "wide"), [(64, 96), (32, 32), (576, 1536)])
def test_a_feed_forward_is_its_function_but_for_a_rounded_code(
    variant: str, width: int, wide: int, tmp_path: Path
) -> None:
    gate, up, down = drawn(wide, width, seed=1), drawn(wide, width, seed=2), drawn(width, wide, seed=3)
    native, body = (
        opened(feed_forward_graph(gate, up, down), tmp_path, operators=operators) for operators in (True, False)
    )
    for rows in (1, 5, 20):
        x = drawn(rows, width, seed=rows)
        wanted = body(x)
        assert np.abs(native(x) - wanted).max() < 0.01 * np.abs(wanted).max()


@pytest.mark.parametrize("rows", [2, 8, 16, 17, 100])
def test_a_row_has_the_same_bits_alone_and_among_others(variant: str, rows: int, tmp_path: Path) -> None:
    gate, up, down = drawn(96, 64, seed=1), drawn(96, 64, seed=2), drawn(64, 96, seed=3)
    run = opened(feed_forward_graph(gate, up, down), tmp_path)
    x = drawn(rows, 64)
    together = run(x)
    for row in range(rows):
        assert run(x[row : row + 1]).tobytes() == together[row : row + 1].tobytes()


def test_variants_and_thread_counts_agree_bit_for_bit(tmp_path: Path) -> None:
    gate, up, down = drawn(192, 96, seed=1), drawn(192, 96, seed=2), drawn(96, 192, seed=3)
    x, answers = drawn(37, 96), set()
    for name in graph_operators.variants():
        for threads in (1, 2):
            with _dispatch.force(name):
                run = opened(feed_forward_graph(gate, up, down), tmp_path, threads=threads)
            answers.add(run(x).tobytes())
    assert len(answers) <= 1


def test_zeros_stay_zeros_and_what_is_not_finite_stays_with_its_row(variant: str, tmp_path: Path) -> None:
    matrix = drawn(32, 64)
    run = opened(linear_graph(matrix), tmp_path)
    x = drawn(4, 64)
    usual = run(x)
    x[1], x[2, 5], x[3, 63] = 0, np.nan, np.inf
    answer = run(x)
    assert answer[0].tobytes() == usual[0].tobytes()
    assert not answer[1].any()
    assert np.isnan(answer[2:]).all()


@pytest.mark.parametrize("magnitude", [1e-38, 1e-20, 1e20, 3e38])
def test_small_and_large_rows_keep_their_scale(variant: str, magnitude: float, tmp_path: Path) -> None:
    matrix = np.eye(32, 64, dtype=np.float32)
    x = np.clip(drawn(2, 64), -1, 1) * np.float32(magnitude)
    answer = opened(linear_graph(matrix), tmp_path)(x)
    assert np.allclose(answer, x[:, :32] if magnitude > 1e-30 else 0, rtol=0, atol=0.005 * magnitude)


def test_no_rows_give_no_rows(variant: str, tmp_path: Path) -> None:
    assert opened(linear_graph(drawn(32, 64)), tmp_path)(drawn(0, 64)).shape == (0, 32)


@needs_operators
@pytest.mark.parametrize("shape", [(2, 16, 16, 4), (2, 8, 16, 4), (2, 16, 8, 8)])
def test_weights_of_another_shape_are_refused_and_not_read(shape: tuple[int, ...], tmp_path: Path) -> None:
    graph = graph_of(48 if shape == (2, 8, 16, 4) else 64, 16)
    weights = graph.weight("w", np.int8, shape, lambda: np.zeros(shape, np.int8))
    scales = graph.weight("s", np.float32, (16,), lambda: np.ones(16, np.float32))
    graph.add("RowLinear", "x", weights, scales, out="y", domain=ROW_DOMAIN)
    run = opened(graph, tmp_path)
    with pytest.raises(Exception, match=r"of one width|blocks of 16"):
        run(drawn(1, 48 if shape == (2, 8, 16, 4) else 64))


def test_a_narrower_variant_in_force_leaves_graphs_to_their_functions(tmp_path: Path) -> None:
    matrix, x = drawn(32, 64), drawn(3, 64)
    with _dispatch.force("portable"):
        assert graph_operators.library() is None
        answer = opened(linear_graph(matrix), tmp_path)(x)
    assert answer.tobytes() == opened(linear_graph(matrix), tmp_path, operators=False)(x).tobytes()


@needs_operators
def test_operators_that_fail_their_test_are_left_out_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(graph_operators, "library", lambda: broken)
    with caplog.at_level(logging.WARNING):
        run = opened(linear_graph(drawn(32, 64)), tmp_path)
        opened(linear_graph(drawn(32, 64)), tmp_path)
    assert run(drawn(1, 64)).shape == (1, 32)
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "the kernels' graph operators are left out, decoders run slower"
    ]
