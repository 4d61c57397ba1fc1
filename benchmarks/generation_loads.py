"""What every engine of the generation benchmark is asked for, and the process that asks it: JSON lines in and out.

An engine takes requests (token ids, a number of new tokens, no end before them) and says when each token came. The
loads below are made of that alone, so that ours and the peers' are measured by the same lines:

first    one request, alone: milliseconds to its first token
decode   n requests that all run: tokens a second from the moment when the last has begun until the first ends
mixed    requests of many lengths, `active` of them at a time: tokens a second, time between tokens, time to the first
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

__all__ = ["Engine", "Prompt", "Tokens", "answer_lines"]

Prompt = Sequence[int]
Tokens = list[tuple[int, float]]  # whose, and when by time.perf_counter()


class Engine(Protocol):
    """An engine at its best settings."""

    def submit(self, key: int, prompt: Prompt, num_tokens: int) -> None:
        """Takes a request; it may begin at once."""
        ...

    def wait(self) -> Tokens:
        """Works, or waits, until tokens have come."""
        ...


def first(engine: Engine, *, prompt: Prompt) -> dict[str, float]:
    began = time.perf_counter()
    engine.submit(0, prompt, 1)
    ((_, at),) = engine.wait()
    return {"ms": (at - began) * 1e3}


def decode(engine: Engine, *, prompts: Sequence[Prompt], steps: int) -> dict[str, float]:
    # Prompts are read one after the other, and who has begun goes on: the first is a few steps ahead of the last.
    num_tokens = steps + len(prompts) + 2
    came: dict[int, list[float]] = {key: [] for key in range(len(prompts))}
    for key, prompt in enumerate(prompts):
        engine.submit(key, prompt, num_tokens)
    while any(len(times) < num_tokens for times in came.values()):
        for key, at in engine.wait():
            came[key].append(at)
    began, ended = max(times[0] for times in came.values()), min(times[-1] for times in came.values())
    count = sum(began < at <= ended for times in came.values() for at in times)
    return {"tok_s": count / (ended - began)}


def mixed(engine: Engine, *, requests: Sequence[tuple[Prompt, int]], active: int) -> dict[str, float]:
    came: dict[int, list[float]] = {}
    asked: dict[int, float] = {}
    waiting = list(enumerate(requests))[::-1]
    running = 0
    began = time.perf_counter()
    while waiting or running:
        while waiting and running < active:
            key, (prompt, num_tokens) = waiting.pop()
            came[key], asked[key] = [], time.perf_counter()
            engine.submit(key, prompt, num_tokens)
            running += 1
        for key, at in engine.wait():
            came[key].append(at)
            running -= len(came[key]) == requests[key][1]
    gaps = np.concatenate([np.diff(times) for times in came.values()]) * 1e3
    begun = [(times[0] - asked[key]) * 1e3 for key, times in came.items()]
    ended = max(times[-1] for times in came.values())
    return {
        "tok_s": sum(map(len, came.values())) / (ended - began),
        "gap_p50_ms": float(np.percentile(gaps, 50)),
        "gap_p99_ms": float(np.percentile(gaps, 99)),
        "first_p50_ms": float(np.percentile(begun, 50)),
    }


def rss(_: Engine) -> dict[str, float]:
    """Resident memory now."""
    with open("/proc/self/statm") as file:
        return {"mb": int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6}


_LOADS: Mapping[str, Callable[..., dict[str, Any]]] = {"first": first, "decode": decode, "mixed": mixed, "rss": rss}


def answer_lines(engine: Engine, others: Mapping[str, Callable[..., dict[str, Any]]] | None = None) -> None:
    """Answers each line {"do": name, argument: value, …} with one of its result, until there are no more.

    others  what this engine can be asked for besides, by name
    """
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes elsewhere
    calls = {**{name: _bound(load, engine) for name, load in _LOADS.items()}, **(others or {})}
    print(json.dumps({"ready": True}), file=out)
    for line in sys.stdin:
        asked = json.loads(line)
        print(json.dumps(calls[asked.pop("do")](**asked)), file=out)


def _bound(load: Callable[..., dict[str, Any]], engine: Engine) -> Callable[..., dict[str, Any]]:
    return lambda **asked: load(engine, **asked)
