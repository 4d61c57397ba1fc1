"""TextAssembly: nothing of a stop text is given out, and everything else is, as soon as it is certain."""

from __future__ import annotations

import byte_tokenizer
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.jobs.generation_queries import FinishReason, GeneratedToken, GenerationDelta
from headrace_server.jobs.text_assembly import TextAssembly
from headrace_server.models.detokenizer import Detokenizer

TOKENIZER = byte_tokenizer.byte_tokenizer()


def run(text: str, stops: list[str], *, min_tokens: int = 0) -> tuple[list[GenerationDelta], GenerationDelta]:
    """The deltas of the text's tokens, up to a stop text, and the last one."""
    assembly = TextAssembly(0, Detokenizer(TOKENIZER), stops, min_tokens=min_tokens)
    deltas = []
    for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
        delta = assembly.add(GeneratedToken(token, ""))
        if delta is not None:
            deltas.append(delta)
        if assembly.match:
            break
    return deltas, assembly.end(FinishReason.LENGTH)


def whole(deltas: list[GenerationDelta], last: GenerationDelta) -> str:
    return "".join(delta.text for delta in (*deltas, last))


@given(st.text("abcé", max_size=30), st.lists(st.text("abcé", min_size=1, max_size=4), max_size=3))
def test_the_text_ends_before_its_first_stop_text(text: str, stops: list[str]) -> None:
    deltas, last = run(text, stops)
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    # A shorter stop text may be whole before a longer one that began earlier.
    ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
    if not found:
        assert whole(deltas, last) == text
        assert last.finish_reason is FinishReason.LENGTH
        return
    assert last.finish_reason is FinishReason.STOP
    assert last.stop_match in stops
    shown = whole(deltas, last)
    assert text.startswith(shown)
    assert not any(stop in shown for stop in stops)
    assert len(shown) + len(last.stop_match) <= max(min(ends), min(found) + max(map(len, stops)))


def test_a_stop_text_across_tokens_is_never_shown() -> None:
    deltas, last = run("one STOP two", ["STOP"])
    assert whole(deltas, last) == "one "
    assert (last.finish_reason, last.stop_match) == (FinishReason.STOP, "STOP")


def test_text_is_held_back_only_while_it_may_be_a_stop_text() -> None:
    deltas, last = run("ab-x", ["--"])
    assert [delta.text for delta in deltas] == ["a", "b", "-x"]
    assert last.text == ""


def test_what_began_like_a_stop_text_comes_at_the_end() -> None:
    deltas, last = run("done ST", ["STOP"])
    assert whole(deltas, last) == "done ST"


def test_each_token_comes_once_with_the_text_that_it_begins() -> None:
    deltas, last = run("ab--cd", ["--c"])
    letters = TOKENIZER.encode("ab", add_special_tokens=False).ids
    assert [token.id for delta in (*deltas, last) for token in delta.tokens] == letters


@pytest.mark.parametrize(("min_tokens", "text"), [(0, ""), (2, "aab")])
def test_stop_texts_do_not_count_before_min_tokens(min_tokens: int, text: str) -> None:
    deltas, last = run("aabac", ["a"], min_tokens=min_tokens)
    assert whole(deltas, last) == text
