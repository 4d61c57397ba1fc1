"""Generate: new text that goes on from a prompt or a chat, piece by piece or whole.

calling thread     checks ─▶ lease ─▶ template, tokens ─▶ Decoder.submit, once a choice
decoder's thread   token ─▶ text, stop texts ─▶ listener.on_delta … ─▶ on_done, or on_error
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from concurrent.futures import Future
from time import perf_counter_ns
from typing import Protocol

import numpy as np

from headrace_server.config import InputLimits
from headrace_server.errors import Reason, ServingError, as_serving_error, invalid_input
from headrace_server.jobs.checks import require_task
from headrace_server.jobs.generation_checks import check_generate
from headrace_server.jobs.generation_queries import (
    ChatPrompt,
    GeneratedText,
    GeneratedToken,
    GenerateQuery,
    GenerateResult,
    GenerationDelta,
    GenerationSummary,
)
from headrace_server.jobs.generation_run import GenerationRun
from headrace_server.jobs.leasing import Leases, when_leased
from headrace_server.models.generation import GenerationDefaults
from headrace_server.models.generator import Generator
from headrace_server.models.model import Task
from headrace_server.serving.context import RequestContext
from headrace_server.serving.decoder.sequence import SamplingOptions, SequenceRequest
from headrace_server.serving.repository import Lease
from headrace_server.serving.text_servable import TextServable

__all__ = ["Generate", "GenerationListener"]


class GenerationListener(Protocol):
    """Told of one generation, on the decoder's thread: quick, raises nothing; `on_done` or `on_error` is last."""

    def on_delta(self, delta: GenerationDelta) -> None:
        """A piece of one choice's text."""

    def on_done(self, summary: GenerationSummary) -> None:
        """Every choice has ended."""

    def on_error(self, error: ServingError) -> None:
        """It came to nothing; the deltas told before stand."""


class Generate:
    """Goes on from prompts. Thread-safe."""

    def __init__(self, versions: Leases, limits: InputLimits) -> None:
        self._versions = versions
        self._limits = limits

    def submit(self, query: GenerateQuery, context: RequestContext) -> Future[GenerateResult]:
        """Future of the whole text. Prepares here, blocking; answers on the decoder's thread.

        The future's exceptions are ServingError, as `stream` names them.
        """
        whole = _Whole(query.logprobs or query.top_logprobs > 0)
        self.stream(query, context, whole)
        return whole.future

    def stream(self, query: GenerateQuery, context: RequestContext, listener: GenerationListener) -> None:
        """Begins a generation; the listener is told of it, of refusals too, perhaps before this returns.

        errors  INVALID_INPUT naming the field; MODEL_NOT_FOUND, WRONG_TASK, …; QUEUE_FULL, DEADLINE_EXCEEDED,
                CANCELLED, SHUTTING_DOWN
        """
        try:
            check_generate(query, self._limits)
        except ServingError as error:
            listener.on_error(error)
            return
        when_leased(
            self._versions,
            query.model,
            context,
            lambda lease: self._begin(lease, query, context, listener),
            listener.on_error,
        )

    def _begin(self, lease: Lease, query: GenerateQuery, context: RequestContext, listener: GenerationListener) -> None:
        started = perf_counter_ns()
        try:
            servable = lease.servable
            require_task(servable.model, Task.GENERATE)
            assert isinstance(servable, TextServable), "the task is that of models that generate text"
            text, prompt = _prompt(query, servable.generator)
            seed = query.sampling.seed
            seed = secrets.randbits(63) if seed is None else seed
            requests = _requests(query, servable.generator, prompt, seed)
            run = GenerationRun(
                query,
                generator=servable.generator,
                prompt=prompt,
                echoed=text if query.echo else "",
                seed=seed,
                model=servable.model,
                context=context,
                listener=listener,
                when_over=lease.end,
            )
            context.timings.prepared(started, perf_counter_ns(), "tokenise")
        except BaseException as error:
            lease.end(context.timings, 0, as_serving_error(error).reason)
            raise
        run.start(servable.decoder, requests)


