"""A caller that leaves, by a cancel or with its process: its slot is free after the step in hand."""

from __future__ import annotations

import itertools
import signal
import statistics
import subprocess
import sys
import time

import pytest
from generation_serving import Served, eventually, fill_slots

_ALLOWANCE_S = 0.010
_NUM_OTHERS = 3
_CLIENT = """
import sys
from headrace_client import Client
with Client(sys.argv[1]) as client:
    for delta in client.generate("smollm2", "Once upon a time", max_tokens=2000, ignore_end=True):
        print(len(delta.tokens), flush=True)
"""


def _longest_step_s(smollm2: Served) -> float:
    stream = smollm2.client.generate("smollm2", "One, two,", max_tokens=12, ignore_end=True)
    times = [time.perf_counter() for _ in stream]
    return max(later - earlier for earlier, later in itertools.pairwise(times))


def _free_after(smollm2: Served, leave_at: float, count: int) -> float:
    decoder = smollm2.decoder("smollm2")
    assert eventually(lambda: decoder.num_active <= count, 20)
    return time.perf_counter() - leave_at


def _hold(name: str, freed_s: list[float], step_s: float) -> None:
    limit = step_s + _ALLOWANCE_S
    print(
        f"{name}: slot free after {statistics.median(freed_s) * 1e3:.1f} ms (median of {len(freed_s)}), at most "
        f"{max(freed_s) * 1e3:.1f}; longest step {step_s * 1e3:.1f} ms"
    )
    assert statistics.median(freed_s) <= limit


@pytest.mark.parametrize("count", [3, pytest.param(50, marks=pytest.mark.full)])
def test_a_cancel_frees_the_slot_within_a_step(smollm2: Served, count: int) -> None:
    freed, steps = [], []
    with fill_slots(smollm2.client, "smollm2", _NUM_OTHERS):
        decoder = smollm2.decoder("smollm2")
        for _ in range(count):
            stream = smollm2.client.generate("smollm2", "Once upon a time", max_tokens=2000, ignore_end=True)
            next(stream)
            next(stream)
            assert decoder.num_active > _NUM_OTHERS
            left = time.perf_counter()
            stream.close()
            freed.append(_free_after(smollm2, left, _NUM_OTHERS))
            steps.append(_longest_step_s(smollm2))
    _hold("cancel", freed, max(steps))


@pytest.mark.parametrize("count", [1, pytest.param(10, marks=pytest.mark.full)])
def test_a_killed_client_s_slot_is_free_within_a_step(smollm2: Served, count: int) -> None:
    freed, steps = [], []
    with fill_slots(smollm2.client, "smollm2", _NUM_OTHERS):
        for _ in range(count):
            client = subprocess.Popen([sys.executable, "-c", _CLIENT, smollm2.address], stdout=subprocess.PIPE)
            assert client.stdout is not None
            for _ in range(3):
                assert client.stdout.readline()
            assert smollm2.decoder("smollm2").num_active > _NUM_OTHERS
            left = time.perf_counter()
            client.send_signal(signal.SIGKILL)
            freed.append(_free_after(smollm2, left, _NUM_OTHERS))
            client.wait()
            client.stdout.close()
            steps.append(_longest_step_s(smollm2))
    _hold("kill -9", freed, max(steps))
