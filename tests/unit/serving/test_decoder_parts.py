"""How a prompt is cut into runs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headrace_server.serving.decoder.scheduler import part_of_prompt


@given(st.integers(2, 2000), st.lists(st.integers(1, 256), min_size=1, max_size=50))
def test_no_part_is_a_single_token_and_the_parts_are_the_prompt(length: int, budgets: list[int]) -> None:
    left, parts = length, []
    while left:
        budget = budgets[len(parts) % len(budgets)]
        part = part_of_prompt(left, budget)
        assert 2 <= part <= max(3, budget)
        parts.append(part)
        left -= part
    assert sum(parts) == length


def test_a_prompt_of_one_token_is_one_part() -> None:
    assert part_of_prompt(1, 256) == 1
