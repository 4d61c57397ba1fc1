"""Beginnings of prompts that were computed before: found, compared, bounded, and never a reason for another token."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from decoder_callers import Caller, Stepped, alone, ask, greedy, prompt
from slot_state import SlotState

from headrace_server.engines.decode import Tokens
from headrace_server.errors import Reason
from headrace_server.serving.decoder.prefix_cache import BLOCK, PrefixCache
from headrace_server.serving.decoder.sequence import SamplingOptions


def saver(tokens: Tokens) -> Callable[[int, int], Tokens]:
    return lambda start, end: tokens[start:end].copy()


def found(prefixes: PrefixCache, asked: Tokens) -> Tokens:
    """What is found of `asked`, put together as a slot would be."""
    held = asked[:0]
    for piece in prefixes.find(asked):
        assert piece.start == len(held)
        held = np.concatenate([held, piece.saved[: piece.end - piece.start]])
        assert len(held) == piece.end
    return held


def cache(num_tokens: int) -> PrefixCache:
    return PrefixCache(capacity_bytes=num_tokens * 10, bytes_per_token=10)


def test_the_longest_beginning_is_found_in_whole_blocks() -> None:
    prefixes = cache(1000)
    tokens = prompt(100)
    prefixes.keep(tokens, saver(tokens))
    assert prefixes.num_bytes == 96 * 10
    for shared, length in [(31, 0), (32, 32), (70, 64), (96, 96), (99, 96)]:
        asked = np.concatenate([tokens[:shared], prompt(50, 1)])
        np.testing.assert_array_equal(found(prefixes, asked), asked[:length])


def test_a_whole_prompt_is_never_taken_from_the_cache() -> None:
    prefixes = cache(1000)
    tokens = prompt(64)
    prefixes.keep(tokens, saver(tokens))
    assert len(found(prefixes, tokens)) == 32
    assert not prefixes.find(tokens[:32])


def test_what_was_used_longest_ago_leaves_first_and_the_bound_holds() -> None:
    prefixes = cache(4 * 64)
    kept = [prompt(64, seed) for seed in range(4)]
    for tokens in kept:
        prefixes.keep(tokens, saver(tokens))
    assert prefixes.find(np.append(kept[0], [5, 5]))  # used: now the second leaves first
    prefixes.keep(prompt(70, 9), saver(prompt(70, 9)))
    assert [len(found(prefixes, np.append(tokens, [5, 5]))) for tokens in kept] == [64, 0, 64, 64]
    assert prefixes.num_bytes == 4 * 64 * 10


def test_what_a_longer_sequence_holds_is_not_kept_twice() -> None:
    prefixes = cache(1000)
    tokens = prompt(128)
    prefixes.keep(tokens[:64], saver(tokens))
    prefixes.keep(tokens, saver(tokens))
    assert prefixes.num_bytes == 1280
    prefixes.keep(tokens[:96], saver(tokens))
    assert prefixes.num_bytes == 1280
    np.testing.assert_array_equal(found(prefixes, np.append(tokens[:96], [5, 5])), tokens[:96])


def test_what_many_share_is_kept_once() -> None:
    prefixes = cache(100_000)
    system = prompt(300)
    whole = [np.concatenate([system, prompt(70, tail)]) for tail in range(1, 101)]
    for tokens in whole:
        prefixes.keep(tokens, saver(tokens))
    assert prefixes.num_bytes == (352 + 99 * 64) * 10, "288 tokens are all of them's"
    for tokens in whole:
        np.testing.assert_array_equal(found(prefixes, tokens), tokens[:352])
    turns = [np.concatenate([tokens, prompt(90, tail)]) for tail, tokens in enumerate(whole)]
    for tokens in turns[:10]:
        prefixes.keep(tokens, saver(tokens))
        np.testing.assert_array_equal(found(prefixes, np.append(tokens, [5, 5])), tokens[:448])


def test_what_others_follow_stays_as_long_as_they_do() -> None:
    prefixes = cache(10 * BLOCK)
    system = prompt(4 * BLOCK)
    whole = [np.concatenate([system, prompt(2 * BLOCK, tail)]) for tail in range(1, 9)]
    for tokens in whole:
        prefixes.keep(tokens, saver(tokens))
        assert prefixes.num_bytes <= 10 * BLOCK * 10
    # The first piece is the system prompt with its first tail; room is left for two more tails, the newest.
    lengths = [len(found(prefixes, np.append(tokens, [5, 5]))) // BLOCK for tokens in whole]
    assert lengths == [6, 4, 4, 4, 4, 4, 6, 6]


def test_one_that_would_not_fit_behind_what_it_follows_is_kept_alone() -> None:
    prefixes = cache(10 * BLOCK)
    first = prompt(9 * BLOCK)
    second = np.concatenate([first[:BLOCK], prompt(7 * BLOCK, 1)])
    prefixes.keep(first, saver(first))
    prefixes.keep(second, saver(second))
    assert prefixes.num_bytes == 8 * BLOCK * 10
    np.testing.assert_array_equal(found(prefixes, np.append(second, [5, 5])), second)


def test_any_order_of_keeping_and_finding_holds_the_bound_and_finds_what_was_kept() -> None:
    random = np.random.default_rng(4)
    prefixes = cache(40 * BLOCK)
    texts = [prompt(5 * BLOCK, seed) for seed in range(6)]
    for _ in range(3000):
        pieces = [texts[place][: int(random.integers(1, 6)) * BLOCK - int(random.integers(0, 9))]
                  for place in random.integers(0, len(texts), int(random.integers(1, 4)))]  # fmt: skip
        tokens = np.concatenate(pieces)
        if random.random() < 0.5:
            prefixes.keep(tokens, saver(tokens))
            length = min(len(tokens), 40 * BLOCK) // BLOCK * BLOCK
            assert len(found(prefixes, np.append(tokens, [5, 5]))) >= length
        held = found(prefixes, tokens)
        np.testing.assert_array_equal(held, tokens[: len(held)])
        assert prefixes.num_bytes <= 40 * BLOCK * 10
    assert prefixes.num_bytes > 20 * BLOCK * 10


def test_a_sequence_larger_than_the_cache_is_kept_as_far_as_it_goes() -> None:
    prefixes = cache(70)
    tokens = prompt(200)
    prefixes.keep(tokens, saver(tokens))
    assert prefixes.num_bytes == 640
    assert len(found(prefixes, tokens)) == 64


def test_a_cache_without_memory_keeps_nothing() -> None:
    prefixes = cache(0)
    tokens = prompt(200)
    prefixes.keep(tokens, saver(tokens))
    assert len(prefixes) == 0
    assert not prefixes.find(tokens)


def test_keys_that_collide_are_told_apart_by_their_tokens(monkeypatch: object) -> None:
    from headrace_server.serving.decoder import prefix_cache

    def same(tokens: Tokens) -> list[int]:
        return list(range(len(tokens) // BLOCK))

    monkeypatch.setattr(prefix_cache, "_keys", same)  # type: ignore[attr-defined]
    prefixes = cache(1000)
    kept, other = prompt(64), prompt(65, 1)
    prefixes.keep(kept, saver(kept))
    assert not prefixes.find(other)
    prefixes.keep(other, saver(other))
    np.testing.assert_array_equal(found(prefixes, np.append(kept, [3, 3])), kept)
    np.testing.assert_array_equal(found(prefixes, np.append(other[:64], [3, 3])), other[:64])


# in a decoder


def test_a_shared_system_prompt_is_computed_once() -> None:
    stepped = Stepped()
    system = prompt(100)
    first = stepped.submit(ask(np.concatenate([system, prompt(20, 1)]), 6))
    stepped.finish()
    second = stepped.submit(ask(np.concatenate([system, prompt(30, 2)]), 6))
    report = stepped.step()
    stepped.finish()
    assert first.end.times.num_cached_tokens == 0
    assert second.end.times.num_cached_tokens == 96
    assert (report.num_prefix_hits, report.num_prefix_tokens, report.num_prefill_tokens) == (1, 96, 34)
    assert second.tokens == greedy(np.concatenate([system, prompt(30, 2)]), 6)
    stepped.check_empty()


def test_a_conversation_goes_on_from_its_own_last_answer() -> None:
    stepped = Stepped()
    opening = prompt(40)
    first = stepped.submit(ask(opening, 60))
    stepped.finish()
    history = np.concatenate([opening, first.tokens, prompt(9, 3)])
    second = stepped.submit(ask(history, 6))
    stepped.finish()
    assert second.end.times.num_cached_tokens == 96
    assert second.tokens == greedy(history, 6)


def test_a_beginning_is_copied_from_who_still_runs() -> None:
    stepped = Stepped(prefix_cache_mb=0)
    system = prompt(100)
    first = stepped.submit(ask(np.concatenate([system, prompt(20, 1)]), 30))
    stepped.step(4)
    second = stepped.submit(ask(np.concatenate([system, prompt(30, 2)]), 30))
    stepped.finish()
    assert second.end.times.num_cached_tokens == 100
    assert first.tokens == greedy(np.concatenate([system, prompt(20, 1)]), 30)
    assert second.tokens == greedy(np.concatenate([system, prompt(30, 2)]), 30)
    stepped.check_empty()


def test_choices_of_one_prompt_compute_it_once() -> None:
    stepped = Stepped(SlotState(num_slots=8))
    requests = [ask(prompt(90), 8, sampling=SamplingOptions(temperature=1.0, seed=seed)) for seed in range(6)]
    callers = [stepped.submit(request) for request in requests]
    stepped.step(2)
    assert [num for _, num in stepped.state.prefilled] == [90]
    assert len(stepped.scheduler._slots.running) == 6
    stepped.finish()
    assert [caller.tokens for caller in callers] == [alone(request) for request in requests]
    assert len({tuple(caller.tokens) for caller in callers}) > 1
    assert [caller.end.times.num_cached_tokens for caller in callers] == [0] + [90] * 5
    stepped.check_empty()


def test_choices_of_a_source_text_compute_it_once() -> None:
    stepped = Stepped(SlotState(num_slots=8, encoder_decoder=True))
    requests = [ask(prompt(30), 8, sampling=SamplingOptions(temperature=1.0, seed=seed)) for seed in range(4)]
    callers = [stepped.submit(request) for request in requests]
    stepped.finish()
    assert len(stepped.state.prefilled) == 1
    assert [caller.tokens for caller in callers] == [alone(request, encoder_decoder=True) for request in requests]
    stepped.check_empty()


def test_what_a_failed_run_left_is_not_kept() -> None:
    stepped = Stepped()
    stepped.submit(ask(np.concatenate([prompt(64), [13]]), 6))
    stepped.finish()
    assert stepped.state.saved == 0


def test_what_was_computed_for_a_cancelled_caller_serves_the_next() -> None:
    stepped = Stepped(SlotState(max_length=700))
    first = stepped.submit(ask(prompt(600), 6))
    stepped.step(2)
    first.context.cancel()
    stepped.step()
    assert first.error.reason is Reason.CANCELLED
    second = stepped.submit(ask(prompt(600), 6))
    stepped.finish()
    assert second.end.times.num_cached_tokens == 512
    assert second.tokens == greedy(prompt(600), 6)


def test_the_bound_holds_with_many_different_prompts() -> None:
    stepped = Stepped(SlotState(bytes_per_token=8192), prefix_cache_mb=1)  # 128 tokens
    for seed in range(12):
        caller = stepped.submit(ask(prompt(40 + seed, seed), 5), Caller())
        report = stepped.step()
        stepped.finish()
        assert report.prefix_bytes <= 1 << 20
        assert caller.tokens == greedy(prompt(40 + seed, seed), 5)
    assert 0 < stepped.scheduler._computed.num_bytes <= 1 << 20
