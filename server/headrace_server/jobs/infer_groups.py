"""Requests of one shape that came together, answered together: one lease, one run, one account of time.

    transport's thread   lease ─▶ join ─▶ run, where the model is answered inline
                         lease ─▶ a block of rows in the Batcher, beside everybody else's
    engine worker                    └─▶ who is still there, joined ─▶ run ─▶ counted ─▶ deliver

Whatever does not go so (no version, a split, a shadow, a full queue, a run that fails) is handed back undone: each
request is then asked alone, and told what is wrong with it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from time import monotonic, perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.config import InputLimits
from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.infer_group import GroupAnswer, GroupRequest, InferShape, WaitingRows
from headrace_server.jobs.infer_outputs import check_wanted
from headrace_server.jobs.infer_queries import WantedOutput
from headrace_server.jobs.infer_views import infer_view
from headrace_server.jobs.leasing import Leases
from headrace_server.jobs.signatures import split_name
from headrace_server.models.model import Model
from headrace_server.serving.batch import RowResult
from headrace_server.serving.context import RequestContext, Timings
from headrace_server.serving.fault import ended_as
from headrace_server.serving.repository import Lease
from headrace_server.serving.row_servable import RowServable

__all__ = ["Deliver", "InferGroups"]

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]
Deliver = Callable[[Sequence[GroupRequest], GroupAnswer | None], None]
_MAX_ORDERS = 256  # kept a model


class InferGroups:
    """Thread-safe."""

    def __init__(self, versions: Leases, limits: InputLimits) -> None:
        self._versions = versions
        self._limits = limits

    def answer(self, shape: InferShape, requests: Sequence[GroupRequest], deliver: Deliver) -> None:
        """Calls `deliver` with some of the requests and their answer, or with None where each is to be asked alone,
        until it had every request once: before this returns, or on an engine's worker. Raises nothing."""
        left = requests
        while left:
            now, left = self._begin(shape, left, deliver)
            if not now:
                return

    def _begin(
        self, shape: InferShape, requests: Sequence[GroupRequest], deliver: Deliver
    ) -> tuple[Sequence[GroupRequest], Sequence[GroupRequest]]:
        """Those that were begun, and those that are left; of none begun, all have been handed back."""
        ref = shape.model
        try:
            lease = self._versions.acquire(ref.name, version=ref.version, label=ref.label)
        except Exception:
            deliver(requests, None)
            return (), ()
        order: tuple[str, ...] = ()
        most = 0
        try:
            servable = lease.servable
            if isinstance(servable, RowServable) and not lease.shadow and not lease.by_split:
                most = servable.max_block_rows // shape.num_rows
                order = self._order(servable.model, shape) if most else ()
        except Exception:
            logger.exception("a group of requests could not be looked at")
        if not order:
            lease.release()
            deliver(requests, None)
            return (), ()
        now = requests[:most]
        self._answer(lease, shape, order, now, deliver)
        return now, requests[most:]

    def _order(self, model: Model, shape: InferShape) -> tuple[str, ...]:
        """The names of the inputs in the graph's order; (): such requests are not for groups."""
        if split_name(shape.model.name)[1] is not None:
            return ()
        view = infer_view(model, None)
        order = view.orders.get(shape)
        if order is None:
            if len(view.orders) >= _MAX_ORDERS:
                view.orders.clear()
            order = ()
            if view.cutter is not None and view.signature.max_batch_size:
                example = {each.name: np.zeros(each.shape, each.dtype) for each in shape.inputs}
                try:
                    check_wanted([WantedOutput(name) for name in shape.outputs], view.signature)
                    order = tuple(view.cutter.feeds(example, self._limits.max_inputs)[0])
                except ServingError:
                    pass
            view.orders[shape] = order
        return order

    def _answer(
        self,
        lease: Lease,
        shape: InferShape,
        order: tuple[str, ...],
        requests: Sequence[GroupRequest],
        deliver: Deliver,
    ) -> None:
        servable = lease.servable
        assert isinstance(servable, RowServable), "looked at before"
        model = servable.model
        context = RequestContext()
        timings = context.timings
        timings.model, timings.model_version = model.name, model.version
        rows = WaitingRows(shape, order, requests)
        outputs: Mapping[str, Array] | None = None
        began = perf_counter_ns()
        if servable.policy.inline:
            try:
                tensors, num_rows = rows.take(monotonic())
                prepared = perf_counter_ns()
                outputs = servable.run_now(tensors, num_rows, timings)
            except Exception:
                lease.release()
                deliver(requests, None)
                return
        if outputs is not None:
            timings.prepared(began, prepared)
            _settle(lease, shape, rows, outputs, timings, began, perf_counter_ns(), deliver)
            return
        deadlines = [request.deadline for request in requests if request.deadline is not None]
        context.deadline = min(deadlines, default=None)
        sizes = {each.name: each.shape[1:] for each in shape.inputs}
        future = servable.submit_block(
            rows, len(requests) * shape.num_rows, tuple(sizes[name] for name in order), context
        )
        if future is None:
            lease.release()
            deliver(requests, None)
            return
        future.add_done_callback(partial(_settle_block, lease, shape, rows, requests, timings, began, deliver))


def _settle_block(
    lease: Lease,
    shape: InferShape,
    rows: WaitingRows,
    requests: Sequence[GroupRequest],
    timings: Timings,
    submitted_ns: int,
    deliver: Deliver,
    future: Future[list[RowResult]],
) -> None:
    """On an engine's worker."""
    try:
        (outputs,) = future.result()
    except BaseException:
        lease.release()
        deliver(requests, None)
        return
    _settle(lease, shape, rows, outputs, timings, submitted_ns, perf_counter_ns(), deliver)


def _settle(
    lease: Lease,
    shape: InferShape,
    rows: WaitingRows,
    outputs: Mapping[str, Array],
    timings: Timings,
    submitted_ns: int,
    finishing_ns: int,
    deliver: Deliver,
) -> None:
    """Counts the requests and hands over their answers."""
    requests, lapsed = rows.requests, rows.lapsed
    if shape.outputs:
        outputs = {name: outputs[name] for name in shape.outputs} if requests else {}
    waited_ns = timings.queue_ns + submitted_ns
    queues_ns = [max(0, waited_ns - request.arrived_ns) for request in requests]
    timings.finished(finishing_ns, perf_counter_ns())
    for request in lapsed:
        reason = Reason.CANCELLED if request.cancelled else Reason.DEADLINE_EXCEEDED
        lease.count(timings, shape.num_rows, ended_as(reason, RequestContext(deadline=request.deadline)))
    lease.end_group(timings, queues_ns, shape.num_rows)
    deliver((*requests, *lapsed), GroupAnswer(requests, lapsed, outputs, timings, queues_ns))
