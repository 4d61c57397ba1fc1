"""TextAssembly: one choice's tokens to text, as far as it is certain: whole characters, and nothing of a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from headrace_server.jobs.generation_queries import FinishReason, GeneratedToken, GenerationDelta
from headrace_server.models.detokenizer import Detokenizer

__all__ = ["TextAssembly"]


class TextAssembly:
    """Deltas of one choice. One thread.

    Text that may be the beginning of a stop text is held back until it is certain that it is none; its tokens with it.

    min_tokens  stop texts do not count before so many tokens
    """

    __slots__ = (
        "_choice",
        "_detokenizer",
        "_held",
        "_min_tokens",
        "_num_tokens",
        "_starts",
        "_stops",
        "_tokens",
        "match",
    )

    def __init__(
        self, choice: int, detokenizer: Detokenizer, stops: Sequence[str] = (), *, min_tokens: int = 0
    ) -> None:
        self._choice = choice
        self._detokenizer = detokenizer
        self._stops = tuple(stops)
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._held = ""
        self._tokens: list[GeneratedToken] = []  # not given out yet, and where in the held text each one's begins
        self._starts: list[int] = []
        self.match = ""  # the stop text that came up

    def add(self, token: GeneratedToken) -> GenerationDelta | None:
        """The text that is certain now; None where there is none. After it `match` says whether a stop text came up."""
        self._num_tokens += 1
        self._tokens.append(token)
        self._starts.append(len(self._held))
        self._held += self._detokenizer.step(token.id)
        if self._num_tokens <= self._min_tokens:
            return self._give(len(self._held))
        if self._cut_at_stop():
            return None  # what is left comes with `end`
        return self._give(len(self._held) - _overlap(self._held, self._stops))

    def end(self, finish: FinishReason, stop_match: str = "") -> GenerationDelta:
        """The rest, and why it ended."""
        if not self.match:
            self._held += self._detokenizer.finish()
            if self._num_tokens > self._min_tokens:
                self._cut_at_stop()
        if self.match:
            finish, stop_match = FinishReason.STOP, self.match
        return GenerationDelta(self._choice, self._held, tuple(self._tokens), finish, stop_match)

    def _cut_at_stop(self) -> bool:
        """Leaves what stands before the earliest stop text; of two at one place, the longer is meant."""
        found = [(at, -len(stop), stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if not found:
            return False
        cut, _, self.match = min(found)
        kept = sum(start < cut for start in self._starts)
        self._held, self._tokens = self._held[:cut], self._tokens[:kept]
        return True

    def _give(self, length: int) -> GenerationDelta | None:
        """The first `length` characters, with the tokens whose text begins there."""
        if not length:
            return None
        count = sum(start < length for start in self._starts)
        delta = GenerationDelta(self._choice, self._held[:length], tuple(self._tokens[:count]))
        self._held = self._held[length:]
        self._tokens = self._tokens[count:]
        self._starts = [start - length for start in self._starts[count:]]
        return delta


def _overlap(text: str, stops: Sequence[str]) -> int:
    """Characters at the end of `text` that may be the beginning of a stop text."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
