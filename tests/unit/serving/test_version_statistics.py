"""What a version's statistics add up to, and when its windows call."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from headrace_server.errors import Reason
from headrace_server.serving.batch import StageTimes
from headrace_server.serving.context import Timings
from headrace_server.serving.decoder.observer import StepReport
from headrace_server.serving.statistics import BatchSums, Comparison, RequestRecord, VersionStatistics
from headrace_server.serving.version_observer import VersionObserver
from headrace_server.serving.window import SlidingWindow


def record(latency_ns: int = 100, rows: int = 1, failure: Reason | None = None, fault: bool = False) -> RequestRecord:
    timings = Timings(queue_ns=1, preprocess_ns=2, infer_ns=3, postprocess_ns=4)
    return RequestRecord("m", "1", timings, latency_ns, rows, failure, fault)


@pytest.fixture
def _threads_change_often() -> Iterator[None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("_threads_change_often")
def test_nothing_is_lost_when_many_threads_count_and_one_reads() -> None:
    statistics = VersionStatistics()
    each, num_threads = 2000, 4
    reading = threading.Event()

    def count() -> None:
        for number in range(each):
            statistics.on_request(record(rows=2) if number % 4 else record(failure=Reason.INTERNAL))

    def read() -> None:
        before = 0
        while not reading.is_set():
            now = statistics.snapshot().num_succeeded
            assert now >= before
            before = now

    reader = threading.Thread(target=read)
    threads = [threading.Thread(target=count) for _ in range(num_threads)]
    for thread in (reader, *threads):
        thread.start()
    for thread in threads:
        thread.join()
    reading.set()
    reader.join()
    seen = statistics.snapshot()
    good = num_threads * each * 3 // 4
    assert (seen.num_succeeded, seen.num_failed) == (good, num_threads * each // 4)
    assert (seen.num_rows, seen.latency_ns, seen.failed_ns) == (2 * good, 100 * good, 100 * seen.num_failed)
    assert (seen.queue_ns, seen.preprocess_ns) == (good, 2 * good)
    assert (seen.infer_ns, seen.postprocess_ns) == (3 * good, 4 * good)
    assert seen.last_request_time is not None


def test_a_request_that_ends_while_others_are_added_up_is_kept_for_the_next_time() -> None:
    statistics = VersionStatistics()

    class Growing(list[tuple[int, ...]]):
        def __getitem__(self, key: Any) -> Any:
            part = super().__getitem__(key)
            self.append((1, 1, 2, 3, 4, 100))
            return part

    statistics._pending = Growing()
    statistics.on_request(record())
    assert [statistics.snapshot().num_succeeded for _ in range(4)] == [1, 2, 3, 4]


def test_a_request_counts_by_what_its_timings_were_when_it_ended() -> None:
    statistics, told = VersionStatistics(), record()
    statistics.on_request(told)
    told.timings.postprocess_ns += 1000  # the reply is written later, on the same account
    assert statistics.snapshot().postprocess_ns == 4


def test_runs_are_kept_by_their_size() -> None:
    statistics = VersionStatistics()
    for size in (4, 1, 4):
        statistics.on_batch(size, StageTimes(9, 1, 10, 2))
    seen = statistics.snapshot()
    assert seen.num_batches == 3
    assert seen.batch_sizes == {1: 1, 4: 2}
    assert dict(seen.batches) == {1: BatchSums(1, 1, 10, 2), 4: BatchSums(2, 2, 20, 4)}


def test_a_step_of_a_decoder_is_a_run_of_as_many_rows_as_it_advances() -> None:
    statistics = VersionStatistics()
    observer = VersionObserver(statistics)
    observer.on_step("m", "1", StepReport(num_decode_tokens=3, seconds=0.5))
    observer.on_step("m", "1", StepReport(num_prefill_tokens=128, seconds=0.25))
    observer.on_step("m", "1", StepReport())
    assert dict(statistics.snapshot().batches) == {
        1: BatchSums(1, 0, 250_000_000, 0),
        3: BatchSums(1, 0, 500_000_000, 0),
    }


def test_a_shadow_is_told_apart_from_requests() -> None:
    statistics = VersionStatistics()
    assert statistics.snapshot().shadow is None
    statistics.on_copy(1_000_000, Comparison(4, 3, 0.5, 5))
    statistics.on_copy(3_000_000, Comparison(1, 1))
    statistics.on_copy_failed(2)
    statistics.on_copies_dropped(7)
    seen = statistics.snapshot()
    assert (seen.num_succeeded, seen.num_failed) == (0, 0)
    shadow = seen.shadow
    assert shadow is not None
    assert (shadow.num_requests, shadow.num_failed, shadow.num_dropped, shadow.num_answers) == (3, 1, 7, 5)
    assert (shadow.agreement, shadow.mean_score_difference) == (0.8, 0.1)
    assert abs(shadow.p99_latency_ns - 3_000_000) < 30_000


def test_a_window_sees_answers_and_faults_and_calls_once_there_are_enough() -> None:
    statistics = VersionStatistics()
    called = []
    window = statistics.window(
        60.0, lambda window_s: SlidingWindow(window_s, alert_at=frozenset({3}), alert=lambda: called.append(1))
    )
    assert statistics.window(60.0) is window
    statistics.on_request(record())
    statistics.on_request(record(failure=Reason.INTERNAL, fault=True))
    statistics.on_request(record(failure=Reason.INVALID_INPUT))
    assert not called, "what the caller sent wrongly says nothing of the version"
    statistics.on_request(record())
    assert called == [1]
    statistics.on_copy(1000, Comparison(2, 1))
    statistics.on_copy_failed(3)
    seen = window.read()
    assert (seen.num_requests, seen.num_faults) == (3, 1)
    assert (seen.num_copies, seen.num_answers, seen.num_disagreeing) == (2, 5, 4)
    statistics.close_windows()
    statistics.on_request(record())
    assert window.read().num_requests == 3
    assert statistics.window(60.0).read().num_requests == 0


def test_counting_from_many_threads_keeps_a_window_right() -> None:
    window = SlidingWindow(1000.0)
    numbers = random.Random(1)

    def count() -> None:
        for _ in range(1000):
            window.add_request(numbers.randrange(1, 10**9), False)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert window.read().num_requests == 4000
