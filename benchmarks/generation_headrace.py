"""Our server in a process of its own, for the generation benchmark: the jobs, the decoder, the engine; and over gRPC.

    python benchmarks/generation_headrace.py FOLDER [--chunk TOKENS]

FOLDER is one version of a model. Requests go the way of in-process calls, checks and text assembly included; the
listener hears of them on the decoder's thread.
"""

from __future__ import annotations

import argparse
import logging
import queue
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from generation_loads import Prompt, Tokens, answer_lines

from headrace_server.config import DecoderPolicy
from headrace_server.jobs.generation_queries import GenerateQuery, GenerationDelta, GenerationSummary
from headrace_server.jobs.queries import ModelRef
from headrace_server.server import Server
from headrace_server.serving.context import RequestContext

MAX_LENGTH = 2048


class Headrace:
    """Requests by the generate job."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._told: queue.SimpleQueue[tuple[int, float] | Exception] = queue.SimpleQueue()

    def submit(self, key: int, prompt: Prompt, num_tokens: int) -> None:
        query = GenerateQuery(model=ModelRef("model"), prompt=prompt, max_tokens=num_tokens, ignore_end=True)
        self._server.jobs.generate.stream(query, RequestContext(), _Listener(key, self._told))

    def wait(self) -> Tokens:
        found = [self._told.get()]
        while not self._told.empty():
            found.append(self._told.get())
        for item in found:
            if isinstance(item, Exception):
                raise item
        return found  # type: ignore[return-value]

    def streams(self, *, prompts: list[Prompt], num_tokens: int) -> dict[str, float]:
        """Tokens a second of `Server.generate`, a thread a stream, from the first call to the last answer."""
        threads = [threading.Thread(target=self._read, args=(prompt, num_tokens)) for prompt in prompts]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return {"tok_s": len(prompts) * num_tokens / (time.perf_counter() - began)}

    def _read(self, prompt: Prompt, num_tokens: int) -> None:
        for _ in self._server.generate("model", prompt, max_tokens=num_tokens, ignore_end=True):
            pass

    def address(self) -> dict[str, str]:
        return {"address": self._server.addresses.grpc[0]}


class _Listener:
    def __init__(self, key: int, told: queue.SimpleQueue[Any]) -> None:
        self._key = key
        self._told = told

    def on_delta(self, delta: GenerationDelta) -> None:
        now = time.perf_counter()
        for _ in delta.tokens:
            self._told.put((self._key, now))

    def on_done(self, summary: GenerationSummary) -> None:
        pass

    def on_error(self, error: Exception) -> None:
        self._told.put(error)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--chunk", type=int, default=DecoderPolicy().prefill_chunk)
    arguments = parser.parse_args()
    logging.disable()
    with TemporaryDirectory() as repository:
        folder = Path(repository, "model", "1")
        folder.parent.mkdir()
        folder.symlink_to(arguments.folder.resolve())
        policy = DecoderPolicy(max_slots=16, max_length=MAX_LENGTH, prefill_chunk=arguments.chunk)
        with Server(repository=repository, listen="127.0.0.1:0", decoder=policy) as server:
            engine = Headrace(server)
            answer_lines(engine, {"streams": engine.streams, "address": engine.address})


if __name__ == "__main__":
    main()
