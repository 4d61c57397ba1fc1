"""The small kernels beside NumPy and SciPy, in one run: time, ratio, and how far each is from f64.

    python benchmarks/bench_kernels_small.py [--rounds 15] [--only softmax]

Each line is one case. Contestants take turns within a round; the time printed is the median round, the spread its
quartiles; a ratio above 1 says that the kernel is faster, first of medians, then (in parentheses) of the fastest
rounds, which a busy machine disturbs less. Peers write as few temporaries as they can; a kernel checks
its input (NaN, shapes) within its time and a peer does not. BLAS keeps the threads it has: kernels use one.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

import headrace_kernels as kernels
from headrace_kernels import reference

try:
    import scipy
    from scipy import special
except ModuleNotFoundError:
    scipy = special = None

Function = Callable[..., Any]

SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0.0, "top_logprobs": None},
    {"temperature": 0.0},
    {"temperature": 0.8, "top_logprobs": None},
    {"temperature": 0.8, "top_k": 50, "top_p": 0.9, "top_logprobs": None},
    {"temperature": 0.8, "top_p": 0.95, "top_logprobs": None},
    {"temperature": 0.8, "top_p": 0.95},
]
"""One row of SmolLM2's vocabulary; log-probabilities cost a pass of exponentials more."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One kernel on one input, beside peers that compute the same; `truth` is f64 inside."""

    name: str
    inputs: tuple[Any, ...]
    kernel: Function
    peers: dict[str, Function]
    truth: Function


def numpy_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Softmax with one temporary."""
    terms = logits - logits.max(axis=1, keepdims=True)
    np.exp(terms, out=terms)
    terms /= terms.sum(axis=1, keepdims=True)
    return terms


def numpy_topk(scores: NDArray[np.float32], k: int) -> NDArray[np.float32]:
    """The k largest, sorted; no promise about ties."""
    part = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    best = np.take_along_axis(scores, part, axis=1)
    return np.take_along_axis(best, np.argsort(-best, axis=1), axis=1)


def numpy_sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) with one temporary."""
    e = np.exp(-x)
    e += 1
    return np.divide(1, e, out=e)


def numpy_mean_pool(hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """The masked mean as one batched matrix product: the fastest way that NumPy has."""
    weights = mask.astype(np.float32)
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), 1)
    return (weights[:, None, :] @ hidden)[:, 0]


