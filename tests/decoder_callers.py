"""Callers of a decoder for tests: what each was told, a scheduler stepped by hand, and what a request gives alone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from slot_state import VOCABULARY, SlotState, logits_after

from headrace_server.config import DecoderPolicy
from headrace_server.errors import ServingError
from headrace_server.serving.context import RequestContext
from headrace_server.serving.decoder.decoder import Decoder
from headrace_server.serving.decoder.door import settle_max_tokens
from headrace_server.serving.decoder.live_sequence import LiveSequence
from headrace_server.serving.decoder.observer import StepReport
from headrace_server.serving.decoder.scheduler import Scheduler
from headrace_server.serving.decoder.sequence import ChosenToken, End, SequenceRequest
from headrace_server.serving.decoder.token_history import TokenHistory
from headrace_server.serving.decoder.waiting import WaitingQueue


class Caller:
    """A listener that remembers what it was told; may stop or fail after so many tokens."""

    def __init__(self, *, stop_after: int | None = None, fail_after: int | None = None) -> None:
        self.context = RequestContext()
        self.told: list[ChosenToken] = []
        self.ends: list[End] = []
        self.ended = threading.Event()
        self.on_told: Callable[[Caller], None] = lambda caller: None
        self._stop_after = stop_after
        self._fail_after = fail_after

    @property
    def tokens(self) -> list[int]:
        return [token.id for token in self.told]

    @property
    def end(self) -> End:
        """The one end that it was told."""
        (end,) = self.ends
        return end

    @property
    def error(self) -> ServingError:
        assert self.end.error is not None, self.end
        assert self.end.finish is None
        return self.end.error

    def on_token(self, token: ChosenToken) -> bool:
        assert not self.ends, "a token after the end"
        self.told.append(token)
        self.on_told(self)
        if len(self.told) == self._fail_after:
            raise RuntimeError("the listener failed")
        return len(self.told) != self._stop_after

    def on_end(self, end: End) -> None:
        self.ends.append(end)
        self.ended.set()

    def wait(self, timeout_s: float = 30) -> Caller:
        assert self.ended.wait(timeout_s)
        return self


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Stepped:
    """A scheduler without its thread: `step` when the test says so."""

    def __init__(self, state: SlotState | None = None, **policy: int) -> None:
        self.state = state or SlotState()
        self.policy = DecoderPolicy(**policy)
        self.clock = Clock()
        self.waiting = WaitingQueue()
        self.scheduler = Scheduler(self.state, self.policy, self.waiting, self.clock)

    def submit(self, request: SequenceRequest, caller: Caller | None = None) -> Caller:
        caller = caller or Caller()
        info = self.state.decode_info
        sequence = LiveSequence(
            request,
            caller.context,
            caller,
            max_tokens=settle_max_tokens(request, info, self.policy),
            history=TokenHistory.of(request, with_prompt=not info.encoder_decoder),
            when_ended=lambda sequence, outcome: None,
        )
        self.waiting.push(sequence, self.clock())
        caller.context.on_cancel(self.waiting.note_cancelled)
        return caller

    def step(self, num_steps: int = 1) -> StepReport:
        report = StepReport()
        for _ in range(num_steps):
            report = self.scheduler.step()
        return report

    def finish(self, limit: int = 3000) -> None:
        """Steps until nobody is left."""
        for _ in range(limit):
            if not len(self.waiting) and not self.scheduler.num_active:
                return
            self.step()
        raise AssertionError("the scheduler does not come to an end")

    def check_empty(self) -> None:
        """Nobody and nothing is left, and the state's contract was kept."""
        assert self.state.broken == []
        assert len(self.waiting) == 0
        assert self.scheduler.num_active == 0
        assert self.state.num_used == 0


def prompt(length: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """A prompt of harmless tokens."""
    return np.random.default_rng(seed).integers(20, VOCABULARY, length)


def ask(length_or_prompt: int | npt.NDArray[np.int64] = 10, max_tokens: int = 8, **wishes: object) -> SequenceRequest:
    """A request, greedy unless it wishes otherwise."""
    tokens = prompt(length_or_prompt) if isinstance(length_or_prompt, int) else length_or_prompt
    return replace(SequenceRequest(prompt=tokens, max_tokens=max_tokens), **wishes)  # type: ignore[arg-type]


def greedy(tokens: npt.NDArray[np.int64], num_tokens: int) -> list[int]:
    """What a greedy request gives, computed without any decoder."""
    held = list(tokens)
    for _ in range(num_tokens):
        held.append(int(logits_after(np.array(held)).argmax()))
    return held[len(tokens) :]


def alone(request: SequenceRequest, **state: object) -> list[int]:
    """What a request gives in a decoder of its own, without a neighbour or a cache."""
    stepped = Stepped(SlotState(num_slots=max(1, request.num_beams), **state), prefix_cache_mb=0)  # type: ignore[arg-type]
    caller = stepped.submit(request)
    stepped.finish()
    assert caller.end.error is None, caller.end
    return caller.tokens


def serving(state: SlotState, **policy: int) -> Decoder:
    """A decoder with its thread; the test closes it."""
    return Decoder(state, DecoderPolicy(**policy), name="small")
