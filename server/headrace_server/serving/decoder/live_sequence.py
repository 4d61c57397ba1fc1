"""LiveSequence: one generation between its submission and its end, as the Decoder keeps it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import perf_counter_ns

import numpy as np

from headrace_server.engines.decode import Tokens
from headrace_server.errors import Reason, ServingError
from headrace_server.serving import refusals
from headrace_server.serving.context import RequestContext
from headrace_server.serving.decoder.sequence import (
    ChosenToken,
    End,
    Finish,
    SequenceListener,
    SequenceRequest,
    SequenceTimes,
)
from headrace_server.serving.decoder.slots import Row
from headrace_server.serving.decoder.token_history import TokenHistory

__all__ = ["LiveSequence"]

logger = logging.getLogger(__name__)


class LiveSequence:
    """A request on its way. The decoder's thread drives it; `end` may come from any thread and counts once.

    max_tokens     new tokens at most, as the door settled it
    history        what its penalties need; None: it has none
    rows           its slots: none while it waits, one, or one a beam
    num_prefilled  tokens of the prompt that its slot holds
    tokens         what was told to the listener
    """

    __slots__ = (
        "_ended", "_lock", "_when_ended", "context", "first_token_ns", "history", "last_token_ns", "listener",
        "max_tokens", "num_prefilled", "request", "rows", "started_ns", "stop_token", "submitted_ns", "times", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        request: SequenceRequest,
        context: RequestContext,
        listener: SequenceListener,
        *,
        max_tokens: int,
        history: TokenHistory | None,
        when_ended: Callable[[LiveSequence, str], None],
    ) -> None:
        self.request = request
        self.context = context
        self.listener = listener
        self.max_tokens = max_tokens
        self.rows: list[Row[LiveSequence]] = []
        self.num_prefilled = 0
        self.tokens: list[int] = []
        self.stop_token: int | None = None
        self.history = history
        self.submitted_ns = perf_counter_ns()
        self.times = SequenceTimes(self.submitted_ns)
        self.started_ns = 0
        self.first_token_ns = 0
        self.last_token_ns = 0
        self._lock = threading.Lock()
        self._ended = False
        self._when_ended = when_ended

    @property
    def num_slots(self) -> int:
        """Slots that it needs."""
        return self.request.num_beams

    @property
    def num_tokens(self) -> int:
        """New tokens so far: the number of the next one's draw."""
        return len(self.tokens)

    @property
    def ended(self) -> bool:
        return self._ended

    def gone(self, now: float) -> bool:
        """Nobody waits for it: cancelled, expired, or ended from elsewhere."""
        context = self.context
        return context.cancelled or self._ended or (context.deadline is not None and context.deadline <= now)

    def farewell(self) -> ServingError:
        """The error of one that is gone."""
        if self.context.cancelled:
            return refusals.cancelled()
        if not self.started_ns:
            return refusals.deadline_passed()
        return ServingError(
            Reason.DEADLINE_EXCEEDED,
            f"the deadline passed after {self.num_tokens} of at most {self.max_tokens} tokens",
            num_tokens=self.num_tokens,
        )

    def held_tokens(self, length: int) -> Tokens:
        """The first `length` tokens of prompt and new text: what its slot holds."""
        prompt = self.request.prompt
        if length <= len(prompt):
            return prompt[:length]
        return np.concatenate([prompt, np.asarray(self.tokens[: length - len(prompt)], np.int64)])

    def start(self, num_cached: int) -> None:
        """It has a slot, which holds `num_cached` tokens of the prompt already."""
        self.num_prefilled = num_cached
        self.times.num_cached_tokens = num_cached
        self.started_ns = perf_counter_ns()
        self.times.queue_ns = self.started_ns - self.submitted_ns

    def note_time(self, now_ns: int) -> None:
        """A token came at `now_ns`."""
        if not self.first_token_ns:
            self.first_token_ns = now_ns
            self.times.prefill_ns = now_ns - self.started_ns
        self.last_token_ns = now_ns
        self.times.decode_ns = now_ns - self.first_token_ns

    def take(self, token: ChosenToken) -> Finish | None:
        """Tells the listener of a token, unless it ends the text; why the sequence ends with it, None: it goes on.

        Raises what listener and constraint raise.
        """
        request = self.request
        if token.id in request.end_ids:
            return Finish.END
        if token.id in request.stop_ids:
            self.stop_token = token.id
            return Finish.STOP
        self.tokens.append(token.id)
        self.times.num_tokens = len(self.tokens)
        if self.history is not None:
            self.history.add(token.id)
        constraint = request.constraint
        if constraint is not None:
            constraint.accept(token.id)
        if not self.listener.on_token(token):
            return Finish.STOP
        if constraint is not None and constraint.complete:
            return Finish.END
        return Finish.LENGTH if len(self.tokens) >= self.max_tokens else None

    def end(self, finish: Finish | None = None, error: ServingError | None = None, score: float | None = None) -> bool:
        """Says the last word to the listener. False: it was said before."""
        with self._lock:
            if self._ended:
                return False
            self._ended = True
        if not self.started_ns:
            self.times.queue_ns = perf_counter_ns() - self.submitted_ns
        outcome = error.reason.value if error is not None else finish.value if finish is not None else ""
        try:
            self.listener.on_end(End(self.times, finish, self.stop_token, error, score))
        except Exception:
            logger.exception("a listener failed at the end of its sequence", extra=self.context.timings.log_fields)
        self._when_ended(self, outcome)
        return True
