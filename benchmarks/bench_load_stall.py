"""What a model's load does to the requests of another: latencies beside it, and the longest time nobody could run.

    make bench-load            (ARGS="--rounds 3 --rate 200")

One server, one small model asked at a fixed rate (open loop: a request counts from the moment it was due, so that a
stall counts for every request that fell into it). Beside it the large models of the demo are loaded over the management
listener, one by one and then all at once, and unloaded again. The client shares the cores with the server.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from load import ROOT, machine

_CLASSIFY = "/headrace.v1.ClassificationService/Classify"
_SMALL = "synthetic-churn"
_ROW = {
    "plan": "premium",
    "payment": "invoice",
    "country": "DE",
    "tenure_months": 19.0,
    "visits_last_30_days": 12.0,
    "days_since_last_visit": 0.0,
    "minutes_per_visit": 8.6,
    "tickets_last_90_days": 3.0,
    "discount_percent": 30.0,
}
# By the name they are served by here: each is a model of its own, so that one load is one version.
_LARGE = {
    "smollm2": "smollm2/1",
    "minilm-fp32": "minilm/1",
    "minilm-int8": "minilm/2",
    "efficientnet": "efficientnet-lite0/1",
}
_LONGEST_STALL = re.compile(r"model (\S+)/(\S+): ready in .* at most (\d+) ms")


@dataclass(frozen=True, slots=True)
class Answered:
    """When a request was due, `time.perf_counter()`, and how long after it was answered."""

    due: float
    seconds: float


class Asking:
    """Asks at a fixed rate from its beginning to its end, on a thread of its own."""

    def __init__(self, address: str, request: bytes, rate: float) -> None:
        self.answers: list[Answered] = []
        self.failures: list[str] = []
        self._channel = grpc.insecure_channel(address)
        self._ask = self._channel.unary_unary(_CLASSIFY, request_serializer=None, response_deserializer=None)
        self._request = request
        self._period = 1 / rate
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        time.sleep(1)  # the last answers
        self._channel.close()

    def within(self, begin: float, end: float) -> list[float]:
        """Milliseconds of the requests that were due in this time."""
        return [each.seconds * 1e3 for each in list(self.answers) if begin <= each.due < end]

    def _run(self) -> None:
        due = time.perf_counter()
        while not self._stopping.wait(max(0.0, due - time.perf_counter())):
            call = self._ask.future(self._request, timeout=30)
            call.add_done_callback(lambda done, due=due: self._note(done, due))
            due += self._period

    def _note(self, done: grpc.Future, due: float) -> None:
        now = time.perf_counter()
        if done.code() is not grpc.StatusCode.OK:
            self.failures.append(f"{done.code()}: {done.details()}")
        self.answers.append(Answered(due, now - due))


@dataclass(frozen=True, slots=True)
class Serving:
    """A server in a process of its own: where it answers, and its log."""

    address: str
    management: str
    log: Path

    def stalls(self) -> dict[tuple[str, str], list[int]]:
        """Milliseconds of the longest stall of each load so far, by model and version."""
        found: dict[tuple[str, str], list[int]] = {}
        for line in self.log.read_text().splitlines():
            match = _LONGEST_STALL.search(line)
            if match:
                found.setdefault((match[1], match[2]), []).append(int(match[3]))
        return found


@contextlib.contextmanager
def serving(repository: Path) -> Iterator[Serving]:
    """`headrace serve` until the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        ports, log = Path(folder, "ports"), Path(folder, "log")
        command = [
            *(str(Path(sys.executable).with_name("headrace")), "serve", str(repository), "--listen", "127.0.0.1:0"),
            *("--management", "127.0.0.1:0", "--admin", "off", "--state", "off", "--port-file", str(ports)),
            *("--versions", "all", "--log-format", "json"),
        ]
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)
        try:
            until = time.monotonic() + 60
            while "management" not in (written := ports.read_text() if ports.exists() else ""):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
                time.sleep(0.01)
            addresses = dict(line.split(maxsplit=1) for line in written.splitlines())
            yield Serving(addresses["grpc"], addresses["management"], log)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def put_in(models: Path, repository: Path, wanted: Mapping[str, str]) -> None:
    """Copies of versions, as a repository of their own."""
    for name, source in wanted.items():
        shutil.copytree(models / source, repository / name / "1")


def load_all(management: str, names: Sequence[str]) -> tuple[float, float]:
    """Loads models at once; from when to when it took. Raises what the client raises where one is not loaded."""
    from headrace_client import Client

    with Client(management) as client, ThreadPoolExecutor(len(names)) as threads:
        begin = time.perf_counter()
        list(threads.map(lambda name: client.load_model(name, timeout_s=120), names))
        return begin, time.perf_counter()


def unload_all(management: str, names: Sequence[str]) -> None:
    """Takes models out of service."""
    from headrace_client import Client

    with Client(management) as client:
        for name in names:
            client.unload_model(name, timeout_s=60)


def row(what: str, times: Sequence[float], seconds: float, alone: float, stall: str) -> str:
    p99 = quantile(times, 0.99)
    more = f"{p99 - alone:+.0f}" if alone else ""
    return (
        f"| {what} | {seconds:.1f} | {len(times)} | {quantile(times, 0.5):.1f} | {p99:.1f} | {more} "
        f"| {max(times):.0f} | {stall} |"
    )


def run(models: Path, rounds: int, rate: float, seconds: float) -> float:
    """Prints the table. The largest p99 beside a load less the p99 without, milliseconds."""
    from headrace_client import requests

    request = requests.classify_request(_SMALL, _ROW).SerializeToString()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        repository, aside = Path(folder, "models"), Path(folder, "aside")
        put_in(models, repository, {_SMALL: f"{_SMALL}/1"})
        put_in(models, aside, _LARGE)
        with serving(repository) as server, Asking(server.address, request, rate) as asking:
            time.sleep(2)  # until everything is warm
            begin = time.perf_counter()
            time.sleep(seconds)
            without = asking.within(begin, begin + seconds)
            alone = quantile(without, 0.99)
            print("| beside | seconds | requests | p50 ms | p99 ms | p99 more | longest ms | longest stall ms |")
            print("|---|---|---|---|---|---|---|---|")
            print(row("nothing", without, seconds, 0, ""))
            for name in _LARGE:
                (aside / name).rename(repository / name)
            for what, wanted in {**{name: [name] for name in _LARGE}, "all at once": list(_LARGE)}.items():
                known = {key: len(found) for key, found in server.stalls().items()}
                times, spent = list[float](), 0.0
                for _ in range(rounds):
                    time.sleep(0.5)
                    begin, end = load_all(server.management, wanted)
                    time.sleep(0.5)
                    times += asking.within(begin, end)
                    spent += end - begin
                    unload_all(server.management, wanted)
                stalls = [ms for key, found in server.stalls().items() for ms in found[known.get(key, 0) :]]
                print(row(what, times, spent / rounds, alone, str(max(stalls, default=0))), flush=True)
                worst = max(worst, quantile(times, 0.99) - alone)
            failures = asking.failures
    print(f"\n{rate:.0f} requests a second; each load {rounds} times; {len(failures)} requests failed {failures[:1]}")
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "demo-models")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--json", action="store_true", help="the largest growth of p99, for programs")
    arguments = parser.parse_args()
    print(machine(), "\n")
    worst = run(arguments.models, arguments.rounds, arguments.rate, arguments.seconds)
    if arguments.json:
        print(json.dumps({"p99_growth_ms": worst}))


if __name__ == "__main__":
    main()
