"""RowServable: a real graph behind the batcher, from inputs to per-row results."""

from __future__ import annotations

from pathlib import Path

import model_folders
import numpy as np
import pytest

from headrace_server.config import BatchPolicy, ThreadBudget
from headrace_server.errors import Reason, ServingError
from headrace_server.models.inputs import TextInput
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.models.model import PrepareOptions, Row, Task
from headrace_server.serving.context import RequestContext
from headrace_server.serving.row_servable import RowServable

BUDGET = ThreadBudget(num_cores=2)


def load(folder: Path, **policy: object) -> RowServable:
    defaults = LoadDefaults(batching=BatchPolicy(**policy))  # type: ignore[arg-type]
    return RowServable.load(load_model(folder, name="m", version="1", defaults=defaults), BUDGET)


def tensor_rows(*values: float) -> list[Row]:
    return [Row({"x": np.full(4, value, np.float32)}) for value in values]


def text_rows(servable: RowServable, texts: list[str]) -> list[Row]:
    pipeline = servable.model.pipelines[Task.EMBED]
    return pipeline.prepare([TextInput(text) for text in texts], PrepareOptions())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_same_input_same_answer_alone_or_batched(tmp_path: Path) -> None:
    servable = load(model_folders.text_encoder(tmp_path / "1"), max_batch_size=8, max_padding_ratio=4)
    try:
        rng = np.random.default_rng(11)
        texts = [" ".join(rng.choice(model_folders.WORDS, rng.integers(1, 60))) for _ in range(120)]
        alone = []
        for text in texts:
            context = RequestContext()
            alone.append(servable.submit(Task.EMBED, text_rows(servable, [text]), context).result(20)[0]["embedding"])
            assert context.timings.batch_size == 1
        context = RequestContext()
        rows = servable.submit(Task.EMBED, text_rows(servable, texts), context).result(20)
        together = [row["embedding"] for row in rows]
        assert context.timings.batch_size > 2  # or this test says nothing
        assert min(map(cosine, alone, together)) >= 0.9999
        # … and different texts are told apart, so that the bound above means something
        assert cosine(alone[0], alone[1]) < 0.99
    finally:
        servable.close()


def test_infer_gives_the_graphs_own_outputs_row_by_row(tmp_path: Path) -> None:
    servable = load(model_folders.linear(tmp_path / "1", 3.0))
    try:
        results = servable.submit(Task.INFER, tensor_rows(1, 2), RequestContext()).result(20)
        assert [result["y"].tolist() for result in results] == [[3.0] * 4, [6.0] * 4]
    finally:
        servable.close()


def test_a_task_that_the_model_does_not_do_is_refused(tmp_path: Path) -> None:
    servable = load(model_folders.linear(tmp_path / "1"))
    try:
        error = servable.submit(Task.EMBED, tensor_rows(1), RequestContext()).exception(20)
        assert isinstance(error, ServingError)
        assert error.reason is Reason.WRONG_TASK
    finally:
        servable.close()


@pytest.mark.parametrize("size", [1, 4])
def test_a_graph_with_a_fixed_batch_is_filled_up_and_cut(tmp_path: Path, size: int) -> None:
    servable = load(model_folders.fixed_batch(tmp_path / "1", size))
    try:
        results = servable.submit(Task.INFER, tensor_rows(*range(7)), RequestContext()).result(20)
        assert [result["y"][0] for result in results] == [0, 2, 4, 6, 8, 10, 12]
    finally:
        servable.close()


def test_a_model_that_scales_by_the_whole_batch_runs_row_by_row(tmp_path: Path) -> None:
    servable = load(model_folders.linear(tmp_path / "1", dynamic_int8=True))
    try:
        context = RequestContext()
        results = servable.submit(Task.INFER, tensor_rows(*[0.001, 1000] * 8), context).result(20)
        assert not servable.info.batch_invariant
        assert context.timings.batch_size == 1
        assert results[0]["y"][0] == pytest.approx(0.002, rel=1e-3)  # beside 1000 it would have been rounded to 0
    finally:
        servable.close()


def test_rows_of_two_tasks_never_share_a_batch(tmp_path: Path) -> None:
    servable = load(model_folders.text_encoder(tmp_path / "1"))
    try:
        rows = text_rows(servable, ["w1 w2 w3"])
        embedding = servable.submit(Task.EMBED, rows, RequestContext())
        raw = servable.submit(Task.INFER, rows, RequestContext())
        assert embedding.result(20)[0]["embedding"].shape == (32,)
        assert raw.result(20)[0]["last_hidden_state"].shape == (3, 32)
        assert rows[0].shape_key == text_rows(servable, ["w1 w2 w3"])[0].shape_key  # the caller's rows are left alone
    finally:
        servable.close()


def test_rows_of_different_shapes_never_share_a_batch(tmp_path: Path) -> None:
    servable = load(model_folders.linear(tmp_path / "1", width="w"), max_batch_size=8)
    try:
        context = RequestContext()
        rows = [Row({"x": np.full(width, 1, np.float32)}) for width in (2, 3) * 16]
        results = servable.submit(Task.INFER, rows, context).result(20)
        assert [result["y"].shape for result in results] == [(2,), (3,)] * 16
        assert context.timings.batch_size > 1  # mixed batches would have failed, and been run again row by row
    finally:
        servable.close()


def test_after_close_a_request_is_told_that_the_model_is_leaving(tmp_path: Path) -> None:
    servable = load(model_folders.linear(tmp_path / "1"))
    servable.close()
    error = servable.submit(Task.INFER, tensor_rows(1), RequestContext()).exception(20)
    assert isinstance(error, ServingError)
    assert error.reason is Reason.SHUTTING_DOWN


def test_a_model_that_cannot_compute_its_first_batch_is_not_loaded(tmp_path: Path) -> None:
    folder = model_folders.text_encoder(tmp_path / "1")
    tokenizer = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(
        tokenizer.replace('"[UNK]": 1', '"[UNK]": 100000').replace('"[UNK]":1', '"[UNK]":100000')
    )
    with pytest.raises(ServingError, match="first small batch") as caught:
        load(folder)
    assert caught.value.reason is Reason.MODEL_INVALID
