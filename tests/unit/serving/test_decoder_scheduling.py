"""Who advances at which step: joining and leaving in mid-flight, prompts in parts, order, deadlines, cancellation."""

from __future__ import annotations

import numpy as np
import pytest
from decoder_callers import Caller, Stepped, alone, ask, greedy, prompt
from slot_state import SlotState

from headrace_server.errors import Reason
from headrace_server.serving.decoder.sequence import Finish, SamplingOptions
from headrace_server.serving.decoder.waiting import PATIENCE_S


def test_a_sequence_alone_gives_what_the_model_says() -> None:
    stepped = Stepped()
    caller = stepped.submit(ask(10, 8))
    stepped.finish()
    assert caller.tokens == greedy(prompt(10), 8)
    assert caller.end.finish is Finish.LENGTH
    assert caller.end.times.num_tokens == 8
    assert caller.end.times.prefill_ns > 0
    assert caller.end.times.decode_ns > 0
    stepped.check_empty()


def test_sequences_that_join_and_leave_in_mid_flight_give_what_they_give_alone() -> None:
    stepped = Stepped(SlotState(num_slots=4), prefill_chunk=7)
    callers = []
    for index in range(14):
        tokens = prompt(3 + 5 * (index % 4), seed=index)
        callers.append((tokens, 1 + index % 6, stepped.submit(ask(tokens, 1 + index % 6))))
        stepped.step(index % 3)
    stepped.finish()
    for tokens, num_tokens, caller in callers:
        assert caller.tokens == greedy(tokens, num_tokens)
    assert max(stepped.state.decoded) == 4  # they did run together
    stepped.check_empty()


def test_a_first_token_comes_in_the_step_that_ends_the_prompt_and_takes_part_in_its_decode() -> None:
    stepped = Stepped()
    caller = stepped.submit(ask(10))
    stepped.step()
    assert len(caller.told) == 2
    assert stepped.state.log == ["prefill", "decode"]


def test_a_long_prompt_is_read_in_parts_between_the_steps_of_others() -> None:
    stepped = Stepped(prefill_chunk=16)
    running = stepped.submit(ask(5, 100))
    stepped.step()
    reader = stepped.submit(ask(prompt(100, 1), 4))
    told = []
    while not reader.told:
        stepped.step()
        told.append(len(running.told))
    assert told == list(range(3, 3 + len(told)))  # a token in every step
    assert [num for _, num in stepped.state.prefilled] == [5, 16, 16, 16, 16, 16, 16, 4]
    stepped.finish()
    assert reader.tokens == greedy(prompt(100, 1), 4)
    assert running.tokens == greedy(prompt(5), 100)


def test_a_prompt_is_read_in_large_parts_when_nobody_generates() -> None:
    stepped = Stepped(SlotState(max_length=700), prefill_chunk=16)
    stepped.submit(ask(prompt(600), 4))
    stepped.finish()
    assert [num for _, num in stepped.state.prefilled] == [256, 256, 88]


def test_short_prompts_share_the_budget_of_a_step() -> None:
    stepped = Stepped(SlotState(num_slots=8), prefill_chunk=48)
    stepped.submit(ask(5, 50))
    stepped.step()
    callers = [stepped.submit(ask(prompt(16, seed), 4)) for seed in range(1, 7)]
    stepped.step()
    assert [bool(caller.told) for caller in callers] == [True, True, True, False, False, False]
    stepped.step()
    assert all(caller.told for caller in callers)


def test_a_running_sequence_may_leave_while_a_prompt_is_read_behind_it() -> None:
    stepped = Stepped(prefill_chunk=16)
    short, long = stepped.submit(ask(prompt(4, 1), 4)), stepped.submit(ask(prompt(4, 2), 30))
    stepped.step()
    reader = stepped.submit(ask(prompt(90, 3), 5))
    stepped.step(2)
    assert short.end.finish is Finish.LENGTH
    assert not reader.told
    stepped.finish()
    assert long.tokens == greedy(prompt(4, 2), 30)
    assert reader.tokens == greedy(prompt(90, 3), 5)
    stepped.check_empty()


def test_everyone_running_may_leave_while_a_prompt_is_read() -> None:
    stepped = Stepped(prefill_chunk=16)
    callers = [stepped.submit(ask(prompt(4, seed), 30)) for seed in range(3)]
    stepped.step()
    reader = stepped.submit(ask(prompt(90, 3), 5))
    stepped.step()
    for caller in callers:
        caller.context.cancel()
    stepped.finish()
    assert reader.tokens == greedy(prompt(90, 3), 5)
    stepped.check_empty()


def test_a_cancel_frees_the_slot_before_the_next_run() -> None:
    stepped = Stepped(SlotState(num_slots=1))
    first, second = stepped.submit(ask(4, 100)), stepped.submit(ask(prompt(4, 1), 100))
    stepped.step(3)
    told = len(first.told)
    first.context.cancel()
    stepped.step()
    assert first.error.reason is Reason.CANCELLED
    assert len(first.told) == told
    assert len(second.told) == 2  # it had the slot in that very step
    assert stepped.state.broken == []


@pytest.mark.parametrize("num_steps", [0, 1, 2])
def test_a_cancel_while_the_prompt_is_read_frees_the_slot(num_steps: int) -> None:
    stepped = Stepped(prefill_chunk=16)
    other = stepped.submit(ask(4, 20))
    stepped.step()
    reader = stepped.submit(ask(prompt(200), 4))
    stepped.step(num_steps)
    reader.context.cancel()
    stepped.step()
    assert reader.error.reason is Reason.CANCELLED
    assert stepped.state.num_used == 1
    stepped.finish()
    assert other.tokens == greedy(prompt(4), 20)
    stepped.check_empty()


