"""Scheduler: one step of generation after the other; decides who advances.

    step   retire   who was cancelled or has expired leaves: its slot is free for this step
           admit    the first of the waiting gets a slot; what is known of its prompt is copied, not computed
           prefill  a part of one prompt is read, within a budget of tokens a step while others generate
           decode   everyone who runs advances by one token, in one run
           choose   the next token of each; its listener is told; it goes on or ends

Who begins has its first token before the step's decode run and takes part in it. A prompt is read alone, in slot n
behind the running ones; short ones share a step's budget, and a long one takes as many steps as it needs. Choices of
one prompt, submitted together, compute it once (`ComputedPrompts`).

Fate. A run that fails takes with it the sequence that made it fail: a prefill its own, a decode step the row without
which it succeeds. Faults of a listener, a constraint or a row of logits end their own sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns

import numpy as np

from headrace_server.config import DecoderPolicy
from headrace_server.engines.decode import DecodeState, Logits, Tokens
from headrace_server.errors import Reason, ServingError, as_serving_error
from headrace_server.serving.decoder.beams import BeamSearch
from headrace_server.serving.decoder.choosing import choose_tokens
from headrace_server.serving.decoder.computed_prompts import ComputedPrompts
from headrace_server.serving.decoder.live_sequence import LiveSequence
from headrace_server.serving.decoder.observer import StepReport
from headrace_server.serving.decoder.sequence import Finish
from headrace_server.serving.decoder.slots import Row, Slots
from headrace_server.serving.decoder.waiting import WaitingQueue

__all__ = ["LONE_CHUNK", "Scheduler", "part_of_prompt"]

LONE_CHUNK = 256  # prompt tokens a run while nobody generates: longer runs gain nothing, and cancels wait for them
_LEAST_COST = 16  # tokens of budget that the shortest run costs: it reads all weights whatever its length
_FAILED = "the text could not be generated"
# These are said of the engine, not of a row: trying the rows apart would only say them again.
_NOT_A_ROWS_FAULT = frozenset({Reason.SHUTTING_DOWN, Reason.DEVICE_UNAVAILABLE, Reason.MODEL_FAILED})

_Row = Row[LiveSequence]


def part_of_prompt(left: int, budget: int) -> int:
    """Tokens of the `left` ones to read now: no run is of a single one, where that can be helped.

    Engines compute one token by other means than several, and differ in the last bits: a prompt's answer would depend
    on how it was cut.
    """
    size = min(left, max(budget, 2))
    if left - size != 1:
        return size
    return size - 1 if size > 2 else left


class Scheduler:
    """The sequences in slots. One thread uses it; `num_active` may be read by any.

    waiting   whence it takes the next
    clock     seconds, the clock of `RequestContext.deadline`
    """

    def __init__(
        self, state: DecodeState, policy: DecoderPolicy, waiting: WaitingQueue, clock: Callable[[], float]
    ) -> None:
        info = state.decode_info
        self._state = state
        self._info = info
        self._num_threads = state.info.num_threads
        self._chunk = policy.prefill_chunk
        self._waiting = waiting
        self._clock = clock
        self._slots: Slots[LiveSequence] = Slots(state)
        self._computed = ComputedPrompts(state, self._slots, cache_bytes=policy.prefix_cache_mb << 20)
        self._live: list[LiveSequence] = []
        self._searches: dict[LiveSequence, BeamSearch] = {}
        self._report = StepReport()

    @property
    def num_active(self) -> int:
        """Sequences that have slots."""
        return len(self._live)

    def step(self) -> StepReport:
        """Advances everyone who may; what happened. Raises only for what no single sequence is to blame for."""
        began = perf_counter_ns()
        self._report = StepReport()
        self._retire()
        budget = self._chunk if self._slots.running else LONE_CHUNK
        while budget > 0 and (row := self._slots.prefilling or self._admit()) is not None:
            budget -= self._prefill(row, budget)
        self._decode()
        return self._reported(began)

    def fail_all(self, error: Callable[[], ServingError]) -> None:
        """Ends everyone who has a slot; the slots are empty, and nothing of what they held is kept."""
        live, self._live = self._live, []
        self._searches.clear()
        self._computed.clear()
        try:
            self._slots.clear()
        finally:
            for sequence in live:
                sequence.rows.clear()
                sequence.end(error=error())

    # retire

    def _retire(self) -> None:
        now = self._clock()
        for sequence in self._waiting.drop_gone(now):
            sequence.end(error=sequence.farewell())
        for sequence in [sequence for sequence in self._live if sequence.gone(now)]:
            self._leave(sequence, error=sequence.farewell())

    # admit

    def _admit(self) -> _Row | None:
        """The row of the next sequence that has a prompt to read; those that need not read theirs run at once."""
        reserved = sum(sequence.num_slots - len(sequence.rows) for sequence in self._searches)
        while (sequence := self._waiting.take(self._slots.num_free - reserved)) is not None:
            if sequence.gone(self._clock()):
                sequence.end(error=sequence.farewell())
                continue
            self._live.append(sequence)
            try:
                if not self._run_at_once(sequence):
                    row = self._slots.open(sequence)
                    sequence.rows.append(row)
                    self._start(sequence, self._computed.fill(row))
                    return row
            except Exception as exc:
                self._fail(sequence, exc)
        return None

    def _run_at_once(self, sequence: LiveSequence) -> bool:
        """Whether its whole prompt was computed for another, so that it has its first token now."""
        forked = self._computed.fork(sequence) if sequence.num_slots == 1 else None
        if forked is None:
            return False
        row, logits = forked
        sequence.rows.append(row)
        self._start(sequence, len(sequence.request.prompt))
        self._choose([row], logits[None])
        return True

    def _start(self, sequence: LiveSequence, num_cached: int) -> None:
        sequence.start(num_cached)
        if num_cached:
            self._report.num_prefix_hits += 1
            self._report.num_prefix_tokens += num_cached

    # prefill

    def _prefill(self, row: _Row, budget: int) -> int:
        """Reads on in the row's prompt, `budget` tokens at most; what that cost of the budget."""
        sequence = row.owner
        prompt = sequence.request.prompt
        start = sequence.num_prefilled
        tokens = prompt[start : start + part_of_prompt(len(prompt) - start, budget)] if self._info.chunked else prompt
        try:
            logits = self._state.prefill(row.slot, tokens)
            sequence.num_prefilled = start + len(tokens)
            self._report.num_prefill_tokens += len(tokens)
            if sequence.num_prefilled == len(prompt):
                self._begin(row, logits.copy())  # a copy: moving rows may overwrite the engine's own
        except Exception as exc:
            self._fail(sequence, exc)
        return max(len(tokens), _LEAST_COST)

    def _begin(self, row: _Row, logits: Logits) -> None:
        """The prompt is read: the row runs, and its first token is chosen."""
        sequence = row.owner
        self._slots.run(row)
        if sequence.num_slots > 1:
            self._searches[sequence] = BeamSearch(sequence.request, sequence.max_tokens)
            self._extend(sequence, logits[None])
        else:
            self._computed.note_read(row, logits)
            self._choose([row], logits[None])

    # decode

    def _decode(self) -> None:
        """Advances every running row by its pending token, and chooses the next ones."""
        rows = list(self._slots.running)
        if not rows:
            return
        tokens = np.fromiter((row.pending for row in rows), np.int64, len(rows))
        logits, num_done, error = self._run(tokens)
        self._report.num_decode_tokens += num_done
        if logits is not None:
            if self._searches:
                self._choose_with_beams(rows[:num_done], logits)
            else:
                self._choose(rows[:num_done], logits)
        if error is not None:
            self._blame(error, rows, num_done)

    def _run(self, tokens: Tokens) -> tuple[Logits | None, int, ServingError | None]:
        """Logits of as many rows, from the first on, as can be computed; how many; the error of the row after them."""
        error: ServingError | None = None
        num_rows = len(tokens)
        while num_rows and (error is None or error.reason not in _NOT_A_ROWS_FAULT):
            try:
                return self._state.decode(tokens[:num_rows]), num_rows, error
            except Exception as exc:
                error = as_serving_error(exc, _FAILED)
                num_rows -= 1
        return None, num_rows, error

    def _blame(self, error: ServingError, rows: Sequence[_Row], num_done: int) -> None:
        """Ends the sequence without whose row the run succeeded; everyone where the engine itself is at fault.

        The rows behind it were not computed: their tokens are still pending, and they go on in the next step. But a
        beam search cannot, of which a part was computed.
        """
        if error.reason in _NOT_A_ROWS_FAULT:
            failed = {row.owner for row in rows}
        else:
            computed = {row.owner for row in rows[:num_done]}
            failed = {rows[num_done].owner, *(row.owner for row in rows[num_done:] if row.owner in computed)}
        for sequence in failed:
            self._fail(sequence, error)

    # choose

    def _choose(self, rows: Sequence[_Row], logits: Logits) -> None:
        """The next token of each row, told and acted upon."""
        sequences = [row.owner for row in rows]
        for row, token in zip(rows, choose_tokens(logits, sequences, num_threads=self._num_threads), strict=True):
            sequence = row.owner
            if isinstance(token, ServingError):
                self._fail(sequence, token)
                continue
            self._note_token(sequence)
            try:
                finish = sequence.take(token)
            except Exception as exc:
                self._fail(sequence, exc)
                continue
            if finish is None:
                row.pending = token.id
            else:
                self._leave(sequence, finish=finish)

    def _choose_with_beams(self, rows: Sequence[_Row], logits: Logits) -> None:
        logits = logits.copy()  # beams are copied between slots before all rows have been looked at
        place = {id(row): index for index, row in enumerate(rows)}
        searches = [sequence for sequence in self._searches if all(id(row) in place for row in sequence.rows)]
        plain = [index for index, row in enumerate(rows) if row.owner not in self._searches]
        parts = [(sequence, logits[[place[id(row)] for row in sequence.rows]]) for sequence in searches]
        if plain:
            self._choose([rows[index] for index in plain], logits[plain])
        for sequence, part in parts:
            try:
                self._extend(sequence, part)
            except Exception as exc:
                self._fail(sequence, exc)

    def _extend(self, sequence: LiveSequence, logits: Logits) -> None:
        """One step of a beam search: each beam's row holds what the beam extends, and its new token is pending."""
        search = self._searches[sequence]
        beams = search.advance(logits)
        self._note_token(sequence)
        if not beams:
            self._tell_best(sequence, search)
            return
        sequence.rows = self._slots.rearrange(sequence.rows, [parent for parent, _ in beams])
        for row, (_, token) in zip(sequence.rows, beams, strict=True):
            row.pending = token

    def _tell_best(self, sequence: LiveSequence, search: BeamSearch) -> None:
        best = search.best
        finish, sequence.stop_token = best.finish, best.stop_token
        for token in best.tokens:
            ended = sequence.take(token)
            if ended is Finish.STOP:
                finish = ended
                break
        self._leave(sequence, finish=finish, score=best.score)

    # the end of a sequence

    def _leave(
        self,
        sequence: LiveSequence,
        *,
        finish: Finish | None = None,
        error: ServingError | None = None,
        score: float | None = None,
    ) -> None:
        """Frees its slots, keeps what they hold for later prompts, and tells its listener the end."""
        self._computed.keep(sequence)
        self._release(sequence)
        sequence.end(finish, error, score)

    def _fail(self, sequence: LiveSequence, exc: Exception) -> None:
        """Frees its slots, which may hold anything now, and tells its listener the error."""
        self._release(sequence)
        sequence.end(error=as_serving_error(exc, _FAILED))

    def _release(self, sequence: LiveSequence) -> None:
        for row in sequence.rows:
            self._computed.forget(row)
            self._slots.release(row)
        sequence.rows = []
        self._searches.pop(sequence, None)
        self._live.remove(sequence)

    # what is reported

    def _note_token(self, sequence: LiveSequence) -> None:
        now, before = perf_counter_ns(), sequence.last_token_ns
        sequence.note_time(now)
        if before:
            self._report.token_gap_s.append((now - before) * 1e-9)
        else:
            self._report.first_token_s.append((now - sequence.submitted_ns) * 1e-9)

    def _reported(self, began: int) -> StepReport:
        report = self._report
        report.num_active = len(self._live)
        report.num_waiting = len(self._waiting)
        report.num_kv_tokens = self._slots.num_tokens
        report.kv_capacity = self._info.num_slots * self._info.max_length
        report.prefix_bytes = self._computed.num_bytes
        report.seconds = (perf_counter_ns() - began) * 1e-9
        return report
