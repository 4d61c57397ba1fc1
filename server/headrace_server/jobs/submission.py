"""One request on its way through a model: leased, prepared, batched, finished, and the lease given back once.

    calling thread   acquire ─▶ admit (checks, rows) ─▶ Servable.submit
    engine worker                                         └─▶ finish (top-k, labels, …) ─▶ release ─▶ answer ─▶ offer
                                                              a copy, where a shadow is to get one

A request whose version rests, out of memory, waits without a thread and goes on from `acquire` on the parking thread.

A job's future never raises anything but ServingError. It cannot be cancelled by its holder: cancelling belongs to the
RequestContext, which the batcher listens to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from time import perf_counter_ns
from typing import Any, Protocol, TypeVar

import numpy.typing as npt

from headrace_server.errors import ServingError, as_serving_error
from headrace_server.jobs.leasing import Leases, refuse_the_dead, when_leased
from headrace_server.jobs.queries import ModelRef
from headrace_server.models.model import Model, Row, Task
from headrace_server.serving.batch import RowResult
from headrace_server.serving.context import RequestContext
from headrace_server.serving.fault import ended_as
from headrace_server.serving.repository import Lease
from headrace_server.serving.residence import ModelResting
from headrace_server.serving.row_servable import RowServable

__all__ = ["Admit", "Copies", "Finish", "Leases", "RowResult", "Submissions", "answered", "refused"]

logger = logging.getLogger(__name__)

R = TypeVar("R")
Array = npt.NDArray[Any]
Finish = Callable[[Sequence[RowResult]], R]
Admit = Callable[[Model], tuple[Task, Sequence[Row], Finish[R]]]


class Copies(Protocol):
    """Who has requests that were answered asked again of another version."""

    def offer(self, model: str, version: str, admit: Admit[Any], size_bytes: int, answer: Any) -> None:
        """A request was answered with `answer`, from rows of so many bytes; `admit` makes rows of it by any model.
        Returns at once and raises nothing."""
        ...


class Submissions:
    """The way of a job's requests through loaded versions. Thread-safe."""

    def __init__(self, versions: Leases, copies: Copies | None = None) -> None:
        self._versions = versions
        self._copies = copies

    def through_model(self, ref: ModelRef, context: RequestContext, admit: Admit[R]) -> Future[R]:
        """Future of what `finish` makes of the rows' results, one a row in order.

        admit    runs here, or on the parking thread: checks the request against the model; gives the task, the rows and
                 `finish`
        finish   runs on the engine's worker, so it is quick and keeps no rows alive

        Both may be asked again, of another version, where that gets a copy of the request: they change nothing.
        """
        future: Future[R] = _new_future()
        when_leased(
            self._versions,
            ref,
            context,
            lambda lease: self._submit(lease, context, admit, future),
            future.set_exception,
        )
        return future

    def compute_now(
        self,
        ref: ModelRef,
        context: RequestContext,
        admit: Callable[[Model], tuple[Mapping[str, Array], int]],
        finish: Callable[[Model, Mapping[str, Array]], R],
        copy: Admit[R],
    ) -> R | None:
        """What `finish` makes of the outputs, computed on this thread; None: it is to go `through_model`.

        admit   checks the request against the model; gives whole tensors of so many rows, by name
        copy    the same request as `through_model` admits it, for a shadow
        raises  ServingError; nothing else
        """
        refuse_the_dead(context)
        try:
            lease = self._versions.acquire(ref.name, version=ref.version, label=ref.label, routing_key=ref.routing_key)
        except ModelResting:
            return None
        started = perf_counter_ns()
        servable = lease.servable
        if context.timings.trace is not None or not isinstance(servable, RowServable):
            lease.release()  # spans are made of rows in a batch
            return None
        timings, model, num_rows = context.timings, servable.model, 0
        try:
            tensors, num_rows = admit(model)
            prepared = perf_counter_ns()
            outputs = servable.run_now(tensors, num_rows, context.timings)
            if outputs is None:
                lease.release()
                return None
            timings.model, timings.model_version = model.name, model.version
            timings.prepared(started, prepared)
            began = perf_counter_ns()
            answer = finish(model, outputs)
            timings.finished(began, perf_counter_ns())
        except BaseException as error:
            failure = as_serving_error(error)
            timings.model, timings.model_version = model.name, model.version
            lease.end(timings, num_rows, ended_as(failure.reason, context))
            raise failure from error
        lease.end(timings, num_rows)
        if lease.shadow and self._copies is not None:
            size_bytes = sum(tensor.nbytes for tensor in tensors.values())
            self._copies.offer(model.name, lease.shadow, copy, size_bytes, answer)
        return answer

    def with_model(self, ref: ModelRef, context: RequestContext, compute: Callable[[Model], R]) -> Future[R]:
        """Future of what `compute` makes with the model alone, where `through_model` admits: a request of no rows."""
        future: Future[R] = _new_future()
        when_leased(
            self._versions, ref, context, lambda lease: _compute(lease, context, compute, future), future.set_exception
        )
        return future

    def _submit(self, lease: Lease, context: RequestContext, admit: Admit[R], future: Future[R]) -> None:
        started = perf_counter_ns()
        try:
            model = lease.servable.model
            task, rows, finish = admit(model)
            context.timings.prepared(
                started, perf_counter_ns(), "preprocess" if model.tokenizer is None else "tokenise"
            )
            servable = lease.servable
            assert isinstance(servable, RowServable), "tasks of rows are those of models that read rows"
            batch = servable.submit(task, rows, context)
        except BaseException as error:
            failure = as_serving_error(error)
            lease.end(context.timings, 0, ended_as(failure.reason, context))
            future.set_exception(failure)
            return

        def settle(batch: Future[list[RowResult]]) -> None:
            try:
                results = batch.result()
                began = perf_counter_ns()
                answer = finish(results)
                context.timings.finished(began, perf_counter_ns())
            except BaseException as error:
                failure = as_serving_error(error)
                reason = ended_as(failure.reason, context)
                lease.end(context.timings, len(rows), reason, accepted=_made_here(task, rows))
                future.set_exception(failure)
            else:
                lease.end(context.timings, len(rows))  # before the answer is told: who sees it may rely on that
                future.set_result(answer)
                if lease.shadow and self._copies is not None:
                    size_bytes = sum(array.nbytes for row in rows for array in row.arrays.values())
                    self._copies.offer(model.name, lease.shadow, admit, size_bytes, answer)

        batch.add_done_callback(settle)


