"""The batcher's promises, each by name, on real threads."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
from gates import GatedRunner, row, value_of

from headrace_server.config import BatchPolicy
from headrace_server.errors import Reason, ServingError
from headrace_server.models.model import Row
from headrace_server.serving.batch import BatchResult, StageTimes
from headrace_server.serving.batcher import Batcher
from headrace_server.serving.context import RequestContext

MakeBatcher = Callable[..., Batcher]


@pytest.fixture
def runner() -> GatedRunner:
    return GatedRunner()


@pytest.fixture
def make(runner: GatedRunner) -> Iterator[MakeBatcher]:
    made: list[Batcher] = []

    def make_batcher(run: object = None, *, num_workers: int = 1, observer: object = None, **policy: object) -> Batcher:
        batcher = Batcher(
            run or runner,  # type: ignore[arg-type]
            BatchPolicy(**policy),  # type: ignore[arg-type]
            num_workers=num_workers,
            name="m",
            version="1",
            observer=observer,  # type: ignore[arg-type]
        )
        made.append(batcher)
        return batcher

    yield make_batcher
    runner.open()
    for batcher in made:
        batcher.close(timeout_s=10)


def in_s(seconds: float) -> RequestContext:
    return RequestContext(deadline=time.monotonic() + seconds)


def reason_of(future: object) -> Reason:
    error = future.exception(timeout=10)  # type: ignore[attr-defined]
    assert isinstance(error, ServingError), error
    return error.reason


def occupy(batcher: Batcher, runner: GatedRunner) -> object:
    """Starts a run that holds the only worker until a permit is given."""
    future = batcher.submit([row(0)], RequestContext())
    runner.wait_until_running()
    return future


def measured(batcher: Batcher, seconds: float, runs: int = 4) -> None:
    """Lets the batcher see `runs` batches of about `seconds`; its runner must sleep that long."""
    for _ in range(runs):
        batcher.submit([row(1)], RequestContext()).result(10)


def test_rows_come_back_in_order_one_result_each(make: MakeBatcher, runner: GatedRunner) -> None:
    runner.open()
    results = make(max_batch_size=4).submit([row(i) for i in range(10)], RequestContext()).result(10)
    assert [value_of(result) for result in results] == [2.0 * i for i in range(10)]


def test_no_rows_are_answered_at_once(make: MakeBatcher) -> None:
    assert make().submit([], RequestContext()).result(0) == []


def test_a_free_worker_takes_what_waits_at_once(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make()
    occupy(batcher, runner)
    futures = [batcher.submit([row(i)], RequestContext()) for i in range(1, 6)]
    runner.open()
    assert [value_of(future.result(10)[0]) for future in futures] == [2, 4, 6, 8, 10]
    assert runner.seen == [[0], [1, 2, 3, 4, 5]]


def test_idle_workers_share_what_one_submission_brought(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make(num_workers=2, max_batch_size=16)
    time.sleep(0.05)  # both workers reach the queue
    future = batcher.submit([row(i) for i in range(8)], RequestContext())
    runner.wait_until_running()
    runner.wait_until_running()
    runner.open()
    future.result(10)
    assert sorted(map(len, runner.seen)) == [4, 4]


def test_an_optional_delay_waits_for_company_but_not_past_a_full_batch(make: MakeBatcher, runner: GatedRunner) -> None:
    runner.open()
    batcher = make(max_delay_ms=300, max_batch_size=3)
    started = time.monotonic()
    futures = [batcher.submit([row(i)], RequestContext()) for i in range(3)]
    for future in futures:
        future.result(10)
    assert runner.seen == [[0, 1, 2]]
    assert time.monotonic() - started < 0.25
    lonely = batcher.submit([row(9)], RequestContext())
    lonely.result(10)
    assert 0.29 < time.monotonic() - started < 2


def test_earliest_deadline_runs_first_and_no_deadline_after_near_ones(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make(max_batch_size=1)
    occupy(batcher, runner)
    futures = [
        batcher.submit([row(value)], context)
        for value, context in [(1, RequestContext()), (2, in_s(8)), (3, in_s(4)), (4, RequestContext()), (5, in_s(6))]
    ]
    runner.open()
    for future in futures:
        future.result(10)
    assert runner.seen == [[0], [3], [5], [2], [1], [4]]


def test_work_without_a_deadline_is_not_starved_by_work_with_one() -> None:
    now = [100.0]
    runner = GatedRunner()
    batcher = Batcher(runner, BatchPolicy(max_batch_size=1), num_workers=1, name="m", clock=lambda: now[0])
    try:
        occupy(batcher, runner)
        patient = batcher.submit([row(1)], RequestContext())
        for step in range(30):  # one second each: a steady stream of requests due two seconds after they came
            now[0] += 1.0
            batcher.submit([row(100 + step)], RequestContext(deadline=now[0] + 2.0))
            runner.permit()
            runner.wait_until_running()
            if [1.0] in runner.seen:
                break
        assert [1.0] in runner.seen
        assert now[0] - 100.0 <= 11.0
        runner.open()
        patient.result(10)
    finally:
        runner.open()
        batcher.close()


def test_a_small_request_does_not_wait_for_all_of_a_large_one(make: MakeBatcher, runner: GatedRunner) -> None:
    def slow(rows: list[Row]) -> BatchResult:
        time.sleep(0.01)
        return runner(rows)

    runner.open()
    batcher = make(slow, max_batch_size=2, num_workers=2)
    measured(batcher, 0.01)
    large = batcher.submit([row(i) for i in range(100)], RequestContext())
    time.sleep(0.02)
    small = batcher.submit([row(1000)], RequestContext())
    small.result(10)
    assert not large.done()
    assert len(large.result(10)) == 100


@pytest.mark.parametrize("ratio", [1.0, 1.5, 3.0])
def test_padding_within_a_batch_stays_within_its_bound(make: MakeBatcher, runner: GatedRunner, ratio: float) -> None:
    batcher = make(max_padding_ratio=ratio, length_bucket=16, max_batch_size=8)
    occupy(batcher, runner)
    lengths = np.random.default_rng(7).integers(1, 513, 200).tolist()
    futures = [batcher.submit([row(i, length=n)], RequestContext()) for i, n in enumerate(lengths)]
    runner.open()
    for future in futures:
        future.result(10)
    assert sorted(n for batch in runner.lengths[1:] for n in batch) == sorted(lengths)
    assert max(map(len, runner.lengths)) > 1
    for batch in runner.lengths[1:]:
        padded = [-(-n // 16) * 16 for n in batch]
        assert max(padded) * len(padded) <= ratio * sum(padded)


@pytest.mark.parametrize(("run_s", "most"), [(0.006, 4), (0.004, 12)])
def test_a_long_run_ends_at_enough_units_and_a_short_one_at_its_rows(run_s: float, most: int) -> None:
    now = [100.0]
    runner = GatedRunner()

    def timed(rows: Sequence[Row]) -> BatchResult:
        now[0] += run_s
        return runner(rows)

    policy = BatchPolicy(max_batch_size=12, length_bucket=16)
    batcher = Batcher(timed, policy, num_workers=1, name="m", enough_units=64, clock=lambda: now[0])
    try:
        occupied = batcher.submit([row(0, length=16)], RequestContext())  # after it a run's time is known
        runner.wait_until_running()
        futures = [batcher.submit([row(i, length=n)], RequestContext()) for i, n in enumerate([16] * 12 + [100])]
        runner.open()
        for future in [occupied, *futures]:
            future.result(10)
    finally:
        runner.open()
        batcher.close(timeout_s=10)
    assert len(runner.lengths[1]) == most
    assert [100] in runner.lengths  # longer than enough: it runs all the same, alone


def test_rows_of_different_shape_keys_never_share_a_batch(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make()
    occupy(batcher, runner)
    futures = [batcher.submit([row(i, shape_key=(i % 3,))], RequestContext()) for i in range(12)]
    runner.open()
    for future in futures:
        future.result(10)
    assert sorted(sorted(batch) for batch in runner.seen[1:]) == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]


def test_cancelled_caller_does_not_stall_its_batch(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make()
    context = RequestContext()
    occupied = occupy(batcher, runner)
    leaver = batcher.submit([row(1)], context)
    stayer = batcher.submit([row(2)], RequestContext())
    runner.permit()
    occupied.result(10)  # type: ignore[attr-defined]
    runner.wait_until_running()  # both rows are being computed now
    context.cancel()
    assert reason_of(leaver) is Reason.CANCELLED  # told before the run is over
    assert not stayer.done()
    runner.open()
    assert value_of(stayer.result(10)[0]) == 4


def test_cancelling_frees_queue_places_at_once(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make(max_queue_rows=4)
    occupy(batcher, runner)
    context = RequestContext()
    leaver = batcher.submit([row(i) for i in range(4)], context)
    assert reason_of(batcher.submit([row(9)], RequestContext())) is Reason.QUEUE_FULL
    context.cancel()
    assert batcher.depth == 0
    assert reason_of(leaver) is Reason.CANCELLED
    stayer = batcher.submit([row(5)], RequestContext())
    runner.open()
    assert value_of(stayer.result(10)[0]) == 10
    assert runner.seen == [[0], [5]]


def test_cancelling_the_future_frees_its_places_too(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make()
    occupied = occupy(batcher, runner)
    future = batcher.submit([row(1)], RequestContext())
    assert future.cancel()
    assert batcher.depth == 0
    assert reason_of(future) is Reason.CANCELLED
    assert not future.cancel()
    runner.open()
    occupied.result(10)  # type: ignore[attr-defined]
    batcher.drain(10)
    assert runner.seen == [[0]]


def test_a_request_cancelled_before_it_came_is_never_computed(make: MakeBatcher, runner: GatedRunner) -> None:
    context = RequestContext()
    context.cancel()
    assert reason_of(make().submit([row(1)], context)) is Reason.CANCELLED
    assert runner.seen == []


def test_full_queue_refuses_at_once_with_retry_info(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make(max_queue_rows=3)
    occupy(batcher, runner)
    first = batcher.submit([row(1), row(2)], RequestContext())
    refused = batcher.submit([row(3), row(4)], RequestContext())  # all or none: one place is free
    assert refused.done()
    error = refused.exception()
    assert isinstance(error, ServingError)
    assert error.reason is Reason.QUEUE_FULL
    assert error.retry_after_s is not None
    assert 0 < error.retry_after_s <= 30
    assert error.facts["limit"] == "3"
    assert batcher.depth == 2
    too_large = batcher.submit([row(i) for i in range(4)], RequestContext())
    assert reason_of(too_large) is Reason.PAYLOAD_TOO_LARGE  # trying again would not help
    runner.open()
    assert len(first.result(10)) == 2


def test_expired_entries_leave_before_compute(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make()
    occupy(batcher, runner)
    late = batcher.submit([row(1), row(2)], in_s(0.05))
    stayer = batcher.submit([row(3)], RequestContext())
    time.sleep(0.1)
    runner.open()
    assert reason_of(late) is Reason.DEADLINE_EXCEEDED
    assert value_of(stayer.result(10)[0]) == 6
    assert runner.seen == [[0], [3]]
    assert reason_of(batcher.submit([row(4)], in_s(-1))) is Reason.DEADLINE_EXCEEDED


def test_expired_entries_make_room_in_a_full_queue(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make(max_queue_rows=2)
    occupy(batcher, runner)
    late = batcher.submit([row(1), row(2)], in_s(0.05))
    time.sleep(0.1)
    fresh = batcher.submit([row(3), row(4)], RequestContext())
    assert reason_of(late) is Reason.DEADLINE_EXCEEDED
    runner.open()
    assert len(fresh.result(10)) == 2


def test_infeasible_deadline_is_refused_at_the_door(make: MakeBatcher, runner: GatedRunner) -> None:
    def slow(rows: list[Row]) -> BatchResult:
        time.sleep(0.05)
        return runner(rows)

    runner.open()
    batcher = make(slow, max_batch_size=1)
    measured(batcher, 0.05)
    runs = len(runner.seen)
    refused = batcher.submit([row(7)], in_s(0.01))  # nothing waits, yet one run alone takes longer
    assert refused.done()
    error = refused.exception()
    assert isinstance(error, ServingError)
    assert error.reason is Reason.DEADLINE_INFEASIBLE
    assert 40 < float(error.facts["needed_ms"]) < 500
    backlog = [batcher.submit([row(i)], RequestContext()) for i in range(6)]
    behind = batcher.submit([row(8)], in_s(0.25))  # work without a deadline yields to it: feasible
    hopeless = batcher.submit([row(i) for i in range(10)], in_s(0.3))  # ten runs of 50 ms
    assert reason_of(hopeless) is Reason.DEADLINE_INFEASIBLE
    assert len(behind.result(10)) == 1
    for future in backlog:
        future.result(10)
    assert len(runner.seen) == runs + 7


def test_no_deadline_is_called_infeasible_without_evidence(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make(max_batch_size=1)
    occupy(batcher, runner)
    futures = [batcher.submit([row(i)], in_s(5)) for i in range(50)]
    runner.open()
    for future in futures:
        future.result(10)


def test_one_slow_first_batch_is_no_evidence() -> None:
    now = [0.0]

    def cold_then_quick(rows: object) -> BatchResult:
        now[0] += 1.0 if now[0] == 0 else 0.001
        return BatchResult([{}])

    batcher = Batcher(cold_then_quick, BatchPolicy(), num_workers=1, name="m", clock=lambda: now[0])
    try:
        batcher.submit([row(0)], RequestContext()).result(10)
        while batcher._runs:  # its time is taken after its answer is given
            time.sleep(0.001)
        batcher.submit([row(0)], RequestContext(deadline=now[0] + 0.5)).result(10)
    finally:
        batcher.close()


def test_a_slow_past_does_not_refuse_for_ever() -> None:
    now = [0.0]

    def slow_once(rows: object) -> BatchResult:
        now[0] += 1.0
        return BatchResult([{}])

    batcher = Batcher(slow_once, BatchPolicy(), num_workers=1, name="m", clock=lambda: now[0])
    try:
        for _ in range(4):
            batcher.submit([row(0)], RequestContext()).result(10)
        while batcher._runs:  # its time is taken after its answer is given
            time.sleep(0.001)
        assert reason_of(batcher.submit([row(0)], RequestContext(deadline=now[0] + 0.5))) is Reason.DEADLINE_INFEASIBLE
        now[0] += 3.0  # nothing was measured lately
        batcher.submit([row(0)], RequestContext(deadline=now[0] + 0.5)).result(10)
    finally:
        batcher.close()


def test_overload_spends_most_runs_on_answers_that_are_in_time(make: MakeBatcher) -> None:
    runs: list[int] = []
    in_time: list[int] = []

    def five_ms(rows: list[Row]) -> BatchResult:
        time.sleep(0.005)
        runs.append(1)
        return BatchResult([{} for _ in rows])

    batcher = make(five_ms, max_batch_size=1)
    measured(batcher, 0.005)
    runs.clear()
    started = time.monotonic()
    offered = 0
    while (now := time.monotonic()) - started < 1.0:  # about 1,000 a second offered to 200 a second
        deadline = now + 0.25
        future = batcher.submit([row(0)], RequestContext(deadline=deadline))
        future.add_done_callback(
            lambda f, d=deadline: in_time.append(1) if not f.exception() and time.monotonic() <= d else None
        )
        offered += 1
        time.sleep(0.001)
    batcher.drain(10)
    assert offered > 2 * len(runs)  # or there was no overload
    assert len(runs) > 40
    assert len(in_time) > 0.6 * len(runs)
    print(offered, len(runs), len(in_time))


def test_poison_row_fails_alone(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make()
    occupy(batcher, runner)
    futures = [batcher.submit([row(value)], RequestContext()) for value in (1, 2, 3, -1, 4, 5, 6)]
    runner.open()
    assert reason_of(futures[3]) is Reason.INTERNAL
    error = futures[3].exception()
    assert isinstance(error, ServingError)
    assert "poison" not in error.message
    assert "poison" in error.detail
    healthy = [future for future in futures if future is not futures[3]]
    assert [value_of(future.result(10)[0]) for future in healthy] == [2, 4, 6, 8, 10, 12]


def test_a_failing_row_takes_its_own_requests_waiting_rows_with_it(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make(max_batch_size=1)
    occupy(batcher, runner)
    failing = batcher.submit([row(-1), row(2), row(3)], RequestContext())
    runner.open()
    assert reason_of(failing) is Reason.INTERNAL
    assert batcher.drain(10)
    assert runner.seen == [[0], [-1]]
    assert batcher.depth == 0


def test_a_fault_of_the_engine_is_not_retried_row_by_row(make: MakeBatcher) -> None:
    runs = []

    def closed(rows: list[Row]) -> BatchResult:
        runs.append(len(rows))
        raise ServingError(Reason.SHUTTING_DOWN, "gone")

    future = make(closed).submit([row(i) for i in range(8)], RequestContext())
    assert reason_of(future) is Reason.SHUTTING_DOWN
    assert runs == [8]


def test_a_runner_that_gives_too_few_results_is_an_internal_error(make: MakeBatcher) -> None:
    assert reason_of(make(lambda rows: BatchResult([])).submit([row(1)], RequestContext())) is Reason.INTERNAL


@pytest.mark.parametrize("fault", [ValueError("callback"), SystemExit(3)])
@pytest.mark.filterwarnings("ignore")
def test_a_failing_callback_never_ends_a_worker(make: MakeBatcher, runner: GatedRunner, fault: BaseException) -> None:
    def fail(future: object) -> None:
        raise fault

    batcher = make()
    occupied = occupy(batcher, runner)
    occupied.add_done_callback(fail)  # type: ignore[attr-defined]
    runner.open()
    assert value_of(batcher.submit([row(4)], RequestContext()).result(10)[0]) == 8


def test_a_runner_that_raises_systemexit_never_ends_a_worker(make: MakeBatcher) -> None:
    faults: list[BaseException] = [SystemExit(1)]

    def leave_once(rows: list[Row]) -> BatchResult:
        if faults:
            raise faults.pop()
        return BatchResult([{} for _ in rows])

    batcher = make(leave_once)
    assert reason_of(batcher.submit([row(1)], RequestContext())) is Reason.INTERNAL
    assert batcher.submit([row(1)], RequestContext()).result(10) == [{}]


def test_drain_finishes_or_fails_everyone_and_loses_nobody(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make(max_batch_size=2, num_workers=2)
    futures = [batcher.submit([row(i)], RequestContext()) for i in range(20)]
    runner.wait_until_running()
    assert not batcher.drain(0.05)  # the time is up, nobody was failed
    assert reason_of(batcher.submit([row(1)], RequestContext())) is Reason.SHUTTING_DOWN
    assert sum(future.done() for future in futures) == 0
    runner.permit(4)
    for _ in range(4):
        runner.wait_until_running()
    closer = threading.Thread(target=batcher.close)
    closer.start()
    while batcher.depth:
        time.sleep(0.001)
    runner.open()
    closer.join(10)
    assert all(future.done() for future in futures)
    outcomes = [future.exception() for future in futures]
    answered = [value_of(f.result()[0]) for f, error in zip(futures, outcomes, strict=True) if error is None]
    failed = [error for error in outcomes if error is not None]
    assert all(isinstance(error, ServingError) and error.reason is Reason.SHUTTING_DOWN for error in failed)
    assert answered == [2.0 * i for i in range(len(answered))]
    assert len(answered) >= 8
    assert len(answered) + len(failed) == 20


def test_a_drain_in_time_answers_everyone(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make(max_batch_size=2, max_delay_ms=1000)
    futures = [batcher.submit([row(i)], RequestContext()) for i in range(7)]
    runner.open()
    assert batcher.drain(10)
    assert [value_of(future.result(0)[0]) for future in futures] == [2.0 * i for i in range(7)]


def test_close_does_not_wait_for_a_run_that_never_comes_back(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make()
    stuck = occupy(batcher, runner)
    batcher.close(timeout_s=0.1)
    assert reason_of(stuck) is Reason.SHUTTING_DOWN
    runner.open()  # the run ends after all; its result is discarded
    time.sleep(0.05)
    assert reason_of(stuck) is Reason.SHUTTING_DOWN


def test_timings_never_add_up_to_more_than_the_wall(make: MakeBatcher) -> None:
    def staged(rows: list[Row]) -> BatchResult:
        if any(row.arrays["x"][0] == -1 for row in rows):
            time.sleep(0.002)
            raise RuntimeError("poison")
        time.sleep(0.006)
        return BatchResult([{} for _ in rows], collate_ns=1_000_000, infer_ns=4_000_000, reduce_ns=1_000_000)

    batcher = make(staged, max_batch_size=4, num_workers=2)
    context = RequestContext()
    started = time.monotonic_ns()
    walls: list[int] = []
    future = batcher.submit([row(i) for i in range(22)], context)
    future.add_done_callback(lambda _: walls.append(time.monotonic_ns() - started))
    neighbours = [(c := RequestContext(), batcher.submit([row(v)], c)) for v in (-1, 5, 6)]
    future.result(10)
    timings = context.timings
    stages = timings.queue_ns + timings.preprocess_ns + timings.infer_ns + timings.postprocess_ns
    assert stages <= walls[0]
    assert stages > 0.6 * walls[0]  # and they account for the time that passed
    assert timings.queue_ns > 5_000_000
    assert timings.batch_size == 4
    assert timings.preprocess_ns == timings.postprocess_ns == 1_000_000
    for _, neighbour in neighbours:
        neighbour.exception(10)
    assert neighbours[1][0].timings.infer_ns > 0


def test_a_done_callback_runs_on_the_workers_thread(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make()
    occupy(batcher, runner)
    names: list[str] = []
    future = batcher.submit([row(1)], RequestContext())
    future.add_done_callback(lambda _: names.append(threading.current_thread().name))
    runner.open()
    future.result(10)
    batcher.drain(10)
    assert names == ["m-0"]


def test_an_answered_request_is_freed_without_the_garbage_collector(make: MakeBatcher) -> None:
    class Result(dict):  # type: ignore[type-arg]  # a plain dict cannot be watched
        pass

    batcher = make(lambda rows: BatchResult([Result() for _ in rows]))
    context = RequestContext()
    gc.collect()
    gc.disable()
    try:
        future = batcher.submit([row(1)], context)
        watched = [weakref.ref(future), weakref.ref(future.result(10)[0])]
        del future
        batcher.submit([row(1)], RequestContext()).result(10)  # the worker has let go of the first batch
        batcher.drain(10)
        assert [ref() for ref in watched] == [None, None]
    finally:
        gc.enable()


def test_thousands_of_cancelled_rows_do_not_stay_in_memory(make: MakeBatcher, runner: GatedRunner) -> None:
    batcher = make()
    occupy(batcher, runner)
    for _ in range(2000):
        context = RequestContext()
        batcher.submit([row(1)], context)
        context.cancel()
    heaps = [heap for lengths in batcher._queue._shapes.values() for heap in lengths.values()]
    assert sum(map(len, heaps)) < 600


class Recorder:
    def __init__(self) -> None:
        self.batches: list[tuple[str, str, int, StageTimes]] = []
        self.rejected: list[tuple[Reason, int]] = []

    def on_batch(self, model: str, version: str, size: int, stages: StageTimes) -> None:
        self.batches.append((model, version, size, stages))

    def on_rejected(self, model: str, version: str, reason: Reason, rows: int) -> None:
        self.rejected.append((reason, rows))

    def on_depth(self, model: str, version: str, depth: int) -> None:
        raise RuntimeError("an observer's fault")


def test_the_observer_hears_of_batches_and_refusals_and_cannot_do_harm(make: MakeBatcher, runner: GatedRunner) -> None:
    class Quiet(Recorder):
        def on_depth(self, model: str, version: str, depth: int) -> None:
            pass

    observer = Quiet()
    batcher = make(observer=observer, max_queue_rows=2)
    occupy(batcher, runner)
    batcher.submit([row(1), row(2)], in_s(5))
    batcher.submit([row(3)], RequestContext())
    runner.open()
    batcher.drain(10)
    assert [(model, version, size) for model, version, size, _ in observer.batches] == [("m", "1", 1), ("m", "1", 2)]
    assert observer.batches[1][3].queue_ns > 0
    assert observer.rejected == [(Reason.QUEUE_FULL, 1)]

    harmful = make(observer=Recorder())
    assert value_of(harmful.submit([row(4)], RequestContext()).result(10)[0]) == 8
    assert value_of(harmful.submit([row(5)], RequestContext()).result(10)[0]) == 10