def numpy_normalize(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows over their lengths, without a temporary of the input's size but the answer."""
    return x / np.sqrt(np.einsum("ij,ij->i", x, x))[:, None]


def numpy_cosine_pairs(a: NDArray[np.float32], b: NDArray[np.float32]) -> NDArray[np.float32]:
    """Products over lengths, without temporaries of the input's size."""
    lengths = np.einsum("ij,ij->i", a, a) * np.einsum("ij,ij->i", b, b)
    return np.einsum("ij,ij->i", a, b) / np.sqrt(lengths)


def numpy_quantize(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric codes and scales."""
    peak = np.abs(x).max(axis=1)
    return np.rint(x * (np.float32(127) / peak)[:, None]).astype(np.int8), peak / np.float32(127)


def numpy_sample(
    logits: NDArray[np.float32],
    *,
    temperature: float,
    uniform: float,
    top_k: int = 0,
    top_p: float = 1.0,
    top_logprobs: int | None = 0,
) -> tuple[int, float]:
    """A token as NumPy draws it soonest: a partition for top-k, a sort only of what top-p needs."""
    logprob = 0.0 if top_logprobs is None else -float(np.log(np.exp(logits - logits.max()).sum()))
    if temperature == 0:
        return int(logits.argmax()), logprob
    kept = np.argpartition(logits, -top_k)[-top_k:] if top_k else np.arange(logits.size)
    terms = np.exp((logits[kept] - logits.max()) / np.float32(temperature))
    if top_p < 1:
        order = np.argsort(-terms)
        sums = terms[order].cumsum()
        order = order[: np.searchsorted(sums, top_p * sums[-1]) + 1]
        kept, terms = kept[order], terms[order]
    sums = terms.cumsum()
    return int(kept[min(np.searchsorted(sums, uniform * sums[-1], side="right"), kept.size - 1)]), logprob


def values(answer: Any) -> NDArray[np.float64]:
    """What an answer says in floats: a ranking's scores, decoded codes, or the array itself."""
    if isinstance(answer, tuple) and isinstance(answer[0], int):
        return np.full(1, np.nan)  # a token has no error; that it is the right one is tested
    if isinstance(answer, tuple):
        answer = answer[1] if len(answer) == 3 else answer[0] * answer[1][:, None]
    return np.asarray(answer, dtype=np.float64)


def cases(rng: np.random.Generator) -> Iterator[Case]:
    """Shapes that a server meets: a batch of class scores, a batch of sentences, a few queries over some items."""

    def normal(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    def case(name: str, *inputs: Any, **peers: Function) -> Case:
        family = name.split()[0]
        size = "x".join(map(str, inputs[0].shape)) + ("" if len(inputs) == 1 else f" {described(inputs[1])}")
        kernel, truth = getattr(kernels, family), getattr(reference, family)
        return Case(name=f"{name} {size}", inputs=inputs, kernel=kernel, peers=peers, truth=truth)

    for n, c in ((1, 10), (32, 2), (8, 1000), (32, 1000), (8, 32000)):
        logits = normal(n, c) * 4
        extra = {} if special is None else {"scipy": partial(special.softmax, axis=1)}
        yield case("softmax", logits, numpy=numpy_softmax, **extra)
        yield case("softmax_topk", logits, min(5, c), numpy=lambda x, k: numpy_topk(numpy_softmax(x), k))
    for n, c, k in ((1, 100_000, 10), (32, 1000, 10), (32, 1000, 100)):
        yield case("topk", normal(n, c), k, numpy=numpy_topk)
    extra = {} if special is None else {"scipy": special.expit}
    yield case("sigmoid", normal(32, 1000) * 4, numpy=numpy_sigmoid, **extra)
    for b, s, d in ((1, 32, 384), (8, 128, 384), (32, 512, 384)):
        hidden = normal(b, s, d)
        mask = (np.arange(s) < rng.integers(s // 2, s + 1, (b, 1))).astype(np.int64)
        yield case("mean_pool", hidden, mask, numpy=numpy_mean_pool)
        yield case("mean_pool_normalize", hidden, mask, numpy=lambda h, m: numpy_normalize(numpy_mean_pool(h, m)))
    for n, d in ((32, 384), (10_000, 384), (100_000, 64)):
        yield case("normalize_rows", normal(n, d), numpy=numpy_normalize)
    for m, n, d in ((1, 1000, 384), (1, 10_000, 384), (32, 1000, 384), (512, 512, 384)):
        left, right = normal(m, d), normal(n, d)
        yield case("dot_matrix", left, right, numpy=lambda a, b: a @ b.T)
        yield case("cosine_matrix", left, right, numpy=lambda a, b: numpy_normalize(a) @ numpy_normalize(b).T)
    yield case("cosine_pairs", normal(1000, 384), normal(1000, 384), numpy=numpy_cosine_pairs)
    yield case("quantize_int8", normal(32, 384), numpy=numpy_quantize)
    for spread, kind in ((4, "peaked"), (1, "flat")):
        logits = normal(1, 49_152)[0] * spread
        for how in SAMPLINGS:
            name = f"sample_row {kind} " + ", ".join(f"{key}={value}" for key, value in how.items())
            how = {"uniform": 0.6, **how}
            yield Case(
                name=name,
                inputs=(logits,),
                kernel=partial(kernels.sample_row, **how),
                peers={"numpy": partial(numpy_sample, **how)},
                truth=partial(reference.sample_row, **how),
            )


def described(second: Any) -> str:
    """The second input in a case's name."""
    return f"k={second}" if isinstance(second, int) else "x".join(map(str, second.shape))


def measure(case: Case, rounds: int) -> dict[str, list[float]]:
    """Seconds a call, one figure a round; contestants take turns and the order turns with them."""
    contestants = [("headrace", case.kernel), *case.peers.items()]
    start = time.perf_counter()
    for _, contestant in contestants:
        contestant(*case.inputs)
    once = (time.perf_counter() - start) / len(contestants)
    calls = max(1, min(2000, round(0.004 / max(once, 1e-7))))
    seconds: dict[str, list[float]] = {name: [] for name, _ in contestants}
    for turn in range(rounds):
        shift = turn % len(contestants)
        for name, contestant in contestants[shift:] + contestants[:shift]:
            start = time.perf_counter()
            for _ in range(calls):
                contestant(*case.inputs)
            seconds[name].append((time.perf_counter() - start) / calls)
    return seconds


def report(case: Case, seconds: dict[str, list[float]]) -> str:
    """The case's line of the table."""
    truth = case.inputs[0] if case.name.startswith("quantize") else values(case.truth(*case.inputs))

    def error(contestant: Function) -> float:
        return float(np.abs(values(contestant(*case.inputs)) - truth).max())

    ours = statistics.median(seconds["headrace"])
    low, _, high = statistics.quantiles(seconds["headrace"], n=4)
    line = f"{case.name:60} {ours * 1e6:9.1f} {low * 1e6:8.1f}-{high * 1e6:<8.1f} {error(case.kernel):8.1e}"
    for name, contestant in case.peers.items():
        theirs = statistics.median(seconds[name])
        undisturbed = min(seconds[name]) / min(seconds["headrace"])
        line += f"   {name} {theirs * 1e6:.1f}, {theirs / ours:.2f}x ({undisturbed:.2f}x), {error(contestant):.1e}"
    return line


def main() -> None:
    """Prints one line a case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default="", help="run the cases whose name holds this")
    options = parser.parse_args()
    machine = f"{os.cpu_count()} cores, {platform.machine()}, python {platform.python_version()}"
    versions = f"numpy {np.__version__}, scipy {scipy.__version__ if scipy else 'absent'}"
    print(f"isa {kernels.isa()}, {machine}, {versions}")
    print(f"{'case':60} {'us':>9} {'quartiles':>17} {'error':>8}   peers: us, ratio (of the fastest rounds), error")
    for case in cases(np.random.default_rng(7)):
        if options.only in case.name:
            print(report(case, measure(case, options.rounds)), flush=True)


if __name__ == "__main__":
    main()
