"""A server of language models' folders, asked in many ways at once; what two answers have in common."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from headrace_client import Client, GenerationDelta
from headrace_server.config import AdminOptions, DecoderPolicy, ServerConfig, TransportOptions
from headrace_server.server import Server
from headrace_server.serving.decoder.decoder import Decoder
from headrace_server.serving.text_servable import TextServable

__all__ = ["NUM_SLOTS", "Comparison", "Served", "eventually", "fill_slots", "ids_of", "margins_of", "serve_generators"]

NUM_SLOTS = 16
R = TypeVar("R")


@dataclass(frozen=True)
class Served:
    """A running server and a client of it."""

    server: Server
    client: Client

    @property
    def address(self) -> str:
        return self.server.addresses.grpc[0]

    def decoder(self, model: str, version: str = "") -> Decoder:
        with self.server._repository.acquire(model, version=version) as lease:
            assert isinstance(lease.servable, TextServable)
            return lease.servable.decoder

    def most_active(self, model: str, work: Callable[[], R], version: str = "") -> tuple[R, int]:
        """What `work` gives, and how many sequences had slots at once meanwhile."""
        decoder, done, most = self.decoder(model, version), threading.Event(), 0

        def watch() -> None:
            nonlocal most
            while not done.wait(0.005):
                most = max(most, decoder.num_active)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return work(), most
        finally:
            done.set()
            watcher.join()


@contextlib.contextmanager
def serve_generators(
    repository: Path, folders: Mapping[str, Path], *, policy: DecoderPolicy | None = None, **transport: Any
) -> Iterator[Served]:
    """`folders` by model name, each holding versions, served from links below `repository`."""
    for name, folder in folders.items():
        (repository / name).symlink_to(folder)
    config = ServerConfig(
        repository=repository,
        decoder=policy or DecoderPolicy(),
        transport=TransportOptions(listen=("127.0.0.1:0",), **transport),
        admin=AdminOptions(listen=None),
    )
    with Server(config) as server, Client(server.addresses.grpc[0], timeout_s=240) as client:
        yield Served(server, client)


def ids_of(deltas: Sequence[GenerationDelta]) -> list[int]:
    """The tokens of a stream of one choice."""
    return [token.id for delta in deltas for token in delta.tokens]


def margins_of(deltas: Sequence[GenerationDelta]) -> list[float]:
    """By how much the likeliest token led, of a stream that was asked for two log-probabilities a token."""
    return [token.top_logprobs[0].logprob - token.top_logprobs[1].logprob for delta in deltas for token in delta.tokens]


@contextlib.contextmanager
def fill_slots(client: Client, model: str, count: int, **options: Any) -> Iterator[None]:
    """`count` others generate, of various lengths, for as long as the block runs."""
    over, running = threading.Event(), threading.Barrier(count + 1)

    def generate(number: int) -> None:
        first = True
        while not over.is_set():
            prompt = f"Chapter {number}. " + "The river runs past the old mill. " * (number % 5)
            stream = client.generate(model, prompt, max_tokens=60 + 7 * number, ignore_end=True, **options)
            with contextlib.closing(stream):
                for _ in stream:
                    if first:
                        first = False
                        running.wait(120)
                    if over.is_set():
                        break

    with ThreadPoolExecutor(count) as pool:
        others = [pool.submit(generate, number) for number in range(count)]
        try:
            running.wait(120)
            yield
        finally:
            over.set()
            for other in others:
                other.result()


@dataclass
class Comparison:
    """Token sequences held against others: a difference counts as one only where the likeliest token led by `epsilon`.

    What follows a difference has another past, and is not compared.
    """

    epsilon: float
    num_sequences: int = 0
    num_tokens: int = 0
    near: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def add(self, name: str, wanted: Sequence[int], found: Sequence[int], margins: Sequence[float]) -> None:
        """`margins` are those of `wanted`, at least up to the first difference."""
        self.num_sequences += 1
        for place, (one, other) in enumerate(zip(wanted, found, strict=False)):
            if one != other:
                said = f"{name}: token {place} is {other}, not {one}, which led by {margins[place]:.4f}"
                (self.near if margins[place] < self.epsilon else self.wrong).append(said)
                return
            self.num_tokens += 1
        if len(wanted) != len(found):
            self.wrong.append(f"{name}: {len(found)} tokens, not {len(wanted)}")

    def __str__(self) -> str:
        return (
            f"{self.num_sequences} sequences, {self.num_tokens} tokens equal, {len(self.near)} differences where the"
            f" margin was under {self.epsilon}, {len(self.wrong)} others"
            + "".join(f"\n  {line}" for line in self.near + self.wrong)
        )


def eventually(holds: Callable[[], bool], timeout_s: float = 10) -> bool:
    """Whether it came to hold."""
    limit = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > limit:
            return False
        time.sleep(0.002)
    return True
