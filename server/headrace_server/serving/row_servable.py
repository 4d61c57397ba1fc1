"""RowServable: a Model whose inputs are rows, the Engine that runs it and the Batcher before it.

rows ──▶ Batcher ──▶ pipeline.collate ──▶ Engine.run ──▶ pipeline.reduce ──▶ one result a row
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import monotonic, perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.config import BatchPolicy, ThreadBudget
from headrace_server.engines.base import Engine, EngineInfo
from headrace_server.engines.factory import create_engine
from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Model, Row, RowBlock, Task
from headrace_server.serving.batch import BatchObserver, BatchResult, RowResult, StageTimes
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.context import RequestContext, Timings
from headrace_server.serving.entry import BatchFuture
from headrace_server.serving.warm_up import warm_up

__all__ = ["RowServable"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

# Padded tokens that fill a run on the CPU, a thread: of MiniLM alone, 256 cost as little a token as 512 do, and served,
# with other threads beside it, 8% less.
_TOKENS_A_THREAD = 256
_ON_CPU = ("cpu", "openvino")


class RowServable:
    """A loaded version, ready for rows. Thread-safe.

    model    what the rows and results mean
    engine   what computes them; closed with the servable
    policy   how rows are grouped: the model's own wishes within what its graph bears
    """

    def __init__(self, model: Model, engine: Engine, observer: BatchObserver | None = None) -> None:
        self.model = model
        self._engine = engine
        self._fixed_batch = _fixed_batch(engine)
        self.policy = _policy(model, engine, self._fixed_batch)
        self._batcher = Batcher(
            self.compute,
            self.policy,
            num_workers=engine.info.num_workers,
            name=model.name,
            version=model.version,
            observer=observer,
            enough_units=_TOKENS_A_THREAD * engine.info.num_threads if engine.info.device in _ON_CPU else 0,
        )

    @classmethod
    def load(cls, model: Model, threads: ThreadBudget, observer: BatchObserver | None = None) -> RowServable:
        """A servable whose engine has computed a first small batch of each task. Not on a serving thread.

        raises  ServingError as `create_engine` does; MODEL_INVALID when the first batch fails
        """
        servable = cls(model, create_engine(model, model.engine, threads), observer)
        try:
            warm_up(model, servable.compute, servable.policy.max_batch_size)
        except BaseException:
            servable.close()
            raise
        return servable

    @property
    def info(self) -> EngineInfo:
        """What it runs on."""
        return self._engine.info

    @property
    def depth(self) -> int:
        """Rows that wait now."""
        return self._batcher.depth

    def submit(self, task: Task, rows: Sequence[Row], context: RequestContext) -> BatchFuture:
        """Future of one result a row, in order; as `Batcher.submit`, which see for errors and threads.

        task   one of the model's. For INFER a result holds the graph's own outputs, of a row that `is_run` with their
               batch axis; for others what `Pipeline.reduce` names: "scores" f32[c], "embedding" f32[d],
               "relevance" f32[]
        """
        return self._batcher.submit([_for_task(row, task) for row in rows], context)

    @property
    def max_block_rows(self) -> int:
        """Rows that `submit_block` takes at once; 0: none, the graph insists on batches of one size."""
        return 0 if self._fixed_batch else self.policy.max_batch_size

    def submit_block(
        self, block: RowBlock, num_rows: int, shapes: tuple[tuple[int, ...], ...], context: RequestContext
    ) -> BatchFuture | None:
        """Future of the graph's outputs for a block of rows of whole tensors; as `Batcher.submit_block`.

        shapes  of one row, without a batch axis, in the graph's order: whose company it may be in
        """
        row = Row({}, shape_key=(*shapes, Task.INFER), block=block, num_rows=num_rows)
        return self._batcher.submit_block(row, context)

    def run_now(self, feeds: Mapping[str, Array], num_rows: int, timings: Timings) -> dict[str, Array] | None:
        """The graph's outputs for whole tensors of `num_rows` rows, computed here; None: they have to be submitted.

        Only where the policy says inline, and as `Batcher.enter`; counted and timed as a run of its own.
        raises  ServingError as `Engine.run`; UNSUPPORTED as `compute`
        """
        if num_rows > self.policy.max_batch_size or self._fixed_batch or not self._batcher.enter():
            return None
        stages: StageTimes | None = None
        began = perf_counter_ns()
        try:
            outputs = self._engine.run(feeds)
            _require_batch_axis(outputs, num_rows)
            ended = perf_counter_ns()
            stages = StageTimes(0, 0, ended - began, 0)
        finally:
            self._batcher.leave(num_rows, stages)
        timings.inferred(began, ended)
        timings.batch_size = num_rows
        return outputs

    def compute(self, rows: Sequence[Row]) -> BatchResult:
        """One batch of rows of one task and shape, on the calling thread."""
        task: Task = rows[0].shape_key[-1]
        pipeline = self.model.pipelines.get(task)
        if pipeline is None and task is not Task.INFER:
            raise ServingError(Reason.WRONG_TASK, f"model {self.model.name!r} does not {task.value}")
        if rows[0].is_run:
            return self._run_alone(rows[0])
        if any(row.block is not None for row in rows):
            return self._run_blocks(rows)
        started = perf_counter_ns()
        whole = _filled_up(rows, self._fixed_batch)
        feeds = _stack(whole) if pipeline is None else pipeline.collate(whole)
        collated = perf_counter_ns()
        outputs = self._engine.run(feeds, None if pipeline is None else pipeline.graph_outputs)
        inferred = perf_counter_ns()
        results = _split(outputs if pipeline is None else pipeline.reduce(outputs, feeds), len(whole))
        reduced = perf_counter_ns()
        return BatchResult(results[: len(rows)], collated - started, inferred - collated, reduced - inferred)

    def _run_alone(self, row: Row) -> BatchResult:
        started = perf_counter_ns()
        outputs = self._engine.run(row.arrays)
        return BatchResult([outputs], 0, perf_counter_ns() - started, 0)

    def _run_blocks(self, rows: Sequence[Row]) -> BatchResult:
        """Blocks of rows, and rows, in one run."""
        started = perf_counter_ns()
        now = monotonic()
        parts = [(_stack((row,)), 1) if row.block is None else row.block.take(now) for row in rows]
        num_rows = sum(size for _, size in parts)
        if not num_rows:
            return BatchResult([{} for _ in rows], num_rows=0)
        whole = [tensors for tensors, size in parts if size]
        feeds = whole[0]
        if len(whole) > 1:
            feeds = {name: np.concatenate([tensors[name] for tensors in whole]) for name in feeds}
        collated = perf_counter_ns()
        outputs = self._engine.run(feeds)
        _require_batch_axis(outputs, num_rows)
        inferred = perf_counter_ns()
        results: list[RowResult] = []
        at = 0
        for row, (_, size) in zip(rows, parts, strict=True):
            place: Any = at if row.block is None else slice(at, at + size)
            results.append({name: array[place, ...] for name, array in outputs.items()})
            at += size
        return BatchResult(results, collated - started, inferred - collated, perf_counter_ns() - inferred, num_rows)

    def drain(self, timeout_s: float) -> bool:
        """As `Batcher.drain`."""
        return self._batcher.drain(timeout_s)

    def close(self, timeout_s: float = 30.0) -> None:
        """Fails what waits with SHUTTING_DOWN, lets running batches answer, frees the engine."""
        self._batcher.close(timeout_s)
        self._engine.close()


def _for_task(row: Row, task: Task) -> Row:
    """The row with its task last in its key: tasks of one model share workers, never a batch."""
    key = row.shape_key
    if task is Task.INFER:
        key = (object(),) if row.is_run else tuple(array.shape for array in row.arrays.values())
    return Row(row.arrays, row.length, (*key, task), row.truncated, row.num_units, row.cut_from, row.is_run)


def _fixed_batch(engine: Engine) -> int:
    """The batch size that the graph insists on; 0 where it takes any."""
    sizes = {spec.shape[0] for spec in engine.inputs if spec.shape and spec.shape[0] > 0}
    return sizes.pop() if len(sizes) == 1 else 0


def _policy(model: Model, engine: Engine, fixed_batch: int) -> BatchPolicy:
    """The model's policy within what its graph bears."""
    policy = model.batching
    limit = fixed_batch or policy.max_batch_size
    if not engine.info.batch_invariant and limit > 1:
        logger.warning(
            "model %s/%s: activations are scaled by the whole batch; rows run one by one, so that no caller's answer"
            " depends on its neighbours",
            *(model.name, model.version),
        )
        limit = 1
    return replace(policy, max_batch_size=min(limit, policy.max_batch_size))


