"""BatchRun: one taken batch computed and answered; a failing one is run again in halves until the culprit is alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from headrace_server.errors import Reason, ServingError, as_serving_error
from headrace_server.serving import refusals
from headrace_server.serving.batch import BatchResult, Runner, StageTimes
from headrace_server.serving.context import RequestTrace
from headrace_server.serving.entry import Entry, Request
from headrace_server.serving.row_queue import RowQueue

__all__ = ["BatchRun"]

# These are said of the engine, not of a row: running the rows alone would only say them again.
_NOT_A_ROWS_FAULT = frozenset({Reason.SHUTTING_DOWN, Reason.DEVICE_UNAVAILABLE, Reason.MODEL_FAILED})


class BatchRun:
    """Computes the entries of one batch on the calling thread and settles their requests.

    stage          what the engine's work is called in traces
    clean_seconds  time of the run when it succeeded whole at the first try; None otherwise
    num_settled    futures resolved
    computed       (rows, stage times) of every run that succeeded
    """

    __slots__ = ("_clock", "_lock", "_queue", "_runner", "_stage", "clean_seconds", "computed", "num_settled")

    def __init__(
        self,
        runner: Runner,
        *,
        queue: RowQueue,
        lock: threading.Lock,
        clock: Callable[[], float],
        stage: str = "infer",
    ) -> None:
        self._stage = stage
        self._runner = runner
        self._queue = queue  # guarded by `lock`
        self._lock = lock
        self._clock = clock
        self.clean_seconds: float | None = None
        self.num_settled = 0
        self.computed: list[tuple[int, StageTimes]] = []

    def compute(self, batch: Sequence[Entry]) -> None:
        """Runs `batch`, in halves where it fails, and answers or fails every request that is thereby decided."""
        started = self._clock()
        groups: list[Sequence[Entry]] = [batch]
        while groups:
            group = groups.pop()
            if group is not batch:
                group = self._still_wanted(group)
                if not group:
                    continue
            began = self._clock()
            try:
                result = self._runner([entry.row for entry in group if entry.row is not None])
                if len(result.rows) != len(group):
                    raise ValueError(f"the runner gave {len(result.rows)} results for {len(group)} rows")
            except BaseException as exc:
                error = as_serving_error(exc)
                if len(group) > 1 and error.reason not in _NOT_A_ROWS_FAULT:
                    middle = len(group) // 2
                    groups += [group[middle:], group[:middle]]
                else:
                    self._fail(group, error)
                continue
            ended = self._clock()
            if group is batch and result.num_rows != 0:
                self.clean_seconds = ended - began
            self._answer(group, result, started, ended)

    def _still_wanted(self, group: Sequence[Entry]) -> Sequence[Entry]:
        """The entries whose request is open and in time; the late ones are failed."""
        now = self._clock()
        late = [e for e in group if e.request.deadline is not None and e.request.deadline <= now]
        if late:
            self._fail(late, refusals.deadline_passed())
        return [entry for entry in group if not entry.request.done]

    def _answer(self, group: Sequence[Entry], result: BatchResult, started: float, ended: float) -> None:
        finished: list[tuple[Request, float]] = []
        size = len(group) if result.num_rows is None else result.num_rows
        with self._lock:
            for entry, row_result in zip(group, result.rows, strict=True):
                entry.row = None
                request = entry.request
                if request.done:  # cancelled while it ran
                    continue
                request.results[entry.index] = row_result
                request.largest_batch = max(request.largest_batch, size)
                request.num_left -= 1
                if not request.num_left:
                    request.done = True
                    finished.append((request, entry.submitted))
        # Whatever the run took beyond stacking and reducing was the engine, failed tries included.
        started_ns, ended_ns = int(started * 1e9), int(ended * 1e9)
        collated_ns = started_ns + result.collate_ns
        inferred_ns = max(collated_ns, ended_ns - result.reduce_ns)
        traces = [entry.request.timings.trace for entry in group if entry.request.timings.trace is not None]
        if traces:
            _trace(group, list(dict.fromkeys(traces)), started_ns, ended_ns)
        for request, submitted in finished:
            timings = request.timings
            timings.waited(min(int(submitted * 1e9), started_ns), started_ns)
            timings.prepared(started_ns, collated_ns, "collate")
            timings.inferred(collated_ns, inferred_ns, self._stage)
            timings.finished(inferred_ns, inferred_ns + result.reduce_ns, "reduce")
            timings.batch_size = max(timings.batch_size, request.largest_batch)
            self.num_settled += 1
            request.answer()
        if not size:  # nobody waited for any of it
            return
        waited_ns = max(0, int((started - min(entry.submitted for entry in group)) * 1e9))
        self.computed.append((size, StageTimes(waited_ns, result.collate_ns, result.infer_ns, result.reduce_ns)))

    def _fail(self, group: Sequence[Entry], error: ServingError) -> None:
        failed: list[Request] = []
        with self._lock:
            for entry in group:
                entry.row = None
                if not entry.request.done:
                    entry.request.done = True
                    self._queue.drop(entry.request)  # its other rows are not worth computing
                    failed.append(entry.request)
        for request in failed:
            self.num_settled += 1
            request.fail(error)


def _trace(group: Sequence[Entry], requests: Sequence[RequestTrace], began_ns: int, ended_ns: int) -> None:
    """Tells the traces of the requests that they shared a run."""
    timings = group[0].request.timings
    batch = requests[0].batch(
        requests,
        model=timings.model,
        version=timings.model_version,
        num_rows=sum(entry.num_rows for entry in group),
        num_units=max(entry.units for entry in group) * sum(entry.num_rows for entry in group),
        began_ns=began_ns,
        ended_ns=ended_ns,
    )
    for request in requests:
        request.joined(batch)
