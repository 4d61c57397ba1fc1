"""What a Decoder lets in. A refusal is immediate, names the value and the limit, and says when to come back."""

from __future__ import annotations

import numpy as np

from headrace_server.config import DecoderPolicy
from headrace_server.engines.decode import DecodeInfo
from headrace_server.errors import Reason, ServingError, invalid_input
from headrace_server.serving import refusals
from headrace_server.serving.context import RequestContext
from headrace_server.serving.decoder.sequence import SequenceRequest

__all__ = ["check_context", "queue_full", "settle_max_tokens"]

_RETRY_UNKNOWN_S = 1.0  # advice while no sequence has ended
_RETRY_RANGE_S = (0.05, 60.0)


def check_context(context: RequestContext, now: float) -> None:
    """Raises ServingError CANCELLED or DEADLINE_EXCEEDED for a request that nobody waits for."""
    if context.cancelled:
        raise refusals.cancelled()
    if context.deadline is not None and context.deadline <= now:
        raise refusals.deadline_passed()


def queue_full(*, waiting: int, limit: int, sequence_s: float, num_slots: int) -> ServingError:
    """The waiting queue has no place; one is likely free when one of the slots is.

    sequence_s   seconds that a sequence lately had a slot; 0: unknown
    """
    low, high = _RETRY_RANGE_S
    retry_after_s = min(max(sequence_s / num_slots, low), high) if sequence_s else _RETRY_UNKNOWN_S
    return ServingError(
        Reason.QUEUE_FULL,
        f"{waiting} generations are waiting for a slot, which is the limit",
        retry_after_s=retry_after_s,
        waiting=waiting,
        limit=limit,
    )


def settle_max_tokens(request: SequenceRequest, info: DecodeInfo, policy: DecoderPolicy) -> int:
    """New tokens that the request may have: what it asks for, or where it asks for 0 the default or what is left.

    Raises ServingError INVALID_INPUT for what can never fit a slot, and for what the decoder does not do.
    """
    num_prompt = len(request.prompt)
    if not num_prompt:
        raise invalid_input("prompt", "no tokens, at least 1 is needed")
    if info.encoder_decoder:
        if num_prompt > info.max_length:
            raise _too_long(num_prompt, info.max_length)
        left = info.max_length - 1  # the start token takes a place
    else:
        left = info.max_length - num_prompt
        if left < 1:
            raise _too_long(num_prompt, info.max_length - 1)
        _check_ids(request, info)
    if request.max_tokens > left:
        beside = "" if info.encoder_decoder else f" beside a prompt of {num_prompt}"
        raise invalid_input(
            "max_tokens",
            f"{request.max_tokens}, at most {left} of the model's {info.max_length} tokens are left{beside}",
            max_tokens=request.max_tokens,
            limit=left,
            prompt_tokens=num_prompt,
        )
    if request.max_tokens < 0:
        raise invalid_input("max_tokens", f"{request.max_tokens}, at least 0")
    max_tokens = request.max_tokens or min(policy.default_max_tokens, left)
    if request.min_tokens > max_tokens:
        raise invalid_input("min_tokens", f"{request.min_tokens}, at most max_tokens, which is {max_tokens}")
    for token in request.sampling.logit_bias:
        if not 0 <= token < info.vocabulary_size:
            raise invalid_input("sampling.logit_bias", f"token {token}, limit {info.vocabulary_size - 1}")
    _check_beams(request, info)
    return max_tokens


def _check_ids(request: SequenceRequest, info: DecodeInfo) -> None:
    wrong = np.flatnonzero((request.prompt < 0) | (request.prompt >= info.vocabulary_size))
    if len(wrong):
        place = int(wrong[0])
        raise invalid_input(f"prompt[{place}]", f"token {request.prompt[place]}, limit {info.vocabulary_size - 1}")


def _check_beams(request: SequenceRequest, info: DecodeInfo) -> None:
    if request.num_beams == 1:
        return
    if not info.encoder_decoder:
        raise invalid_input("num_beams", f"{request.num_beams}, beams are searched by encoder–decoder models alone")
    if not 1 <= request.num_beams <= info.num_slots:
        raise invalid_input("num_beams", f"{request.num_beams}, from 1 to {info.num_slots}", limit=info.num_slots)
    sampling = request.sampling
    if sampling.temperature > 0:
        raise invalid_input("sampling.temperature", f"{sampling.temperature:g}, it is 0 where beams are searched")
    if sampling.repetition_penalty != 1 or sampling.frequency_penalty or sampling.presence_penalty:
        raise invalid_input("sampling", "penalties are not known to beam search")
    if request.constraint is not None:
        raise invalid_input("constraint", "constraints are not known to beam search")


def _too_long(num_prompt: int, limit: int) -> ServingError:
    return invalid_input("prompt", f"{num_prompt} tokens, limit {limit}", tokens=num_prompt, limit=limit)
