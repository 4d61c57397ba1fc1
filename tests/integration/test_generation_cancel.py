"""A caller that leaves, by a cancel or with its process: its slot is free after the step in hand.

Measured where it happens: at the moment of each step at which those who have left lose their slots.
"""

from __future__ import annotations

import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from generation_serving import Served, eventually, fill_slots

_ALLOWANCE_S = 0.010
_NUM_OTHERS = 3
_MAX_TOKENS = 2000  # of those who leave: nobody else asks for as many
_CLIENT = f"""
import sys
from headrace_client import Client
with Client(sys.argv[1]) as client:
    sys.stdin.readline()
    for delta in client.generate("smollm2", "Once upon a time", max_tokens={_MAX_TOKENS}, ignore_end=True):
        print(len(delta.tokens), flush=True)
"""


@dataclass
class Steps:
    """When each step began, and when it had retired those who had left, and whether the one looked at held a slot."""

    begun: list[float] = field(default_factory=list)
    retired: list[tuple[float, bool]] = field(default_factory=list)
    freed_s: list[float] = field(default_factory=list)
    num_steps: list[int] = field(default_factory=list)  # begun after a caller left, which still ran with it

    def note_free(self, left: float) -> None:
        """Waits until a step retired the one who left at `left`, and notes how long that took."""

        def free() -> float | None:
            return next((at for at, held in list(self.retired) if at > left and not held), None)

        assert eventually(lambda: free() is not None, 20)
        freed = free()
        assert freed is not None
        self.freed_s.append(freed - left)
        self.num_steps.append(sum(left < at < freed for at in self.begun) - 1)

    def longest_s(self) -> float:
        return max(later - earlier for earlier, later in zip(self.begun, self.begun[1:], strict=False))

    def hold(self, name: str) -> None:
        ordered, limit = sorted(self.freed_s), self.longest_s() + _ALLOWANCE_S
        median, p99 = statistics.median(ordered), ordered[-1 - len(ordered) // 100]
        late = sum(count > 0 for count in self.num_steps)
        print(
            f"\n{name}, {len(ordered)}: slot free after {median * 1e3:.1f} ms (median), {p99 * 1e3:.1f} (p99), at most "
            f"{ordered[-1] * 1e3:.1f}; {late} after more than the step in hand, at most {max(self.num_steps)} more; "
            f"steps {statistics.median(self.lengths()) * 1e3:.1f} ms (median), {self.longest_s() * 1e3:.1f} at most"
        )
        assert median <= limit

    def lengths(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.begun, self.begun[1:], strict=False)]


@contextmanager
def watched(smollm2: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[Steps]:
    """Notes the steps of the served decoder while it is never idle."""
    scheduler: Any = smollm2.decoder("smollm2")._scheduler
    steps, step, retire = Steps(), scheduler.step, scheduler._retire

    def note_step() -> Any:
        steps.begun.append(time.perf_counter())
        return step()

    def note_retired() -> None:
        retire()
        held = any(sequence.request.max_tokens == _MAX_TOKENS for sequence in scheduler._live)
        steps.retired.append((time.perf_counter(), held))

    with fill_slots(smollm2.client, "smollm2", _NUM_OTHERS), monkeypatch.context() as patch:
        patch.setattr(scheduler, "step", note_step)
        patch.setattr(scheduler, "_retire", note_retired)
        yield steps


@pytest.mark.parametrize("count", [3, pytest.param(100, marks=pytest.mark.full)])
def test_a_cancel_frees_the_slot_within_a_step(smollm2: Served, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    with watched(smollm2, monkeypatch) as steps:
        for _ in range(count):
            stream = smollm2.client.generate("smollm2", "Once upon a time", max_tokens=_MAX_TOKENS, ignore_end=True)
            next(stream)
            next(stream)
            assert eventually(lambda: steps.retired[-1][1]), "it holds a slot"
            left = time.perf_counter()
            stream.close()
            steps.note_free(left)
        steps.hold("cancel")


@pytest.mark.parametrize("count", [1, pytest.param(100, marks=pytest.mark.full)])
def test_a_killed_client_s_slot_is_free_within_a_step(
    smollm2: Served, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _CLIENT, smollm2.address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    client = start()
    with watched(smollm2, monkeypatch) as steps:
        for _ in range(count):
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write("\n")
            client.stdin.flush()
            for _ in range(3):
                assert client.stdout.readline()
            assert eventually(lambda: steps.retired[-1][1]), "it holds a slot"
            left = time.perf_counter()
            client.send_signal(signal.SIGKILL)
            steps.note_free(left)
            client.communicate()
            client = start()
        steps.hold("kill -9")
    client.kill()
    client.communicate()
