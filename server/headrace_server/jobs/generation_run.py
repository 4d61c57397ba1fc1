"""GenerationRun: one request's choices on their way through the decoder, told to one listener as one generation."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter_ns
from typing import TYPE_CHECKING

from headrace_server.errors import Reason, ServingError, as_serving_error
from headrace_server.jobs.generation_queries import (
    FinishReason,
    GeneratedToken,
    GenerateQuery,
    GenerationDelta,
    GenerationSummary,
    TokenLogprob,
)
from headrace_server.jobs.queries import ModelRef
from headrace_server.jobs.text_assembly import TextAssembly
from headrace_server.models.generator import Generator
from headrace_server.models.model import Model
from headrace_server.serving.context import RequestContext, Timings
from headrace_server.serving.decoder.decoder import Decoder
from headrace_server.serving.decoder.sequence import ChosenToken, End, Finish, SequenceRequest, SequenceTimes
from headrace_server.serving.fault import ended_as

if TYPE_CHECKING:
    from headrace_server.jobs.generate import GenerationListener

__all__ = ["GenerationRun"]

_REASONS = {Finish.END: FinishReason.END, Finish.STOP: FinishReason.STOP, Finish.LENGTH: FinishReason.LENGTH}


class GenerationRun:
    """The choices of one request. The decoder's thread drives it.

    The first error ends the generation: the other choices are cancelled, and the listener hears of that error alone,
    once every choice has left its slot.

    echoed     text to be put before each choice
    when_over  called once, before the listener's last word: the times, the choices, why it failed (None: it did not)
    """

    def __init__(
        self,
        query: GenerateQuery,
        *,
        generator: Generator,
        prompt: Sequence[int],
        echoed: str,
        seed: int,
        model: Model,
        context: RequestContext,
        listener: GenerationListener,
        when_over: Callable[[Timings, int, Reason | None], None],
    ) -> None:
        self._query = query
        self._generator = generator
        self._prompt = prompt
        self.echoed = echoed
        self._seed = seed
        self._model = model
        self._context = context
        self._listener = listener
        self._when_over = when_over
        # Cancelling one's own choices is not the caller's giving up.
        self._inner = RequestContext(
            deadline=context.deadline, request_id=context.request_id, trace=context.timings.trace
        )
        context.on_cancel(self._inner.cancel)
        self._lock = threading.Lock()
        self._num_left = self._num_choices = 0
        self._error: ServingError | None = None
        self._times: list[SequenceTimes] = []
        self._waited_ns = 0  # before its choices were submitted

    def start(self, decoder: Decoder, requests: Sequence[SequenceRequest]) -> None:
        """Submits every choice. What is refused fails the whole."""
        self._num_left = self._num_choices = len(requests)
        self._waited_ns = self._context.timings.queue_ns
        for index, request in enumerate(requests):
            try:
                decoder.submit(request, self._inner, _Choice(self, index, request))
            except BaseException as error:
                self._fail(as_serving_error(error))
                self._leave(len(requests) - index)
                return

    def tell(self, delta: GenerationDelta) -> None:
        """A piece of a choice, unless the generation has failed."""
        if self._error is None:
            self._listener.on_delta(delta)

    def ended(self, end: End) -> None:
        """A choice is over."""
        if end.error is not None:
            self._fail(end.error)
        self._times.append(end.times)
        self._leave(1)

    def assembly(self, choice: int, request: SequenceRequest) -> TextAssembly:
        """The text of a choice, about to begin."""
        query = self._query
        detokenizer = self._generator.detokenizer(
            () if self._generator.spec.encoder is not None else self._prompt,
            keep_special_tokens=query.keep_special_tokens,
        )
        return TextAssembly(choice, detokenizer, query.stop, min_tokens=request.min_tokens)

    def named(self, token: ChosenToken) -> GeneratedToken:
        """The token with its text."""
        text = self._generator.token_text
        return GeneratedToken(
            token.id,
            text(token.id),
            token.logprob,
            tuple(
                TokenLogprob(number, text(number), logprob)
                for number, logprob in zip(token.top_ids, token.top_logprobs, strict=True)
            ),
        )

    def token_text(self, token: int | None) -> str:
        """The text of a stop token; "" where there is none."""
        return "" if token is None else self._generator.token_text(token)

    def _fail(self, error: ServingError) -> None:
        with self._lock:
            first, self._error = self._error is None, self._error or error
        if first:
            self._inner.cancel()

    def _leave(self, count: int) -> None:
        with self._lock:
            self._num_left -= count
            if self._num_left:
                return
        try:
            self._note_times()
        finally:
            failure = None if self._error is None else ended_as(self._error.reason, self._context)
            self._when_over(self._context.timings, self._num_choices, failure)
        if self._error is not None:
            self._listener.on_error(self._error)
        else:
            self._listener.on_done(self._summary())

    def _note_times(self) -> None:
        """Adds up the choice that ended last."""
        if not self._times:
            return
        timings, last = self._context.timings, self._times[-1]
        started = last.submitted_ns + last.queue_ns
        first_token = started + last.prefill_ns
        last_token = first_token + last.decode_ns
        timings.waited(last.submitted_ns, started)
        timings.batch_size = len(self._times)
        if not last.prefill_ns:
            return
        timings.inferred(started, first_token, "prefill")
        if timings.trace is not None:
            timings.trace.event("first token", first_token)
        timings.inferred(first_token, last_token, "decode")
        timings.finished(last_token, perf_counter_ns())

    def _summary(self) -> GenerationSummary:
        first = min(self._times, key=lambda times: times.queue_ns + times.prefill_ns)
        later = [times for times in self._times if times.num_tokens > 1]
        steps = sum(times.num_tokens - 1 for times in later)
        return GenerationSummary(
            num_prompt_tokens=len(self._prompt),
            num_cached_tokens=first.num_cached_tokens,
            num_generated_tokens=sum(times.num_tokens for times in self._times),
            queue_ns=self._waited_ns + first.queue_ns,
            first_token_ns=self._waited_ns + first.queue_ns + first.prefill_ns,
            per_token_ns=sum(times.decode_ns for times in later) // steps if steps else 0,
            seed=self._seed,
            model=ModelRef(self._model.name, self._model.version),
        )


class _Choice:
    """The decoder's listener for one choice."""

    __slots__ = ("_assembly", "_index", "_run")

    def __init__(self, run: GenerationRun, index: int, request: SequenceRequest) -> None:
        self._run = run
        self._index = index
        self._assembly = run.assembly(index, request)
        if run.echoed:
            run.tell(GenerationDelta(index, run.echoed))

    def on_token(self, token: ChosenToken) -> bool:
        delta = self._assembly.add(self._run.named(token))
        if delta is not None:
            self._run.tell(delta)
        return not self._assembly.match

    def on_end(self, end: End) -> None:
        if end.finish is not None and end.error is None:
            match = self._run.token_text(end.stop_token)
            self._run.tell(replace(self._assembly.end(_REASONS[end.finish], match), score=end.score))
        self._run.ended(end)
