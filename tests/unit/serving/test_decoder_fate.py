"""One sequence's fate never touches a neighbour's: failing runs, listeners and rows; drain and close lose nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
from decoder_callers import Caller, Stepped, ask, greedy, prompt, serving
from slot_state import NOT_A_NUMBER, POISON, VOCABULARY, SlotState

from headrace_server.errors import Reason, ServingError
from headrace_server.serving.context import RequestContext
from headrace_server.serving.decoder.sequence import Finish, SamplingOptions

TO_POISON = SamplingOptions(logit_bias={POISON: 100.0})
TO_NAN = SamplingOptions(logit_bias={NOT_A_NUMBER: 100.0})


def test_a_failing_prompt_ends_its_own_sequence() -> None:
    stepped = Stepped()
    before = stepped.submit(ask(prompt(5, 1), 10))
    stepped.step()
    broken = stepped.submit(ask(np.array([30, POISON, 31]), 10))
    after = stepped.submit(ask(prompt(5, 2), 10))
    stepped.finish()
    assert broken.error.reason is Reason.INTERNAL
    assert "poison" not in broken.error.message
    assert "poison" in broken.error.detail
    assert before.tokens == greedy(prompt(5, 1), 10)
    assert after.tokens == greedy(prompt(5, 2), 10)
    stepped.check_empty()


@pytest.mark.parametrize("place", range(4))
def test_a_row_that_makes_the_step_fail_leaves_alone(place: int) -> None:
    stepped = Stepped()
    callers = []
    for index in range(4):
        sampling = TO_POISON if index == place else SamplingOptions()
        callers.append(stepped.submit(ask(prompt(5, index), 10, sampling=sampling)))
    stepped.finish()
    for index, caller in enumerate(callers):
        if index == place:
            assert caller.error.reason is Reason.INTERNAL
            assert caller.tokens == [POISON]
        else:
            assert caller.tokens == greedy(prompt(5, index), 10)
    stepped.check_empty()


def test_several_failing_rows_leave_and_the_others_go_on() -> None:
    stepped = Stepped(SlotState(num_slots=8))
    callers = []
    for index in range(8):
        sampling = TO_POISON if index % 3 == 1 else SamplingOptions()
        callers.append(stepped.submit(ask(prompt(5, index), 10, sampling=sampling)))
    stepped.finish()
    for index, caller in enumerate(callers):
        if index % 3 == 1:
            assert caller.error.reason is Reason.INTERNAL
        else:
            assert caller.tokens == greedy(prompt(5, index), 10)
    stepped.check_empty()


def test_an_engine_that_is_gone_fails_everyone_at_once() -> None:
    stepped = Stepped()
    callers = [stepped.submit(ask(prompt(5, index), 10)) for index in range(3)]
    stepped.step()
    stepped.state.fault = ServingError(Reason.DEVICE_UNAVAILABLE, "the device was lost")
    num_runs = len(stepped.state.log)
    stepped.step()
    assert stepped.state.log[num_runs:].count("decode") == 1
    assert [caller.error.reason for caller in callers] == [Reason.DEVICE_UNAVAILABLE] * 3
    stepped.check_empty()


def test_logits_that_are_no_numbers_end_their_row() -> None:
    stepped = Stepped()
    good = stepped.submit(ask(prompt(5, 1), 10))
    bad = stepped.submit(ask(prompt(5, 2), 10, sampling=TO_NAN))
    stepped.finish()
    assert bad.error.reason is Reason.INTERNAL
    assert "logits" in bad.error.message
    assert good.tokens == greedy(prompt(5, 1), 10)
    stepped.check_empty()


def test_a_listener_that_fails_ends_its_own_sequence() -> None:
    stepped = Stepped()
    good = stepped.submit(ask(prompt(5, 1), 10))
    bad = stepped.submit(ask(prompt(5, 2), 10), Caller(fail_after=3))
    stepped.finish()
    assert bad.error.reason is Reason.INTERNAL
    assert "listener failed" in bad.error.detail
    assert len(bad.told) == 3
    assert good.tokens == greedy(prompt(5, 1), 10)
    stepped.check_empty()


def test_a_listener_that_fails_at_the_end_hurts_nobody() -> None:
    class Rude(Caller):
        def on_end(self, end: object) -> None:
            raise RuntimeError("no")

    stepped = Stepped()
    good = stepped.submit(ask(prompt(5, 1), 10))
    stepped.submit(ask(prompt(5, 2), 3), Rude())
    stepped.finish()
    assert good.end.finish is Finish.LENGTH
    stepped.check_empty()


def test_a_listener_may_stop_its_sequence() -> None:
    stepped = Stepped()
    caller = stepped.submit(ask(prompt(5, 1), 10), Caller(stop_after=4))
    stepped.finish()
    assert caller.end.finish is Finish.STOP
    assert caller.tokens == greedy(prompt(5, 1), 4)
    stepped.check_empty()


class Broken:
    """A constraint that fails when it is told a token."""

    complete = False

    def allowed(self) -> npt.NDArray[np.uint32]:
        return np.full(-(-VOCABULARY // 32), 0xFFFFFFFF, np.uint32)

    def accept(self, token: int) -> None:
        raise RuntimeError("the constraint failed")


def test_a_constraint_that_fails_ends_its_own_sequence() -> None:
    stepped = Stepped()
    good = stepped.submit(ask(prompt(5, 1), 10))
    bad = stepped.submit(ask(prompt(5, 2), 10, constraint=Broken()))
    stepped.finish()
    assert bad.error.reason is Reason.INTERNAL
    assert good.tokens == greedy(prompt(5, 1), 10)
    stepped.check_empty()


# with its thread


@pytest.fixture
def state() -> Iterator[SlotState]:
    state = SlotState()
    yield state
    assert state.broken == []
    assert state.num_used == 0
    assert not [thread for thread in threading.enumerate() if thread.name == "small-decoder"]


def test_drain_lets_everyone_finish_and_refuses_newcomers(state: SlotState) -> None:
    decoder = serving(state)
    callers = [Caller() for _ in range(9)]
    for index, caller in enumerate(callers):
        decoder.submit(ask(prompt(5, index), 30), caller.context, caller)
    assert decoder.drain(30)
    for index, caller in enumerate(callers):
        assert caller.tokens == greedy(prompt(5, index), 30)
    with pytest.raises(ServingError) as refusal:
        decoder.submit(ask(), RequestContext(), Caller())
    assert refusal.value.reason is Reason.SHUTTING_DOWN
    assert decoder.close()
    assert (decoder.num_active, decoder.depth) == (0, 0)


def test_drain_says_when_the_time_was_up(state: SlotState) -> None:
    decoder = serving(state)
    caller, held, go = Caller(), threading.Event(), threading.Event()

    def hold(caller: Caller) -> None:
        held.set()
        go.wait(30)

    caller.on_told = hold
    decoder.submit(ask(5, 100), caller.context, caller)
    assert held.wait(30)
    assert not decoder.drain(0.01)
    go.set()
    assert decoder.drain(30)
    assert decoder.close()


def test_close_ends_everyone_waiting_and_running(state: SlotState) -> None:
    decoder = serving(state)
    callers, started = [Caller() for _ in range(9)], threading.Event()
    callers[0].on_told = lambda caller: started.set()
    for caller in callers:
        decoder.submit(ask(5, 200), caller.context, caller)
    assert started.wait(30)
    assert decoder.close()
    outcomes = {caller.end.error.reason if caller.end.error else caller.end.finish for caller in callers}
    assert Reason.SHUTTING_DOWN in outcomes
    assert outcomes <= {Reason.SHUTTING_DOWN, Finish.LENGTH}


def test_close_does_not_wait_for_a_run_that_hangs_and_everyone_hears_the_end_once(state: SlotState) -> None:
    entered, go = threading.Event(), threading.Event()

    class Hanging(SlotState):
        def decode(self, tokens: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
            entered.set()
            go.wait(30)
            return super().decode(tokens)

    decoder = serving(Hanging())
    running, waiting = Caller(), Caller()
    decoder.submit(ask(5, 100), running.context, running)
    assert entered.wait(30)
    decoder.submit(ask(5, 100), waiting.context, waiting)
    assert not decoder.close(0.05)
    assert running.error.reason is waiting.error.reason is Reason.SHUTTING_DOWN
    go.set()
    decoder._thread.join(30)
    assert running.error.reason is waiting.error.reason is Reason.SHUTTING_DOWN  # each heard it once


def test_a_listener_may_close_the_decoder(state: SlotState) -> None:
    decoder = serving(state)
    caller = Caller()
    caller.on_told = lambda caller: decoder.close() and None
    decoder.submit(ask(5, 100), caller.context, caller)
    assert caller.wait().error.reason is Reason.SHUTTING_DOWN
    decoder._thread.join(30)


def test_a_fault_of_the_decoder_itself_ends_who_has_a_slot_and_serves_on(state: SlotState) -> None:
    decoder = serving(state)
    faults = [RuntimeError("a fault in moving")]
    first, second = Caller(), Caller()

    def spoil(caller: Caller) -> None:
        if faults:
            real, decoder._scheduler._decode = decoder._scheduler._decode, fail  # type: ignore[method-assign]
            undo.append(real)

    undo: list[object] = []

    def fail() -> None:
        decoder._scheduler._decode = undo.pop()  # type: ignore[assignment, method-assign]
        raise faults.pop()

    first.on_told = spoil
    decoder.submit(ask(5, 100), first.context, first)
    assert first.wait().error.reason is Reason.INTERNAL
    decoder.submit(ask(5, 10), second.context, second)
    assert second.wait().tokens == greedy(prompt(5), 10)
    assert decoder.close()


def test_an_engine_that_cannot_even_be_cleared_ends_everyone_and_refuses_newcomers() -> None:
    class Lost(SlotState):
        def clear(self, slot: int) -> None:
            if "decode" in self.log:
                raise RuntimeError("lost")
            super().clear(slot)

    decoder = serving(Lost(num_slots=1))
    first, second = Caller(), Caller()

    def follow(caller: Caller) -> None:
        if len(caller.told) == 1:
            decoder.submit(ask(5, 2), second.context, second)

    first.on_told = follow
    decoder.submit(ask(5, 2), first.context, first)
    assert second.wait().error.reason is Reason.INTERNAL
    assert first.wait().error.reason is Reason.INTERNAL
    decoder._thread.join(30)
    with pytest.raises(ServingError) as refused:
        decoder.submit(ask(), RequestContext(), Caller())
    assert refused.value.reason is Reason.MODEL_FAILED
    assert decoder.close()


def test_a_cancel_from_another_thread_is_heard_while_others_run(state: SlotState) -> None:
    decoder = serving(state)
    callers, started = [Caller() for _ in range(3)], threading.Event()
    callers[1].on_told = lambda caller: started.set()
    for index, caller in enumerate(callers):
        decoder.submit(ask(prompt(5, index), 200), caller.context, caller)
    assert started.wait(30)
    callers[1].context.cancel()
    outcome = callers[1].wait().end
    assert outcome.finish is Finish.LENGTH or callers[1].error.reason is Reason.CANCELLED
    assert callers[0].wait().tokens == greedy(prompt(5, 0), 200)
    assert callers[2].wait().tokens == greedy(prompt(5, 2), 200)
    assert decoder.close()
