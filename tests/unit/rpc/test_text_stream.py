"""What waits for a slow reader of generated text: in order, joined by choice, in pieces of a bounded size."""

from __future__ import annotations

import random

from headrace_server.jobs.generation_queries import FinishReason, GeneratedToken, GenerationDelta
from headrace_server.rpc import text_stream


def delta(choice: int, number: int, finish: FinishReason | None = None) -> GenerationDelta:
    return GenerationDelta(choice, f"{number} ", (GeneratedToken(number, f"{number} "),), finish)


def test_what_waits_is_joined_within_bounds_and_nothing_is_lost() -> None:
    chance, backlog = random.Random(4), text_stream._Backlog()
    given: dict[int, list[int]] = {0: [], 1: [], 2: []}
    taken: dict[int, list[int]] = {0: [], 1: [], 2: []}
    texts = dict.fromkeys(given, "")

    def take() -> None:
        one = backlog.take()
        assert len(one.tokens) <= text_stream._MAX_JOINED
        taken[one.choice] += [token.id for token in one.tokens]
        texts[one.choice] += one.text

    for number in range(2000):
        choice = chance.randrange(3)
        given[choice].append(number)
        backlog.add(delta(choice, number))
        if chance.random() < 0.05:
            take()
    assert len(backlog) < 100
    while backlog:
        take()
    assert taken == given
    assert texts == {choice: "".join(f"{number} " for number in numbers) for choice, numbers in given.items()}


def test_the_end_stays_the_last_of_its_choice() -> None:
    backlog = text_stream._Backlog()
    for number in range(150):
        backlog.add(delta(0, number))
    backlog.add(delta(0, 150, FinishReason.LENGTH))
    pieces = [backlog.take() for _ in range(len(backlog))]
    assert [piece.finish_reason for piece in pieces] == [None, None, FinishReason.LENGTH]
