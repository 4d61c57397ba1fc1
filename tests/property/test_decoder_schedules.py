"""Random schedules of joins, cancels, deadlines, priorities and failures: nothing is left behind, and every text is the
one that its request gives alone."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from decoder_callers import Caller, Stepped, alone, prompt, serving
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slot_state import NOT_A_NUMBER, POISON, SlotState

from headrace_server.errors import Reason, ServingError
from headrace_server.serving.decoder.sequence import Finish, SamplingOptions, SequenceRequest

EXPECTED = {Reason.INTERNAL, Reason.CANCELLED, Reason.DEADLINE_EXCEEDED, Reason.SHUTTING_DOWN}
POISONS = {"": None, "run": POISON, "logits": NOT_A_NUMBER}


@dataclass(frozen=True)
class Ask:
    """One request of a schedule, and what happens to it."""

    family: int  # whose beginning its prompt has
    shared: int  # tokens of that
    own: int  # tokens of its own behind
    max_tokens: int
    temperature: float
    seed: int
    num_beams: int  # for encoder–decoder states
    penalised: bool
    priority: int
    deadline: float | None  # steps
    cancel_after: int | None  # steps
    stop_after: int | None  # tokens
    fail_after: int | None  # tokens
    poison: str  # what its first token spoils
    ends: bool  # some tokens end it
    pause: int  # steps before the next


ASKS = st.builds(
    Ask,
    family=st.integers(0, 2),
    shared=st.sampled_from([0, 10, 32, 70]),
    own=st.integers(1, 40),
    max_tokens=st.integers(1, 12),
    temperature=st.sampled_from([0.0, 0.0, 0.8]),
    seed=st.integers(0, 2),
    num_beams=st.sampled_from([1, 1, 2, 3]),
    penalised=st.booleans(),
    priority=st.integers(-1, 1),
    deadline=st.sampled_from([None, None, None, 0.5, 2.5, 6.5]),
    cancel_after=st.sampled_from([None, None, None, 0, 1, 3, 8]),
    stop_after=st.sampled_from([None, None, None, 1, 4]),
    fail_after=st.sampled_from([None] * 9 + [1, 3]),
    poison=st.sampled_from([""] * 16 + ["run", "logits"]),
    ends=st.booleans(),
    pause=st.sampled_from([0, 0, 0, 1, 2, 5]),
)
SCHEDULES = st.lists(ASKS, min_size=1, max_size=25)


@cache
def request_of(ask: Ask, encoder_decoder: bool) -> SequenceRequest:
    beams = ask.num_beams if encoder_decoder else 1
    own = prompt(ask.own, 100 + ask.seed)
    spoilt = POISONS[ask.poison]
    plain = beams > 1
    sampling = SamplingOptions(
        temperature=0.0 if plain else ask.temperature,
        seed=ask.seed,
        frequency_penalty=0.5 if ask.penalised and not plain else 0.0,
        logit_bias={spoilt: 100.0} if spoilt is not None else {},
    )
    return SequenceRequest(
        prompt=np.concatenate([prompt(100, ask.family)[: ask.shared], own]),
        max_tokens=ask.max_tokens,
        sampling=sampling,
        num_beams=beams,
        end_ids=frozenset(range(20, 101, 11)) if ask.ends else frozenset(),
        priority=ask.priority,
    )


@cache
def expected_of(ask: Ask, encoder_decoder: bool) -> list[int]:
    return alone(request_of(ask, encoder_decoder), encoder_decoder=encoder_decoder)


class Asker(Caller):
    """One request and everything that was ever said to it."""

    def __init__(self, ask: Ask, encoder_decoder: bool) -> None:
        super().__init__(stop_after=ask.stop_after, fail_after=ask.fail_after)
        self.ask = ask
        self.encoder_decoder = encoder_decoder
        self.request = request_of(ask, encoder_decoder)

    def check(self) -> None:
        """It heard one end, which it deserved, and the tokens that it would have heard alone."""
        end, ask = self.end, self.ask
        if ask.poison:
            if end.error is not None:
                assert end.error.reason in EXPECTED
            return
        expected = expected_of(ask, self.encoder_decoder)
        assert self.tokens == expected[: len(self.told)]
        if end.error is None:
            whole = len(self.told) == len(expected)
            assert whole or (end.finish is Finish.STOP and len(self.told) == ask.stop_after)
        elif end.error.reason is Reason.INTERNAL:  # a neighbour's fault is nobody else's fate
            assert len(self.told) == ask.fail_after
        elif end.error.reason is Reason.CANCELLED:
            assert self.context.cancelled
        elif end.error.reason is Reason.DEADLINE_EXCEEDED:
            assert self.context.deadline is not None
        else:
            assert end.error.reason is Reason.SHUTTING_DOWN


def check_invariants(stepped: Stepped, capacity: int) -> None:
    """What holds between any two steps."""
    scheduler, state = stepped.scheduler, stepped.state
    slots = scheduler._slots
    assert state.broken == []
    assert [row.slot for row in slots.running] == list(range(len(slots.running)))
    used = {row.slot for row in slots.running} | ({slots.prefilling.slot} if slots.prefilling else set())
    assert {slot for slot, length in enumerate(state.lengths) if length} <= used
    assert sorted(id(row) for sequence in scheduler._live for row in sequence.rows) == sorted(
        id(row) for row in [*slots.running, *([slots.prefilling] if slots.prefilling else [])]
    )
    assert scheduler._computed.num_bytes <= capacity
    assert set(scheduler._searches) <= set(scheduler._live)


def run_stepped(asks: list[Ask], num_slots: int, chunk: int, encoder_decoder: bool) -> None:
    """A schedule with steps and seconds counted by hand: what a cancel or a deadline does is known to the step."""
    state = SlotState(num_slots=max(num_slots, 3), encoder_decoder=encoder_decoder, bytes_per_token=8192)
    stepped = Stepped(state, prefill_chunk=chunk, prefix_cache_mb=1)  # of 128 tokens
    askers: list[Asker] = []
    cancels: list[tuple[int, Asker]] = []
    now = 0

    def step() -> None:
        nonlocal now
        gone = [asker for at, asker in cancels if at <= now and not asker.ends]
        for asker in gone:
            asker.context.cancel()
        heard = [(asker, len(asker.told)) for asker in gone]
        late = [
            (asker, len(asker.told))
            for asker in askers
            if asker.context.deadline is not None and asker.context.deadline <= stepped.clock() and not asker.ends
        ]
        stepped.step()
        for asker, told in heard + late:  # before the next run: not a token more
            assert asker.ends
            assert len(asker.told) == told
        check_invariants(stepped, 1 << 20)
        now += 1
        stepped.clock.now += 1

    for ask in asks:
        asker = Asker(ask, encoder_decoder)
        if ask.deadline is not None:
            asker.context.deadline = stepped.clock() + ask.deadline
        stepped.submit(asker.request, asker)
        askers.append(asker)
        if ask.cancel_after is not None:
            cancels.append((now + ask.cancel_after, asker))
        for _ in range(ask.pause):
            step()
    for _ in range(2000):
        if not len(stepped.waiting) and not stepped.scheduler.num_active:
            break
        step()
    stepped.check_empty()
    assert not stepped.scheduler._searches
    assert stepped.scheduler._computed._read is None
    for asker in askers:
        asker.check()


def run_threaded(seed: int) -> None:
    """A schedule against the decoder's own thread, cancelled from others, drained or closed in the middle."""
    chance = random.Random(seed)
    state = SlotState(num_slots=chance.choice([1, 3, 5]))
    decoder = serving(state, prefill_chunk=chance.choice([4, 32]))
    askers, timers = [], []
    for number in range(chance.randint(1, 14)):
        ask = Ask(
            family=number % 3, shared=chance.choice([0, 32, 70]), own=chance.randint(1, 30),
            max_tokens=chance.randint(1, 30), temperature=chance.choice([0.0, 0.8]), seed=chance.randint(0, 2),
            num_beams=1, penalised=False, priority=chance.randint(-2, 2),
            deadline=chance.choice([None, None, 5]), cancel_after=chance.choice([None, None, 0, 2, 10]),
            stop_after=chance.choice([None, None, 3]), fail_after=chance.choice([None] * 6 + [2]),
            poison=chance.choice([""] * 8 + ["run", "logits"]), ends=chance.random() < 0.3, pause=0,
        )  # fmt: skip
        asker = Asker(ask, False)
        if ask.deadline is not None:
            asker.context.deadline = time.monotonic() + ask.deadline / 1e3 + 0.002 * chance.random() + 0.05
        try:
            decoder.submit(asker.request, asker.context, asker)
        except ServingError:
            assert asker.context.expired  # on a very busy machine
            continue
        askers.append(asker)
        if ask.cancel_after is not None:
            timer = threading.Timer(ask.cancel_after / 1e3, asker.context.cancel)
            timer.start()
            timers.append(timer)
        if chance.random() < 0.3:
            time.sleep(chance.random() * 3e-3)
    if chance.random() < 0.7:
        assert decoder.drain(60)
        for asker in askers:
            asker.check()
    assert decoder.close()
    for timer in timers:
        timer.join()
    for asker in askers:
        asker.check()
    assert state.broken == []
    assert state.num_used == 0
    assert (decoder.num_active, decoder.depth, len(decoder._open)) == (0, 0, 0)
    assert decoder._scheduler._computed.num_bytes == 0
    assert not decoder._thread.is_alive()


common = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
of_slots = st.integers(1, 6)
of_chunks = st.sampled_from([3, 16, 64])


@settings(common, max_examples=40)
@given(asks=SCHEDULES, num_slots=of_slots, chunk=of_chunks, encoder_decoder=st.booleans())
def test_any_schedule_leaves_nothing_behind_and_every_text_as_it_is_alone(
    asks: list[Ask], num_slots: int, chunk: int, encoder_decoder: bool
) -> None:
    run_stepped(asks, num_slots, chunk, encoder_decoder)


@pytest.mark.full
@pytest.mark.timeout(900)
@settings(common, max_examples=500)
@given(asks=SCHEDULES, num_slots=of_slots, chunk=of_chunks, encoder_decoder=st.booleans())
def test_five_hundred_schedules_leave_nothing_behind(
    asks: list[Ask], num_slots: int, chunk: int, encoder_decoder: bool
) -> None:
    run_stepped(asks, num_slots, chunk, encoder_decoder)


@pytest.mark.parametrize("seed", range(12))
def test_any_schedule_of_threads_tells_everyone_one_end(seed: int) -> None:
    run_threaded(seed)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_five_hundred_schedules_of_threads_tell_everyone_one_end() -> None:
    for seed in range(500):
        run_threaded(seed)
