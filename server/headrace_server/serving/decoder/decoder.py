"""Decoder: a model's generations, advanced together by one thread, each at its own place in its own text.

    submit ──▶ door ──▶ WaitingQueue ──▶ Scheduler.step() on the decoder's thread ──▶ listener.on_token … on_end

Fate. Whoever was admitted hears `on_end` exactly once: of its text's end, its cancellation, its deadline, an error of
its own, or of the decoder's end. A cancel or a passed deadline takes effect before the next step's run.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from headrace_server.config import DecoderPolicy
from headrace_server.engines.decode import DecodeState
from headrace_server.errors import Reason, ServingError
from headrace_server.serving import refusals
from headrace_server.serving.context import RequestContext
from headrace_server.serving.decoder import door
from headrace_server.serving.decoder.live_sequence import LiveSequence
from headrace_server.serving.decoder.observer import DecoderObserver, Observed
from headrace_server.serving.decoder.scheduler import Scheduler
from headrace_server.serving.decoder.sequence import SequenceListener, SequenceRequest
from headrace_server.serving.decoder.token_history import TokenHistory
from headrace_server.serving.decoder.waiting import WaitingQueue

__all__ = ["Decoder"]

logger = logging.getLogger(__name__)

_WEIGHT = 0.1  # of the newest sequence's time among those before


class Decoder:
    """Sequences over the slots of one DecodeState. Thread-safe.

    state      used by the decoder's thread alone; its owner closes it after `close` has said that the thread is done
    name       the model, for the thread's name, the log and the observer; `version` likewise
    clock      seconds, monotonic, the clock of `RequestContext.deadline`
    """

    def __init__(
        self,
        state: DecodeState,
        policy: DecoderPolicy,
        *,
        name: str,
        version: str = "",
        observer: DecoderObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._info = state.decode_info
        self._policy = policy
        self._name = name
        self._observed = Observed(observer, name, version)
        self._clock = clock
        self._lock = threading.Lock()
        self._work_waits = threading.Condition(self._lock)
        self._all_done = threading.Condition(self._lock)
        self._open: set[LiveSequence] = set()  # admitted, and not yet told the end
        self._admitting = True
        self._stopping = False
        self._broken = False
        self._sequence_s = 0.0  # that a sequence has its slot, lately
        self._waiting = WaitingQueue()
        self._scheduler = Scheduler(state, policy, self._waiting, clock)
        self._thread = threading.Thread(target=self._work, name=f"{name}-decoder", daemon=True)
        self._thread.start()

    @property
    def num_active(self) -> int:
        """Sequences that have slots now."""
        return self._scheduler.num_active

    @property
    def depth(self) -> int:
        """Sequences that wait for a slot now."""
        return len(self._waiting)

    def submit(self, request: SequenceRequest, context: RequestContext, listener: SequenceListener) -> None:
        """Admits a generation; the listener hears of it on the decoder's thread. Never blocks.

        Choices of one prompt are submitted one after the other; the prompt is computed once.

        raises   ServingError, and the listener hears nothing: INVALID_INPUT for what no slot can hold, QUEUE_FULL
                 (with `retry_after_s`), DEADLINE_EXCEEDED, CANCELLED, SHUTTING_DOWN, MODEL_FAILED
        """
        try:
            max_tokens = door.settle_max_tokens(request, self._info, self._policy)
            sequence = LiveSequence(
                request,
                context,
                listener,
                max_tokens=max_tokens,
                history=TokenHistory.of(request, with_prompt=not self._info.encoder_decoder),
                when_ended=self._ended,
            )
            with self._lock:
                self._enqueue(sequence)
        except ServingError as refusal:
            self._observed.refused(refusal.reason)
            raise
        context.on_cancel(self._cancelled)

    def drain(self, timeout_s: float) -> bool:
        """Refuses new requests and waits for the admitted ones. True: all have ended. False: the time was up."""
        with self._lock:
            self._admitting = False
            return self._all_done.wait_for(lambda: not self._open, timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """Refuses new requests, ends admitted ones with SHUTTING_DOWN, and its thread. True: the thread is done.

        A run that has not come back after `timeout_s` is left behind; its sequences are ended from this thread.
        """
        with self._lock:
            self._admitting = False
            self._stopping = True
            self._work_waits.notify()
        if self._thread is threading.current_thread():
            return False  # called by a listener: its step is not over yet
        self._thread.join(timeout_s)
        with self._lock:
            left = list(self._open)
        if left:
            logger.error("%s: %d generations still ran %.1f s after the stop", self._name, len(left), timeout_s)
        for sequence in left:
            sequence.end(error=refusals.shutting_down())
        return not self._thread.is_alive()

    def _enqueue(self, sequence: LiveSequence) -> None:
        """Lets a sequence wait, or raises why not. Under the lock."""
        if self._broken:
            raise ServingError(Reason.MODEL_FAILED, "the model's engine has failed")
        if not self._admitting:
            raise refusals.shutting_down()
        now = self._clock()
        door.check_context(sequence.context, now)
        waiting, limit = len(self._waiting), self._policy.max_waiting
        if waiting >= limit:
            raise door.queue_full(
                waiting=waiting, limit=limit, sequence_s=self._sequence_s, num_slots=self._info.num_slots
            )
        self._open.add(sequence)
        self._waiting.push(sequence, now)
        self._work_waits.notify()

    def _cancelled(self) -> None:
        """A request was cancelled; the thread sees which before its next run."""
        self._waiting.note_cancelled()

    # the decoder's thread

    def _work(self) -> None:
        """Steps as long as there is something to do, until the decoder stops."""
        while self._next_step():
            try:
                report = self._scheduler.step()
            except BaseException:
                logger.exception("%s: a step of the decoder failed", self._name)
                if not self._start_over():
                    break
            else:
                self._observed.step(report)
        self._finish()

    def _next_step(self) -> bool:
        """Waits for something to do. False: the decoder stops."""
        with self._lock:
            while not (self._stopping or len(self._waiting) or self._scheduler.num_active):
                self._work_waits.wait()
            return not self._stopping

    def _start_over(self) -> bool:
        """Ends everyone in a slot, and empties the slots. False: even that fails, and the decoder is of no more use."""
        try:
            self._scheduler.fail_all(_lost)
        except BaseException:
            logger.exception("%s: the engine cannot be brought back; the decoder stops", self._name)
            with self._lock:
                self._broken = True
            return False
        return True

    def _finish(self) -> None:
        """Ends everyone; nobody is admitted any more."""
        error = _lost if self._broken else refusals.shutting_down
        for sequence in self._waiting.drop_all():
            sequence.end(error=error())
        if not self._broken:
            try:
                self._scheduler.fail_all(error)
            except BaseException:
                logger.exception("%s: the slots could not be emptied", self._name)
        self._observed.closed()

    def _ended(self, sequence: LiveSequence, outcome: str) -> None:
        """A sequence's listener has heard the end."""
        with self._lock:
            if sequence.started_ns:
                seconds = (time.perf_counter_ns() - sequence.started_ns) * 1e-9
                self._sequence_s += (_WEIGHT if self._sequence_s else 1.0) * (seconds - self._sequence_s)
            self._open.discard(sequence)
            if not self._open:
                self._all_done.notify_all()
        self._observed.ended(outcome)


def _lost() -> ServingError:
    return ServingError(Reason.INTERNAL, "the text could not be generated")
