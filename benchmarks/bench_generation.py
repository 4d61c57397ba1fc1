"""Generation beside llama.cpp, onnxruntime-genai and OpenVINO GenAI: speed, memory, and what quantization costs.

    make bench-generation            (ARGS="--sections decode mixed --engines fast q8_0 --rounds 5")

Every engine runs in a process of its own with two threads, and answers one load at a time; a round takes the engines in
turn, so that all of them see the same weather. Prompts are slices of this project's own documents, no two alike;
tokens are chosen greedily, and ends do not count. `--save` adds what was measured to a file, and the tables are of
everything in it: a run can be made in parts. Engines that cannot be started are named, and left out.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from generation_models import FOLDERS, GENAI, Q4, Q8, prepare
from generation_tables import print_tables
from load import ROOT, machine

HERE = Path(__file__).resolve().parent
PEERS = ROOT / "build" / "venvs" / "generation-peers" / "bin" / "python"

ENGINES = {
    "fast": (sys.executable, "generation_headrace.py", str(FOLDERS["fast"])),
    "accurate": (sys.executable, "generation_headrace.py", str(FOLDERS["accurate"])),
    "fast, 128 tokens a step": (sys.executable, "generation_headrace.py", str(FOLDERS["fast"]), "--chunk", "128"),
    "fast, 256 tokens a step": (sys.executable, "generation_headrace.py", str(FOLDERS["fast"]), "--chunk", "256"),
    "fast, whole prompts": (sys.executable, "generation_headrace.py", str(FOLDERS["fast"]), "--chunk", "65536"),
    "llama.cpp Q4_1": (str(PEERS), "generation_peers.py", "llama", str(Q4)),
    "llama.cpp Q8_0": (str(PEERS), "generation_peers.py", "llama", str(Q8)),
    "onnxruntime-genai int4": (str(PEERS), "generation_peers.py", "genai", str(GENAI["int4"])),
    "onnxruntime-genai int8": (str(PEERS), "generation_peers.py", "genai", str(GENAI["int8"])),
    "OpenVINO GenAI": (str(PEERS), "generation_peers.py", "openvino", str(Q4)),
}
SECTIONS = ("decode", "first", "mixed", "grpc", "rss")
BATCHES = (1, 4, 8, 16)
LENGTHS = (64, 512, 1900)
ACTIVE = (8, 16)
_STEPS = 32
_CONTEXT = 128


class Process:
    """An engine's process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [ENGINES[name][0], str(HERE / ENGINES[name][1]), *ENGINES[name][2:]],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._errors: list[str] = []
        threading.Thread(target=self._keep_errors, daemon=True).start()

    def ask(self, load: str, **arguments: Any) -> dict[str, Any]:
        """The answer. Raises RuntimeError when the process has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": load, **arguments}) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line it says."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            time.sleep(0.1)
            raise RuntimeError("; ".join(self._errors[-2:]) or "no answer")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _keep_errors(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._errors = [*self._errors[-20:], line.strip()]


@contextmanager
def started(names: Sequence[str]) -> Iterator[list[Process]]:
    """The engines that come up, warm."""
    with ExitStack() as stack:
        processes = [Process(name) for name in names]
        for process in processes:
            stack.callback(process.close)
        running = []
        for process in processes:
            try:
                process.answer()
                running.append(process)
            except (RuntimeError, ValueError) as error:
                print(f"{process.name} is left out: {error}", file=sys.stderr)
        yield running


class Prompts:
    """Slices of this project's documents, as token ids; no two begin alike."""

    def __init__(self, seed: int) -> None:
        from tokenizers import Tokenizer

        files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        tokenizer = Tokenizer.from_file(str(FOLDERS["fast"] / "tokenizer.json"))
        self._ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        self._random = np.random.default_rng(seed)

    def take(self, length: int) -> list[int]:
        """A prompt of so many tokens."""
        start = int(self._random.integers(len(self._ids) - length))
        return self._ids[start : start + length]

    def mixed(self, count: int) -> list[tuple[list[int], int]]:
        """Requests: prompts of 32 to 256 tokens, 16 to 80 new ones."""
        lengths = self._random.integers(32, 257, count)
        news = self._random.integers(16, 81, count)
        return [(self.take(int(length)), int(new)) for length, new in zip(lengths, news, strict=True)]