def _compute(lease: Lease, context: RequestContext, compute: Callable[[Model], R], future: Future[R]) -> None:
    started = perf_counter_ns()
    try:
        answer = compute(lease.servable.model)
        context.timings.prepared(started, perf_counter_ns(), "tokenise")
    except BaseException as error:
        failure = as_serving_error(error)
        lease.end(context.timings, 0, ended_as(failure.reason, context))
        future.set_exception(failure)
    else:
        lease.end(context.timings, 0)
        future.set_result(answer)


def _made_here(task: Task, rows: Sequence[Row]) -> bool:
    """Whether the version's own preparation made the tensors, and not the caller."""
    return task is not Task.INFER and not (rows and rows[0].shape_key[:1] == ("tensors",))


def answered(context: RequestContext, compute: Callable[[], R]) -> Future[R]:
    """Future, already done, of `compute()`, on this thread; its time counts as postprocessing."""
    future: Future[R] = _new_future()
    started = perf_counter_ns()
    try:
        refuse_the_dead(context)
        answer = compute()
    except BaseException as error:
        future.set_exception(as_serving_error(error))
    else:
        context.timings.finished(started, perf_counter_ns())
        future.set_result(answer)
    return future


def refused(error: ServingError) -> Future[Any]:
    """Future, already done, of a refusal."""
    future = _new_future()
    future.set_exception(error)
    return future


def _new_future() -> Future[Any]:
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()  # from here on `cancel` by a holder is refused, so results always fit
    return future