def test_who_waits_and_is_cancelled_or_late_leaves_at_the_next_step_without_a_run() -> None:
    stepped = Stepped(SlotState(num_slots=1))
    stepped.submit(ask(4, 20))
    stepped.step()
    cancelled, late, patient = Caller(), Caller(), Caller()
    late.context.deadline = stepped.clock() + 5
    for caller in (cancelled, late, patient):
        stepped.submit(ask(prompt(8, 7)), caller)
    cancelled.context.cancel()
    stepped.clock.now += 6
    stepped.step()
    assert cancelled.error.reason is Reason.CANCELLED
    assert late.error.reason is Reason.DEADLINE_EXCEEDED
    assert late.end.times.queue_ns > 0
    assert len(stepped.waiting) == 1
    stepped.finish()
    assert patient.end.finish is Finish.LENGTH
    assert len(stepped.state.prefilled) == 2


def test_who_runs_beyond_its_deadline_leaves_with_what_it_was_told() -> None:
    stepped = Stepped()
    caller = Caller()
    caller.context.deadline = stepped.clock() + 5
    stepped.submit(ask(4, 20), caller)
    stepped.step(3)
    stepped.clock.now += 5
    stepped.step()
    assert caller.error.reason is Reason.DEADLINE_EXCEEDED
    assert "after 4 of at most 20 tokens" in caller.error.message
    assert caller.tokens == greedy(prompt(4), 4)
    stepped.check_empty()


def test_a_higher_priority_goes_first_and_equals_go_as_they_came() -> None:
    stepped = Stepped(SlotState(num_slots=1))
    order: list[int] = []
    for index, priority in enumerate([0, 0, 5, -3, 5]):
        caller = Caller()
        caller.on_told = lambda caller, index=index: order.append(index)  # type: ignore[misc]
        stepped.submit(ask(prompt(4, index), 1, priority=priority), caller)
    stepped.finish()
    assert order == [2, 4, 0, 1, 3]


def test_a_low_priority_does_not_wait_for_ever() -> None:
    stepped = Stepped(SlotState(num_slots=1))
    early = stepped.submit(ask(prompt(4, 1), 4, priority=1))
    low = stepped.submit(ask(4, 4, priority=-2))
    stepped.clock.now += 3 * PATIENCE_S + 1
    late = stepped.submit(ask(prompt(4, 2), 4, priority=1))
    ends = []
    for caller in (low, early, late):
        caller.on_told = lambda caller: ends.append(caller)  # type: ignore[misc]
    stepped.finish()
    assert ends == [early] * 4 + [low] * 4 + [late] * 4


def test_a_stream_of_long_prompts_does_not_stop_those_who_generate() -> None:
    stepped = Stepped(SlotState(num_slots=4), prefill_chunk=32)
    running = stepped.submit(ask(4, 100))
    stepped.step()
    for seed in range(6):
        stepped.submit(ask(prompt(200, seed), 2))
    for count in range(40):
        before = len(stepped.state.prefilled)
        stepped.step()
        assert len(running.told) == 3 + count
        assert sum(num for _, num in stepped.state.prefilled[before:]) <= 32


@pytest.mark.parametrize("chunk", [1, 5, 64, 1000])
def test_the_size_of_parts_changes_no_token(chunk: int) -> None:
    stepped = Stepped(prefill_chunk=chunk)
    stepped.submit(ask(4, 40))
    stepped.step()
    caller = stepped.submit(ask(prompt(50, 2), 6))
    stepped.finish()
    assert caller.tokens == greedy(prompt(50, 2), 6)


def test_a_drawn_text_is_the_same_alone_and_among_others() -> None:
    request = ask(12, 20, sampling=SamplingOptions(temperature=1.0, top_p=0.9, seed=7))
    stepped = Stepped(SlotState(num_slots=4), prefill_chunk=8)
    for seed in range(5):
        stepped.submit(ask(prompt(6, seed), 3 + seed, sampling=SamplingOptions(temperature=2.0, seed=7)))
        stepped.step()
    caller = stepped.submit(request)
    for seed in range(5):
        stepped.step()
        stepped.submit(ask(prompt(6, seed), 3 + seed))
    stepped.finish()
    assert caller.tokens == alone(request)
    assert caller.tokens != greedy(prompt(12), 20)


def test_a_state_that_takes_whole_prompts_gets_them_whole() -> None:
    stepped = Stepped(SlotState(chunked=False), prefill_chunk=4)
    stepped.submit(ask(4, 20))
    stepped.step()
    caller = stepped.submit(ask(prompt(90, 1), 4))
    stepped.finish()
    assert [num for _, num in stepped.state.prefilled] == [4, 90]
    assert caller.tokens == greedy(prompt(90, 1), 4)
    stepped.check_empty()


def test_what_a_step_did_is_reported() -> None:
    stepped = Stepped(SlotState(num_slots=2), prefill_chunk=64)
    stepped.submit(ask(5, 50))
    stepped.submit(ask(prompt(7, 1), 50))
    stepped.submit(ask(prompt(8, 2), 50))
    report = stepped.step()
    assert (report.num_active, report.num_waiting) == (2, 1)
    assert (report.num_prefill_tokens, report.num_decode_tokens) == (12, 2)
    assert (report.num_kv_tokens, report.kv_capacity) == (14, 512)
    assert (len(report.first_token_s), len(report.token_gap_s)) == (2, 2)
    assert report.seconds > 0
    assert np.isfinite(report.first_token_s).all()
