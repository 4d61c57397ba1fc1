"""ModelInfer as a transport serves it: requests that came in together and ask the same are answered together.

    transport's thread   a request known by its bytes ─▶ put aside ─▶ end of the turn: a group a plan ─▶ the job
                         any other ─▶ parsed, as every RPC (`dispatch`)
    where the answer is  replies of the whole group, in one loop

Of a light request most of the time goes into what is the same for all of them. Who is not answered so (see
`jobs.infer_groups`) is asked alone, and hears what is wrong with his request alone. Traced requests go the ordinary
way: their spans tell of one request.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter_ns
from typing import Any, cast

from headrace_server.config import InputLimits
from headrace_server.jobs.infer_group import GroupAnswer, GroupRequest
from headrace_server.rpc.admission import Workers
from headrace_server.rpc.dispatch import INLINE_BYTES, UnaryRpc, begin_unary
from headrace_server.rpc.exchange import Exchange, access, record_access
from headrace_server.rpc.inference.plans import InferPlan, InferPlans, encode_answers
from headrace_server.rpc.jobs import InferJob
from headrace_server.rpc.metadata import request_id_of, trailing_of_group
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.status import Code
from headrace_server.rpc.transport.call import Call, Kind, Method
from headrace_server.serving import refusals
from headrace_server.serving.context import Timings

__all__ = ["gathering_method"]

logger = logging.getLogger(__name__)

_MOST = 64  # calls a turn
_RETRY_NS = 100_000_000  # after a group that was handed back its plan rests: its requests go the ordinary way


def gathering_method(
    rpc: UnaryRpc[Any], infer: InferJob, limits: InputLimits, *, workers: Workers, observer: RpcObserver
) -> Method:
    """ModelInfer, `rpc` being its ordinary way."""
    return Method(rpc.name, Kind.UNARY, _Gathering(rpc, infer, limits, workers, observer).handle)


class _Waiting:
    """One call, put aside: a `GroupRequest`."""

    __slots__ = ("arrived_ns", "call", "contents", "request_id")

    def __init__(self, call: Call, request_id: bytes, contents: Sequence[bytes]) -> None:
        self.call = call
        self.request_id = request_id  # the message's own
        self.contents = contents
        self.arrived_ns = perf_counter_ns()

    @property
    def deadline(self) -> float | None:
        return self.call.deadline

    @property
    def cancelled(self) -> bool:
        return self.call.cancelled


class _Gathering:
    def __init__(
        self, rpc: UnaryRpc[Any], infer: InferJob, limits: InputLimits, workers: Workers, observer: RpcObserver
    ) -> None:
        self._rpc = rpc
        self._infer = infer
        self._workers = workers
        self._observer = observer
        self._plans = InferPlans(limits)
        self._groups: dict[InferPlan, list[_Waiting]] = {}
        self._num_waiting = 0
        self._resting: dict[InferPlan, int] = {}  # until when

    # on the transport's thread

    def handle(self, call: Call) -> None:
        message = call.message
        if len(message) > INLINE_BYTES:
            self._ask_alone(Exchange(call, self._observer))
            return
        found = self._plans.find(message)
        if found is None:
            self._plans.learn(message)
            self._ask_alone(Exchange(call, self._observer))
            return
        plan, request_id, contents = found
        if self._resting and self._rests(plan):
            self._ask_alone(Exchange(call, self._observer))
            return
        tracer = self._observer.tracer
        if tracer is not None:
            trace = tracer.begin(call.method, call.metadata, perf_counter_ns())
            if trace is not None:
                self._ask_alone(Exchange(call, self._observer, trace=trace))
                return
        if not self._num_waiting:
            call.at_turn_end(self._end_turn)
        self._num_waiting += 1
        group = self._groups.get(plan)
        if group is None:
            group = self._groups[plan] = []
        group.append(_Waiting(call, request_id, contents))
        if self._num_waiting >= _MOST:
            self._end_turn()

    def _end_turn(self) -> None:
        groups, self._groups = self._groups, {}
        self._num_waiting = 0
        for plan, group in groups.items():
            self._observer.on_start(self._rpc.name, len(group))
            self._infer.answer_group(plan.shape, group, partial(self._deliver, plan))

    def _rests(self, plan: InferPlan) -> bool:
        until = self._resting.get(plan)
        if until is None:
            return False
        if perf_counter_ns() < until:
            return True
        self._resting.pop(plan, None)
        return False

    def _ask_alone(self, exchange: Exchange) -> None:
        begin_unary(self._rpc, exchange, self._workers)

    # wherever the answer is

    def _deliver(self, plan: InferPlan, requests: Sequence[GroupRequest], answer: GroupAnswer | None) -> None:
        waiting = cast("Sequence[_Waiting]", requests)
        if answer is None:
            self._resting[plan] = perf_counter_ns() + _RETRY_NS
            self._hand_back(waiting)
            return
        try:
            self._reply(plan, answer)
        except Exception:
            logger.exception("the answers to %d requests could not be written", len(waiting))
            self._hand_back([each for each in waiting if each.call.active])
        if answer.lapsed:
            for each in cast("Sequence[_Waiting]", answer.lapsed):
                exchange = self._exchange(each)
                exchange.fail(refusals.cancelled() if each.cancelled else refusals.deadline_passed())

    def _reply(self, plan: InferPlan, answer: GroupAnswer) -> None:
        answered = cast("Sequence[_Waiting]", answer.requests)
        timings, observer, name = answer.timings, self._observer, self._rpc.name
        ids = [request_id_of(each.call.metadata) for each in answered]
        trailing = trailing_of_group(ids, timings, answer.queues_ns)
        messages = encode_answers(plan, timings.model_version, answer.outputs, [each.request_id for each in answered])
        seconds: list[float] = []
        gone: list[_Waiting] = []
        for each, message, metadata in zip(answered, messages, trailing, strict=True):
            call = each.call
            call.set_trailing_metadata(metadata)
            if call.reply(message):
                seconds.append((perf_counter_ns() - each.arrived_ns) * 1e-9)
            else:
                gone.append(each)
        observer.on_end_all(name, timings.model, int(Code.OK), seconds)
        for each in gone:
            self._exchange(each, timings).abandon()
        if seconds and (access.isEnabledFor(logging.DEBUG) or max(seconds) >= observer.slow_s):
            self._record(answer, ids)

    def _record(self, answer: GroupAnswer, ids: Sequence[str]) -> None:
        for each, request_id, queue_ns in zip(
            cast("Sequence[_Waiting]", answer.requests), ids, answer.queues_ns, strict=True
        ):
            timings = replace(answer.timings, queue_ns=queue_ns, request_id=request_id)
            seconds = (perf_counter_ns() - each.arrived_ns) * 1e-9
            record_access(each.call, Code.OK, seconds, timings, self._observer.slow_s)

    def _hand_back(self, waiting: Sequence[_Waiting]) -> None:
        """Has each asked alone, on a preparing thread."""
        for each in waiting:
            begin_unary(self._rpc, self._exchange(each), self._workers, here=False)

    def _exchange(self, each: _Waiting, timings: Timings | None = None) -> Exchange:
        """As if the call had been begun alone, when it came; `timings` of the group that answered it."""
        exchange = Exchange(each.call, self._observer, each.arrived_ns)
        exchange.waited(perf_counter_ns() - each.arrived_ns)
        if timings is not None:
            exchange.context.timings = replace(timings, request_id=exchange.request_id)
        return exchange
