"""The next token of a generation, drawn from a row of logits.

    logits ─▶ + bias ─▶ repetition ─▶ frequency, presence ─▶ allowed? ─▶ temperature 0: the largest
      │                                                          └─▶ ÷ temperature ─▶ top-k ─▶ top-p ─▶ min-p ─▶ uniform
      └─▶ log-probabilities: log-softmax of the logits as they were given

A row's answer depends on that row and its parameters alone: the same bits on every variant, alone or in a batch, for
any number of threads. Nothing is random here: `uniform` is the caller's random number, so its seed decides.
"""

from __future__ import annotations

import math
import operator
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from headrace_kernels._native import sampling as native
from headrace_kernels._operands import MAX_LENGTH, as_f32, as_i32, as_words
from headrace_kernels.errors import DtypeError, NotFiniteError, NothingAllowedError, ShapeError

__all__ = ["RowSampling", "Sampled", "sample", "sample_row"]


class Sampled(NamedTuple):
    """A token, and how likely the model held it and its best rivals to be."""

    token: int
    logprob: float
    """ln of the probability that the model's own softmax gives the token; NaN where it was not asked for."""
    top_tokens: NDArray[np.int32]
    """The model's likeliest tokens, best first, ties to the lower index; min(top_logprobs, v) of them."""
    top_logprobs: NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class RowSampling:
    """How one row is sampled: the arguments of `sample_row`, which says what each means."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    uniform: float | None = None
    allowed: NDArray[np.uint32] | NDArray[np.int32] | None = None
    bias_tokens: NDArray[np.int32] | None = None
    bias_values: NDArray[np.float32] | None = None
    counted_tokens: NDArray[np.int32] | None = None
    counts: NDArray[np.int32] | None = None
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    top_logprobs: int | None = 0


def sample_row(
    logits: NDArray[np.float32],
    *,
    temperature: float,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    uniform: float | None = None,
    allowed: NDArray[np.uint32] | NDArray[np.int32] | None = None,
    bias_tokens: NDArray[np.int32] | None = None,
    bias_values: NDArray[np.float32] | None = None,
    counted_tokens: NDArray[np.int32] | None = None,
    counts: NDArray[np.int32] | None = None,
    repetition_penalty: float = 1.0,
    frequency_penalty: float = 0.0,
    presence_penalty: float = 0.0,
    top_logprobs: int | None = 0,
) -> Sampled:
    """One token of a row of logits, with its log-probability; ties go to the lower index.

    logits              f32[v], left as they are; -inf is a token that cannot be
    temperature         0 takes the largest logit (after bias, penalties and mask) and ignores what follows; at least 0
    top_k               keeps this many likeliest; 0, or v and more, keeps all
    top_p               then the fewest likeliest whose share of what top_k kept reaches it (the token that reaches it
                        included, at least one); in [0, 1], 1 keeps all
    min_p               then those at least this times as likely as the likeliest; in [0, 1], 0 keeps all
    uniform             in [0, 1): the first token, by index, at which the kept tokens' cumulated probability passes it;
                        may be None only at temperature 0
    allowed             u32 or i32[ceil(v / 32)]: bit i % 32 of word i / 32 set where token i may be; None allows all
    bias_tokens         i32[m], distinct, with bias_values f32[m]: added to those logits; finite, or -inf to forbid
    counted_tokens      i32[c], distinct: the tokens of prompt and output, with counts i32[c]: how often each was
                        generated, 0 for one that stands in the prompt alone
    repetition_penalty  divides the positive logits of counted tokens and multiplies the others; above 0
    frequency_penalty   is taken off, times its count, the logit of each counted token
    presence_penalty    is taken off the logit of each token with count > 0
    top_logprobs        how many likeliest tokens to name beside the one drawn; None computes no log-probability at all
    returns             Sampled; log-probabilities are of softmax(logits): before bias, penalties, mask, temperature
    raises              DtypeError, ShapeError; ValueError for a parameter out of its range or a token not in [0, v);
                        NotFiniteError for NaN or +inf, in logits or after bias; NothingAllowedError
    limits              v below 2^31; exact but for rounding (docs/kernels.md); a token 2^149 times less likely than the
                        likeliest is never drawn
    """
    row = as_f32("logits", logits, 1)
    request = RowSampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        uniform=uniform,
        allowed=allowed,
        bias_tokens=bias_tokens,
        bias_values=bias_values,
        counted_tokens=counted_tokens,
        counts=counts,
        repetition_penalty=repetition_penalty,
        frequency_penalty=frequency_penalty,
        presence_penalty=presence_penalty,
        top_logprobs=top_logprobs,
    )
    (answer,) = _sampled(row[None], [request], 1)
    if isinstance(answer, Exception):
        raise answer
    return answer


def sample(
    logits: NDArray[np.float32], rows: Sequence[RowSampling], *, num_threads: int = 1
) -> list[Sampled | NotFiniteError | NothingAllowedError]:
    """One token of each row, each as `sample_row` answers it; a row that has none gets its error, and no other does.

    logits       f32[n, v]
    rows         how each is sampled, n of them
    num_threads  of the kernels' own pool; changes no bit
    raises       what a parameter is refused for, as sample_row; then no row was sampled
    """
    matrix = as_f32("logits", logits, 2)
    if len(rows) != len(matrix):
        raise ShapeError(f"logits has shape {matrix.shape}, and there are {len(rows)} rows to sample")
    if not 1 <= operator.index(num_threads) <= MAX_THREADS:
        raise ValueError(f"num_threads is {num_threads}, it must be in [1, {MAX_THREADS}]")
    return _sampled(matrix, rows, num_threads)


MAX_THREADS = 256

_Parameters = tuple[Any, ...]
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)
_BELOW_ONE = math.nextafter(1.0, 0.0)
_kept = threading.local()


def _sampled(
    matrix: NDArray[np.float32], rows: Sequence[RowSampling], num_threads: int
) -> list[Sampled | NotFiniteError | NothingAllowedError]:
    num_rows, num_tokens = matrix.shape
    checked = [_checked(row, num_tokens) for row in rows]
    if not num_rows:
        return []
    if not num_tokens:
        return [_nothing_allowed(row) for row in range(num_rows)]
    widths = [min(row[-1] or 0, num_tokens) for row in checked]
    top_tokens = np.empty((num_rows, max(widths)), dtype=np.int32)
    top_logprobs = np.empty(top_tokens.shape, dtype=np.float32)
    scratch = _scratch(min(num_threads, num_rows), num_tokens)
    drawn = native.sample(matrix, checked, scratch, top_tokens, top_logprobs)
    answers: list[Sampled | NotFiniteError | NothingAllowedError] = []
    for row, ((status, token, logprob), width) in enumerate(zip(drawn, widths, strict=True)):
        if status == 0:
            answers.append(Sampled(token, logprob, top_tokens[row, :width], top_logprobs[row, :width]))
        else:
            answers.append(_not_finite(row) if status == 1 else _nothing_allowed(row))
    return answers


def _scratch(num_threads: int, num_tokens: int) -> NDArray[np.uint8]:
    """u8[threads, bytes], kept by the calling thread for its next call: fresh pages would cost more than a draw."""
    num_bytes = native.scratch_bytes(num_tokens)
    kept: NDArray[np.uint8] | None = getattr(_kept, "scratch", None)
    if kept is None or kept.size < num_threads * num_bytes:
        kept = _kept.scratch = np.empty(num_threads * num_bytes, dtype=np.uint8)
    return kept[: num_threads * num_bytes].reshape(num_threads, num_bytes)


def _checked(row: RowSampling, num_tokens: int) -> _Parameters:
    """The parameters in their order, in the types and layouts that native code takes; raises for one out of range."""
    temperature = _within("temperature", row.temperature, 0.0, _LARGEST)
    if row.uniform is None and temperature > 0:
        raise ValueError("uniform is None: a temperature above 0 needs a random number in [0, 1)")
    allowed = None if row.allowed is None else as_words("allowed", row.allowed)
    num_words = (num_tokens + 31) // 32
    if allowed is not None and allowed.size != num_words:
        raise ShapeError(f"allowed has {allowed.size} words, {num_tokens} tokens need {num_words}")
    bias_tokens, bias_values = row.bias_tokens, row.bias_values
    if bias_tokens is not None or bias_values is not None:
        bias_tokens, bias_values = as_i32("bias_tokens", bias_tokens), as_f32("bias_values", bias_values, 1)
        _paired("bias_tokens", bias_tokens, "bias_values", bias_values)
        if not (bias_values < np.inf).all():
            raise ValueError("bias_values holds NaN or +inf")
    counted, counts = row.counted_tokens, row.counts
    if counted is not None or counts is not None:
        counted, counts = as_i32("counted_tokens", counted), as_i32("counts", counts)
        _paired("counted_tokens", counted, "counts", counts)
    for name, tokens in (("bias_tokens", bias_tokens), ("counted_tokens", counted)):
        if tokens is not None and tokens.size and (tokens.min() < 0 or tokens.max() >= num_tokens):
            raise ValueError(f"{name} holds a token outside of [0, {num_tokens})")
    return (
        temperature,
        _whole("top_k", row.top_k),
        _within("top_p", row.top_p, 0.0, 1.0),
        _within("min_p", row.min_p, 0.0, 1.0),
        _within("uniform", row.uniform or 0.0, 0.0, _BELOW_ONE),
        allowed,
        bias_tokens,
        bias_values,
        counted,
        counts,
        _within("repetition_penalty", row.repetition_penalty, _SMALLEST, _LARGEST),
        _within("frequency_penalty", row.frequency_penalty, -_LARGEST, _LARGEST),
        _within("presence_penalty", row.presence_penalty, -_LARGEST, _LARGEST),
        None if row.top_logprobs is None else _whole("top_logprobs", row.top_logprobs),
    )


def _within(name: str, value: float, least: float, most: float) -> float:
    number = float(value)
    if not least <= number <= most:
        raise ValueError(f"{name} is {number}, it must be in [{least:g}, {most:.17g}]")
    return number


def _whole(name: str, value: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise DtypeError(f"{name} must be a whole number, not {type(value).__name__}") from None
    if number < 0:
        raise ValueError(f"{name} is {number}, at least 0 is needed")
    return min(number, MAX_LENGTH)


def _paired(name: str, x: NDArray[Any], other_name: str, other: NDArray[Any]) -> None:
    if x.size != other.size:
        raise ShapeError(f"{name} has {x.size} entries and {other_name} {other.size}")


def _not_finite(row: int) -> NotFiniteError:
    return NotFiniteError(f"logits[{row}] holds NaN or +inf, as given or after bias and penalties", row=row)


def _nothing_allowed(row: int) -> NothingAllowedError:
    return NothingAllowedError(f"logits[{row}] has no token that may be drawn: all are forbidden", row=row)
