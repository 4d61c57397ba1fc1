"""Beam search against a plain one, text by text; its slots among those of others."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from decoder_callers import Caller, Stepped, alone, ask, prompt
from slot_state import START, VOCABULARY, SlotState, logits_after

from headrace_server.errors import Reason
from headrace_server.serving.decoder.beams import BeamSearch
from headrace_server.serving.decoder.sequence import Finish, SequenceRequest


def logprobs(source: bytes, text: tuple[int, ...]) -> np.ndarray:
    logits = logits_after(np.array([START, *text]), source).astype(np.float64)
    return logits - np.log(np.exp(logits).sum())


def plainly(request: SequenceRequest) -> tuple[list[int], float]:
    """The same search over texts, each computed from its beginning; its tokens and its score."""
    source, beams = request.prompt.tobytes(), request.num_beams
    running: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    finished: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, request.max_tokens + 1):
        extended = [
            (total + logprob, (*text, token))
            for total, text in running
            for token, logprob in enumerate(logprobs(source, text))
        ]
        extended.sort(key=lambda one: -one[0])
        running = [one for one in extended[: beams * 10] if one[1][-1] not in request.end_ids][:beams]
        for total, text in extended[:beams]:
            if text[-1] in request.end_ids:
                finished.append((total / length**request.length_penalty, text[:-1]))
        finished = sorted(finished, key=lambda one: -one[0])[:beams]
        if len(finished) == beams and finished[-1][0] >= running[0][0] / length**request.length_penalty:
            break
    else:
        finished += [(total / length**request.length_penalty, text) for total, text in running]
    score, text = max(finished, key=lambda one: one[0])
    return list(text), score


def likely_ends(seed: int) -> frozenset[int]:
    """Tokens that often come among the first, so that texts end."""
    return frozenset(range(20 + seed % 5, VOCABULARY, 9))


def stepped_for(num_slots: int = 8) -> Stepped:
    return Stepped(SlotState(num_slots=num_slots, max_length=64, encoder_decoder=True))


@pytest.mark.parametrize(("num_beams", "length_penalty"), [(2, 1.0), (3, 0.0), (4, 1.0), (5, 0.7)])
def test_the_best_text_is_that_of_a_plain_search(num_beams: int, length_penalty: float) -> None:
    finishes = set()
    for seed in range(6):
        ends = frozenset(sorted(likely_ends(seed))[:6])
        request = ask(
            prompt(9, seed), 12, end_ids=ends, num_beams=num_beams, length_penalty=length_penalty, logprobs=True
        )
        stepped = stepped_for()
        caller = stepped.submit(request)
        stepped.finish()
        tokens, score = plainly(request)
        assert caller.tokens == tokens
        assert caller.end.score == pytest.approx(score, abs=1e-5)
        text = request.prompt.tobytes()
        for place, token in enumerate(caller.told):
            assert token.logprob == pytest.approx(logprobs(text, tuple(tokens[:place]))[token.id], abs=1e-4)
        finishes.add(caller.end.finish)
        stepped.check_empty()
    assert Finish.END in finishes


def test_as_many_beams_as_tokens_find_the_best_of_all_texts_of_two() -> None:
    num_beams = VOCABULARY - 2  # all but those that nobody says
    stepped = stepped_for(num_beams)
    caller = stepped.submit(ask(prompt(9), 2, num_beams=num_beams))
    stepped.finish()
    source = prompt(9).tobytes()
    first = logprobs(source, ())
    totals = np.stack([first[token] + logprobs(source, (token,)) for token in range(VOCABULARY)])
    assert caller.tokens == list(np.unravel_index(totals.argmax(), totals.shape))
    stepped.check_empty()


def rows(num: int, **likely: float) -> np.ndarray:
    """Logits f32[num, v] of some tokens' probabilities; the others share what is left, but for tokens below 20."""
    shares = np.full(VOCABULARY, (1 - sum(likely.values())) / 80)
    shares[:20] = 1e-9
    for name, share in likely.items():
        shares[int(name[1:])] = share
    return np.log(np.maximum(shares, 1e-9)).astype(np.float32)[None].repeat(num, axis=0)