def _filled_up(rows: Sequence[Row], fixed_batch: int) -> Sequence[Row]:
    """The rows, the first repeated up to the size that the graph insists on."""
    missing = fixed_batch - len(rows)
    return [*rows, *[rows[0]] * missing] if missing > 0 else rows


def _stack(rows: Sequence[Row]) -> dict[str, Array]:
    """Feeds of the rows; the caller's own arrays where these rows lie there one after the other."""
    first = rows[0]
    if first.cut_from is not None:
        tensors, start = first.cut_from
        places = [row.cut_from for row in rows]
        if all(at is not None and at[0] is tensors and at[1] == start + index for index, at in enumerate(places)):
            return {name: array[start : start + len(rows)] for name, array in tensors.items()}
    if len(rows) == 1:
        return {name: array[np.newaxis] for name, array in first.arrays.items()}
    return {name: np.stack([row.arrays[name] for row in rows]) for name in first.arrays}


def _split(results: Mapping[str, Array], num_rows: int) -> list[RowResult]:
    """Each row's part of every array; parts are views."""
    _require_batch_axis(results, num_rows)
    return [{name: array[index, ...] for name, array in results.items()} for index in range(num_rows)]


def _require_batch_axis(results: Mapping[str, Array], num_rows: int) -> None:
    for name, array in results.items():
        if not array.ndim or array.shape[0] != num_rows:
            raise ServingError(Reason.UNSUPPORTED, f"output {name!r} has no batch axis: its rows cannot be told apart")