Row = dict[str, Any]


def measure(processes: Sequence[Process], section: str, seed: int, arguments: argparse.Namespace) -> Iterator[Row]:
    """One round of a section, every load by every engine in turn; each engine is given the same prompts."""

    def in_turn(load: str, case: int, **asked: Any) -> Iterator[Row]:
        for process in processes if seed % 2 else processes[::-1]:
            if process.name.startswith("fast, ") and section != "mixed":
                continue
            try:
                yield {"section": section, "case": case, "engine": process.name, **process.ask(load, **asked)}
            except (RuntimeError, OSError, ValueError) as error:
                print(f"{process.name}, {section} {case}: {error}", file=sys.stderr)

    prompts = Prompts(seed)
    if section == "decode":
        for batch in arguments.batches:
            yield from in_turn("decode", batch, prompts=[prompts.take(_CONTEXT) for _ in range(batch)], steps=_STEPS)
    elif section == "first":
        for length in arguments.lengths:
            yield from in_turn("first", length, prompt=prompts.take(length))
    elif section == "mixed":
        for active in arguments.active:
            yield from in_turn("mixed", active, requests=prompts.mixed(24), active=active)
    elif section == "rss":
        yield from in_turn("rss", 0)
    elif section == "grpc":
        for process in processes:
            if process.name in ("fast", "accurate"):
                yield from _streams(process, prompts)


def _streams(process: Process, prompts: Prompts) -> Iterator[Row]:
    """Eight streams in the server's own process, and eight over gRPC from another."""
    address = process.ask("address")["address"]
    client = subprocess.Popen(
        [sys.executable, str(HERE / "generation_client.py"), address],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert client.stdin is not None
    assert client.stdout is not None
    client.stdout.readline()  # it is ready
    for _ in range(2):
        for where in ("in process", "gRPC"):
            asked = {"prompts": [prompts.take(_CONTEXT) for _ in range(8)], "num_tokens": 64}
            if where == "gRPC":
                client.stdin.write(json.dumps(asked) + "\n")
                client.stdin.flush()
                answer = json.loads(client.stdout.readline())
            else:
                answer = process.ask("streams", **asked)
            yield {"section": "grpc", "case": 8, "engine": f"{process.name}, {where}", **answer}
    client.stdin.close()
    client.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prepare", action="store_true", help="make what is missing of the models, and nothing else")
    parser.add_argument("--sections", nargs="*", default=[*SECTIONS, "quality"], choices=[*SECTIONS, "quality"])
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--batches", nargs="*", type=int, default=BATCHES)
    parser.add_argument("--lengths", nargs="*", type=int, default=LENGTHS)
    parser.add_argument("--active", nargs="*", type=int, default=ACTIVE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--save", type=Path, help="a file of JSON lines that results are added to")
    arguments = parser.parse_args()
    if arguments.prepare:
        prepare(PEERS)
        return
    rows: list[Row] = []
    if arguments.save and arguments.save.exists():
        rows = [json.loads(line) for line in arguments.save.read_text(encoding="utf-8").splitlines()]

    def keep(row: Row) -> None:
        rows.append(row)
        if arguments.save:
            with arguments.save.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    sections = [section for section in arguments.sections if section != "quality"]
    if sections:
        with started(arguments.engines) as processes:
            _warm_up(processes)
            for _ in range(arguments.rounds):
                for section in sections:
                    for row in measure(processes, section, time.time_ns() % 2**32, arguments):
                        keep(row)
    if "quality" in arguments.sections:
        from generation_quality import measure_all

        with started([name for name in arguments.engines if name.startswith("llama.cpp")]) as processes:
            for row in measure_all(processes, [name for name in arguments.engines if name in ("fast", "accurate")]):
                keep(row)
    print(machine())
    print_tables(rows)


def _warm_up(processes: Sequence[Process]) -> None:
    prompts = Prompts(1)
    for process in processes:  # a prompt, and as many sequences as will run: memory is touched, kernels are chosen
        process.ask("first", prompt=prompts.take(64))
        process.ask("decode", prompts=[prompts.take(16) for _ in range(8)], steps=2)


if __name__ == "__main__":
    main()
