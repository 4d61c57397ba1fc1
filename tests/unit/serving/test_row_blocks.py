"""Blocks: rows of several callers that wait as one, beside single rows; who has gone is in no run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import model_folders
import numpy as np
import pytest

from headrace_server.config import BatchPolicy, ThreadBudget
from headrace_server.jobs.infer_group import InferShape, InputShape, WaitingRows
from headrace_server.jobs.queries import ModelRef
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.models.model import Row, Task
from headrace_server.serving.context import RequestContext
from headrace_server.serving.entry import BatchFuture, Entry, Request
from headrace_server.serving.row_queue import RowQueue
from headrace_server.serving.row_servable import RowServable

SHAPE = InferShape(ModelRef("m"), (InputShape("x", np.dtype("<f4"), (2, 4)),), (), 2)


@dataclass
class Asked:
    """Two rows of one caller."""

    value: float
    deadline: float | None = None
    cancelled: bool = False
    arrived_ns: int = 0

    @property
    def contents(self) -> tuple[bytes, ...]:
        return (np.full((2, 4), self.value, np.float32).tobytes(),)


@pytest.fixture
def servable(tmp_path: Path) -> Iterator[RowServable]:
    defaults = LoadDefaults(batching=BatchPolicy(max_batch_size=8, max_queue_rows=8))
    folder = model_folders.linear(tmp_path / "1", 3.0)
    servable = RowServable.load(load_model(folder, name="m", version="1", defaults=defaults), ThreadBudget(num_cores=2))
    yield servable
    servable.close()


def block(*requests: Asked) -> WaitingRows:
    return WaitingRows(SHAPE, ("x",), requests)


def submit(servable: RowServable, rows: WaitingRows) -> BatchFuture:
    future = servable.submit_block(rows, 2 * len(rows.requests), ((4,),), RequestContext())
    assert future is not None
    return future


def test_a_block_is_answered_in_the_order_of_its_requests(servable: RowServable) -> None:
    (outputs,) = submit(servable, block(Asked(1), Asked(2), Asked(3))).result(20)
    assert outputs["y"][:, 0].tolist() == [3, 3, 6, 6, 9, 9]


def test_blocks_and_rows_share_a_run(servable: RowServable) -> None:
    key = ((4,), Task.INFER)
    row = Row({"x": np.full(4, 5, np.float32)}, shape_key=key)
    result = servable.compute(
        [
            Row({}, shape_key=key, block=block(Asked(1)), num_rows=2),
            row,
            Row({}, shape_key=key, block=block(Asked(2)), num_rows=2),
        ]
    )
    assert result.num_rows == 5
    assert [np.atleast_2d(each["y"])[:, 0].tolist() for each in result.rows] == [[3, 3], [15], [6, 6]]


def test_who_is_cancelled_or_late_is_in_no_run(servable: RowServable) -> None:
    rows = block(gone := Asked(1, cancelled=True), Asked(2), late := Asked(3, deadline=1.0))
    (outputs,) = submit(servable, rows).result(20)
    assert outputs["y"][:, 0].tolist() == [6, 6]
    assert list(rows.lapsed) == [gone, late]
    empty = block(Asked(1, cancelled=True))
    assert submit(servable, empty).result(20) == [{}]


def test_a_block_that_finds_the_queue_full_is_not_admitted(servable: RowServable) -> None:
    too_many = block(*(Asked(number) for number in range(5)))
    assert servable.submit_block(too_many, 10, ((4,),), RequestContext()) is None
    assert servable.submit_block(block(Asked(1)), 2, ((4,),), RequestContext(deadline=1.0)) is None


def test_no_batch_is_larger_than_a_run_takes_and_none_is_lost() -> None:
    rng = random.Random(7)
    for _ in range(200):
        queue, sizes = RowQueue(), [rng.choice((1, 1, 2, 5, 8)) for _ in range(rng.randrange(1, 20))]
        for seq, size in enumerate(sizes):
            request = Request(BatchFuture(), RequestContext(), 1)
            row = Row({}, shape_key=("k",), num_rows=size)
            entry = Entry(row, request, 0, rng.random(), seq, 0.0, 1)
            request.entries = [entry]
            queue.push(entry)
        assert queue.num_rows == sum(sizes)
        taken = 0
        while queue.num_rows:
            batch = queue.take(8, 1.5, 0.0, [])
            assert 1 <= sum(entry.num_rows for entry in batch) <= 8
            taken += len(batch)
        assert taken == len(sizes)