def _prompt(query: GenerateQuery, generator: Generator) -> tuple[str, Sequence[int]]:
    """The prompt's text, where it is echoed, and its tokens."""
    given = query.prompt
    if isinstance(given, str):
        return given, generator.tokenizer.ids(given, add_special_tokens=True)
    if isinstance(given, ChatPrompt):
        if generator.chat is None:
            raise ServingError(
                Reason.WRONG_TASK, f"model {query.model.name!r} has no chat template; send a prompt instead"
            )
        return generator.chat.read(
            given.messages,
            tools=given.tools,
            values=given.template_values,
            add_generation_prompt=given.add_generation_prompt,
        )
    ids = list(given)
    limit = generator.spec.vocabulary_size
    for index, token in enumerate(ids):
        if not 0 <= token < limit:
            raise invalid_input(f"token_ids.ids[{index}]", f"{token}, the vocabulary has {limit}", limit=limit)
    text = generator.tokenizer.tokenizer.decode(ids, skip_special_tokens=False) if query.echo else ""
    return text, ids


def _requests(query: GenerateQuery, generator: Generator, prompt: Sequence[int], seed: int) -> list[SequenceRequest]:
    """One a choice; each draws by a seed of its own, counted up from the request's."""
    spec = generator.spec
    num_beams = query.num_beams or (spec.defaults.num_beams if spec.encoder is not None else 1)
    tokens = np.asarray(prompt, dtype=np.int64)
    penalty = query.sampling.length_penalty
    form = None if query.constraint is None else generator.constraints.compile(query.constraint)
    return [
        SequenceRequest(
            prompt=tokens,
            max_tokens=query.max_tokens,
            min_tokens=query.min_tokens,
            sampling=_sampling(query, spec.defaults, (seed + choice) % 2**64),
            end_ids=frozenset() if query.ignore_end else spec.end_ids,
            stop_ids=frozenset(query.stop_token_ids),
            logprobs=query.logprobs,
            top_logprobs=query.top_logprobs,
            constraint=None if form is None else form.copy(),
            priority=query.priority,
            num_beams=max(1, num_beams),
            length_penalty=spec.defaults.length_penalty if penalty is None else penalty,
        )
        for choice in range(query.num_choices or 1)
    ]


def _sampling(query: GenerateQuery, defaults: GenerationDefaults, seed: int) -> SamplingOptions:
    wishes = query.sampling

    def wish(name: str, default: float) -> float:
        value = getattr(wishes, name)
        return default if value is None else float(value)

    return SamplingOptions(
        temperature=wish("temperature", defaults.temperature),
        top_k=int(wish("top_k", defaults.top_k)),
        top_p=wish("top_p", defaults.top_p),
        min_p=wish("min_p", defaults.min_p),
        repetition_penalty=wish("repetition_penalty", defaults.repetition_penalty),
        frequency_penalty=wish("frequency_penalty", 0.0),
        presence_penalty=wish("presence_penalty", 0.0),
        logit_bias={**dict.fromkeys(defaults.forbidden, -math.inf), **wishes.logit_bias},
        seed=seed,
    )


class _Whole:
    """Gathers a generation into one result."""

    def __init__(self, keeps_tokens: bool) -> None:
        self.future: Future[GenerateResult] = Future()
        self.future.set_running_or_notify_cancel()
        self._keeps_tokens = keeps_tokens
        self._texts: dict[int, list[str]] = {}
        self._tokens: dict[int, list[GeneratedToken]] = {}
        self._ends: dict[int, GenerationDelta] = {}

    def on_delta(self, delta: GenerationDelta) -> None:
        self._texts.setdefault(delta.choice, []).append(delta.text)
        if self._keeps_tokens:
            self._tokens.setdefault(delta.choice, []).extend(delta.tokens)
        if delta.finish_reason is not None:
            self._ends[delta.choice] = delta

    def on_done(self, summary: GenerationSummary) -> None:
        choices = []
        for choice, end in sorted(self._ends.items()):
            assert end.finish_reason is not None
            choices.append(
                GeneratedText(
                    text="".join(self._texts[choice]),
                    tokens=tuple(self._tokens.get(choice, ())),
                    finish_reason=end.finish_reason,
                    stop_match=end.stop_match,
                    score=end.score,
                )
            )
        self.future.set_result(GenerateResult(tuple(choices), summary))

    def on_error(self, error: ServingError) -> None:
        self.future.set_exception(error)