def test_an_end_that_is_not_among_the_likeliest_of_its_step_is_no_text() -> None:
    search = BeamSearch(ask(num_beams=2, end_ids=frozenset({5, 6})), max_tokens=4)
    # The end 6 comes third. Were it a text, there would be two, and the search over before the best is found.
    assert search.advance(rows(1, t5=0.4, t30=0.3, t6=0.29, t31=0.005)) == [(0, 30), (0, 31)]
    assert search.advance(rows(2, t40=0.1)) != []
    assert search.advance(rows(2, t50=0.9999)) != []
    assert search.advance(rows(2, t50=0.9999)) == []
    assert [token.id for token in search.best.tokens] == [30, 40, 50, 50]
    assert search.best.score == pytest.approx(np.log(0.3 * 0.1) / 4, abs=1e-3)


def test_searches_and_plain_sequences_share_the_slots() -> None:
    stepped = stepped_for(7)
    requests = []
    for seed, num_beams in enumerate([3, 1, 2, 1, 4, 1, 3]):
        ends = frozenset(sorted(likely_ends(seed))[:2])
        requests.append(ask(prompt(6, seed), 5 + seed, num_beams=num_beams, end_ids=ends))
    callers = []
    for request in requests:
        callers.append(stepped.submit(request))
        stepped.step()
    stepped.finish()
    for caller, request in zip(callers, requests, strict=True):
        expected = plainly(request)[0] if request.num_beams > 1 else alone(request, encoder_decoder=True)
        assert caller.tokens == expected
    stepped.check_empty()


def test_a_search_waits_in_order_until_all_its_slots_are_free() -> None:
    stepped = stepped_for(4)
    order: list[str] = []

    def named(name: str) -> Caller:
        caller = Caller()
        caller.on_told = lambda caller: order.append(name)
        return caller

    for seed in range(2):
        stepped.submit(ask(prompt(6, seed), 10 + seed), named("plain"))
    stepped.step()
    stepped.submit(ask(prompt(6, 3), 4, num_beams=4), named("search"))
    stepped.submit(ask(prompt(6, 4), 4), named("late"))
    stepped.finish()
    assert list(dict.fromkeys(order)) == ["plain", "search", "late"]
    stepped.check_empty()


def test_a_cancelled_search_frees_all_its_slots() -> None:
    stepped = stepped_for(6)
    plain = stepped.submit(ask(prompt(6, 1), 20))
    search = stepped.submit(ask(prompt(6, 2), 20, num_beams=4))
    stepped.step(3)
    assert stepped.state.num_used == 5
    search.context.cancel()
    stepped.step()
    assert search.error.reason is Reason.CANCELLED
    assert stepped.state.num_used == 1
    stepped.finish()
    assert plain.tokens == alone(ask(prompt(6, 1), 20), encoder_decoder=True)
    stepped.check_empty()


def test_a_stop_token_ends_a_beam_and_is_named() -> None:
    request = ask(prompt(9, 1), 12, num_beams=3)
    ended_by = {}
    for stop in itertools.islice(sorted(likely_ends(1)), 4):
        stepped = stepped_for()
        caller = stepped.submit(ask(prompt(9, 1), 12, num_beams=3, stop_ids=frozenset({stop})))
        stepped.finish()
        ended_by[stop] = (caller.end.finish, caller.end.stop_token)
        stepped.check_empty()
    assert all(told in ((Finish.STOP, stop), (Finish.LENGTH, None)) for stop, told in ended_by.items())
    assert request.num_beams == 3


def test_a_listener_may_stop_the_best_text_as_it_is_told() -> None:
    stepped = stepped_for()
    caller = stepped.submit(ask(prompt(9, 1), 12, num_beams=3), Caller(stop_after=2))
    stepped.finish()
    assert caller.end.finish is Finish.STOP
    assert caller.tokens == plainly(ask(prompt(9, 1), 12, num_beams=3))[0][:2]
