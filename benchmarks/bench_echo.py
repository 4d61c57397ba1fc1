"""Identity echo over loopback: what a call costs on each transport, beside plain grpc.aio with the same client.

    direct inline   the direct transport, answered on its own thread
    direct worker   the direct transport, answered by another thread, as an engine's worker does
    aio transport   the same handlers on the fallback transport
    grpc.aio        a stock servicer, nothing of ours

Every server parses and serializes a google.protobuf.BytesValue: 95 bytes in, 96 out. The client is C++ with one thread
and one connection, on the same cores, and compares every answer. Each start is a fresh process; the servers take turns.

python benchmarks/bench_echo.py [--starts 5] [--seconds 2]
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from echo_server import COUNT, ECHO, NUM_MESSAGES, answer
from google.protobuf import wrappers_pb2
from load import build_client, machine, run_load, spread

SERVERS = {"inline": "direct inline", "worker": "direct worker", "aio": "aio transport", "stock": "grpc.aio"}
CONCURRENCIES = (1, 8, 64)
NUM_STREAMS = 8
WANTED = {("inline", "64"): 3, ("worker", "64"): 2, ("inline", "stream"): 3}

REQUEST = wrappers_pb2.BytesValue(value=bytes(93)).SerializeToString()
RESPONSE = answer(REQUEST)


@contextlib.contextmanager
def started(name: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, str(Path(__file__).with_name("echo_server.py")), name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.stdin.close()
            process.wait(30)


def cpu_s(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("cpu\n")
    return float(process.stdout.readline())


def measure(name: str, seconds: float) -> dict[str, tuple[float, float]]:
    """One start: load → (answers a second, CPU microseconds of the server an answer)."""
    results = {}
    with started(name) as (address, process):
        for load in [*map(str, CONCURRENCIES), "stream"]:
            stream = load == "stream"
            before = cpu_s(process)
            done = run_load(
                address,
                COUNT if stream else ECHO,
                REQUEST,
                concurrency=NUM_STREAMS if stream else int(load),
                seconds=seconds,
                stream=stream,
                expect=RESPONSE,
            )
            rate = done.messages_per_s if stream else done.calls_per_s
            # The client does not count its warm-up, a fifth of the time; the server works in it all the same.
            results[load] = (rate, (cpu_s(process) - before) / (rate * seconds * 1.2) * 1e6)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    arguments = parser.parse_args()
    assert (len(REQUEST), len(RESPONSE)) == (95, 96)
    build_client()
    print(machine())
    print(f"{arguments.starts} starts each, interleaved, {arguments.seconds:g} s a load; median (minimum–maximum)\n")
    runs: dict[str, list[dict[str, tuple[float, float]]]] = {name: [] for name in SERVERS}
    for _ in range(arguments.starts):
        for name in SERVERS:
            runs[name].append(measure(name, arguments.seconds))
    for load in [*map(str, CONCURRENCIES), "stream"]:
        stream = load == "stream"
        title = f"{NUM_STREAMS} streams × {NUM_MESSAGES}, messages/s" if stream else f"concurrency {load}, calls/s"
        print(f"{title:32} {'':28} CPU µs   ÷ grpc.aio")
        base = statistics.median(run[load][0] for run in runs["stock"])
        for name, label in SERVERS.items():
            rates = [run[load][0] for run in runs[name]]
            cpu = statistics.median(run[load][1] for run in runs[name])
            wanted = f" (wanted ≥ {WANTED[name, load]})" if (name, load) in WANTED else ""
            print(f"  {label:30} {spread(rates):28} {cpu:6.0f}   {statistics.median(rates) / base:.2f}×{wanted}")
        print()


if __name__ == "__main__":
    main()
