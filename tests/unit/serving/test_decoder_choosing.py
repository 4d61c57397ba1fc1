"""What a request's wishes mean for its next token; what comes first is what the kernels' own tests show."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest
from decoder_callers import Stepped, alone, ask, greedy, prompt
from slot_state import VOCABULARY, logits_after

from headrace_server.errors import Reason
from headrace_server.serving.decoder.choosing import draw
from headrace_server.serving.decoder.sequence import Finish, SamplingOptions, SequenceRequest

TEN = greedy(prompt(10), 10)


class Only:
    """At each place one of some tokens; complete after the last place."""

    def __init__(self, *places: set[int]) -> None:
        self.places = list(places)
        self.taken: list[int] = []

    def allowed(self) -> npt.NDArray[np.uint32]:
        mask = np.zeros(-(-VOCABULARY // 32) * 32, np.uint8)
        mask[list(self.places[len(self.taken)])] = 1
        return np.packbits(mask, bitorder="little").view(np.uint32)

    def accept(self, token: int) -> None:
        assert token in self.places[len(self.taken)]
        self.taken.append(token)

    @property
    def complete(self) -> bool:
        return len(self.taken) == len(self.places)


def outcome(request: SequenceRequest) -> tuple[list[int], Finish | None, int | None]:
    stepped = Stepped()
    caller = stepped.submit(request)
    stepped.finish()
    stepped.check_empty()
    assert caller.end.error is None, caller.end
    return caller.tokens, caller.end.finish, caller.end.stop_token


def test_the_models_end_ends_the_text_and_is_not_told() -> None:
    assert outcome(ask(10, 10, end_ids=frozenset({TEN[4]}))) == (TEN[:4], Finish.END, None)


def test_a_stop_token_ends_the_text_is_not_told_and_is_named() -> None:
    assert outcome(ask(10, 10, stop_ids=frozenset({TEN[4], 3}))) == (TEN[:4], Finish.STOP, TEN[4])


def test_an_end_at_once_gives_an_empty_text() -> None:
    assert outcome(ask(10, 10, end_ids=frozenset({TEN[0]}))) == ([], Finish.END, None)


@pytest.mark.parametrize("kind", ["end_ids", "stop_ids"])
def test_no_end_comes_before_min_tokens(kind: str) -> None:
    tokens, _, _ = outcome(ask(10, 10, min_tokens=6, **{kind: frozenset({TEN[2], TEN[4]})}))
    assert tokens[:2] == TEN[:2]
    assert tokens[2] != TEN[2]
    assert len(tokens) >= 6
    assert not {TEN[2], TEN[4]} & set(tokens[:6])


def test_tokens_of_a_constraint_alone_come_and_its_end_ends_the_text() -> None:
    constraint = Only({40, 41}, {50}, {60, 61, 62})
    tokens, finish, _ = outcome(ask(10, 10, constraint=constraint))
    assert finish is Finish.END
    assert tokens == constraint.taken
    held = list(prompt(10))
    for token, allowed in zip(tokens, constraint.places, strict=True):
        assert token == max(sorted(allowed), key=lambda id, held=held: logits_after(np.array(held))[id])  # type: ignore[misc]
        held.append(token)


def test_an_end_that_is_all_a_constraint_allows_comes_even_before_min_tokens() -> None:
    request = ask(10, 10, constraint=Only({40}, {7}, {8}), end_ids=frozenset({7}), min_tokens=5)
    assert outcome(request) == ([40], Finish.END, None)


def test_a_constraint_that_allows_nothing_ends_its_sequence_with_an_error() -> None:
    stepped = Stepped()
    caller = stepped.submit(ask(10, 10, constraint=Only({40}, set())))
    stepped.finish()
    assert caller.error.reason is Reason.INTERNAL
    assert "no token may come next" in caller.error.message


def test_a_bias_of_minus_one_hundred_forbids_a_token_and_a_high_one_forces_it() -> None:
    tokens, _, _ = outcome(ask(10, 10, sampling=SamplingOptions(logit_bias={TEN[0]: -100.0})))
    assert TEN[0] not in tokens
    assert outcome(ask(10, 5, sampling=SamplingOptions(logit_bias={33: 90.0})))[0] == [33] * 5


def test_penalties_count_what_was_generated_token_by_token() -> None:
    forced = {33: 40.0, 34: 36.0}  # without a penalty 33 always comes
    penalised = SamplingOptions(logit_bias=forced, frequency_penalty=2.0)
    tokens = outcome(ask(10, 40, sampling=penalised))[0]
    counts = Counter(tokens)
    assert 33 in counts
    assert 34 in counts
    assert abs(counts[33] - counts[34]) <= 5  # the counts keep the two in balance
    present = outcome(ask(10, 40, sampling=SamplingOptions(logit_bias=forced, presence_penalty=2.0)))[0]
    assert Counter(present)[33] > 30
    assert outcome(ask(np.array([33, 35]), 3, sampling=SamplingOptions(logit_bias=forced)))[0] == [33] * 3
    seen = SamplingOptions(logit_bias=forced, repetition_penalty=2.0)
    assert outcome(ask(np.array([33, 35]), 1, sampling=seen))[0] == [34]  # the prompt was seen, too


def test_a_seed_decides_and_another_seed_decides_otherwise() -> None:
    requests = [ask(10, 20, sampling=SamplingOptions(temperature=1.0, seed=seed)) for seed in (1, 1, 2)]
    first, again, other = [alone(request) for request in requests]
    assert first == again
    assert first != other


def test_draws_are_spread_evenly_over_tokens_and_over_neighbouring_seeds() -> None:
    for draws in ([draw(5, index) for index in range(20_000)], [draw(seed, 0) for seed in range(20_000)]):
        counts, _ = np.histogram(draws, bins=20, range=(0, 1))
        assert abs(counts - 1000).max() < 150  # five standard deviations
        assert 0 <= min(draws) <= max(draws) < 1
    crossed = np.corrcoef([draw(1, index) for index in range(20_000)], [draw(2, index) for index in range(20_000)])
    assert abs(crossed[0, 1]) < 0.04
    assert draw(2**64 - 1, 5) != draw(0, 5)


def test_logprobs_are_those_of_the_models_own_distribution() -> None:
    stepped = Stepped()
    sampling = SamplingOptions(logit_bias={33: 90.0}, temperature=0.5)
    caller = stepped.submit(ask(10, 3, sampling=sampling, logprobs=True, top_logprobs=4))
    plain = stepped.submit(ask(10, 3))
    stepped.finish()
    logits = logits_after(prompt(10)).astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum())
    (first, *_) = caller.told
    assert first.id == 33
    assert first.logprob == pytest.approx(logprobs[33], abs=1e-4)
    assert list(first.top_ids) == np.argsort(-logits)[:4].tolist()
    assert first.top_logprobs == pytest.approx(np.sort(logprobs)[::-1][:4], abs=1e-4)
    assert plain.told[0].logprob is None
    assert plain.told[0].top_ids == ()


def test_one_rows_refused_parameter_ends_that_row_alone() -> None:
    stepped = Stepped()
    good = stepped.submit(ask(10, 5))
    bad = stepped.submit(ask(10, 5, sampling=SamplingOptions(temperature=1.0, top_p=7.0)))
    stepped.finish()
    assert bad.error.reason is Reason.INTERNAL
    assert good.tokens == TEN[:5]
    stepped.check_empty()
