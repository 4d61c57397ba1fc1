"""A served MiniLM beside what its engine can do at all: requests a second, latency, time to ready, memory.

    make bench-serving            (ARGS="--rounds 5 --seconds 6")

Each round measures, in turn: the in-process limit (ONNX Runtime alone, the same graph and thread layout, batches of
tokenised rows, no queue, no network) and the server over gRPC at 1, 8 and 32 calls in flight, one text of 32 tokens a
call. The load client shares the cores with the server, as in any test on one machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from load import ROOT, machine, median, run_load, served, spread

_CONCURRENCY = (1, 8, 32)
# 30 word pieces and the two marks of a sentence: 32 tokens.
_TEXT = " ".join(["the river carries water from the hills down to the mill and then on to the sea"] * 2).split()
_TEXT_32 = " ".join(_TEXT[:30])
_EMBED = "/headrace.v1.EmbeddingService/Embed"


def in_process_limit(graph: Path, seconds: float) -> float:
    """Rows a second of the bare engine, the best of several batch sizes: one single-threaded run a core."""
    code = f"import bench_serving; print(bench_serving.measure_limit({str(graph)!r}, {seconds}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout))


def measure_limit(graph: str, seconds: float) -> float:
    import os

    import numpy as np
    import onnxruntime as ort

    cores = len(os.sched_getaffinity(0))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    best = 0.0
    for batch in (1, 8, 16):
        ids = np.random.default_rng(0).integers(1000, 20000, (batch, 32))
        given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        feeds = {name: given[name] for name in names}
        session.run(None, feeds)
        until = time.perf_counter() + seconds / 3

        def work(feeds: dict[str, object] = feeds, until: float = until) -> int:
            runs = 0
            while time.perf_counter() < until:
                session.run(None, feeds)
                runs += 1
            return runs

        began = time.perf_counter()
        with ThreadPoolExecutor(cores) as pool:
            runs = sum(each.result() for each in [pool.submit(work) for _ in range(cores)])
        best = max(best, runs * batch / (time.perf_counter() - began))
    return best


def request_bytes(version: str) -> bytes:
    from headrace_client import requests

    return requests.embed_request("minilm", _TEXT_32, version=version).SerializeToString()


def bench_version(models: Path, version: str, rounds: int, seconds: float) -> None:
    repository = ROOT / "build" / "bench" / f"minilm-{version}"  # this version alone
    shutil.copytree(models / "minilm" / version, repository / "minilm" / version, dirs_exist_ok=True)
    graph = next(iter(sorted(repository.rglob("*.onnx"))))
    limits: list[float] = []
    rates: dict[int, list[float]] = {c: [] for c in _CONCURRENCY}
    p50: dict[int, list[float]] = {c: [] for c in _CONCURRENCY}
    p99: dict[int, list[float]] = {c: [] for c in _CONCURRENCY}
    ready: list[float] = []
    rss: list[float] = []
    for _ in range(rounds):
        limits.append(in_process_limit(graph, seconds))
        with served(repository) as server:
            ready.append(server.ready_s)
            for concurrency in _CONCURRENCY:
                load = run_load(server.address, _EMBED, request_bytes(""), concurrency=concurrency, seconds=seconds)
                rates[concurrency].append(load.calls_per_s)
                p50[concurrency].append(load.p50_ms)
                p99[concurrency].append(load.p99_ms)
            rss.append(server.rss_mb)
    precision = {"1": "fp32", "2": "int8"}.get(version, version)
    print(f"\n## MiniLM {precision} (version {version}), one text of 32 tokens a call")
    print(f"\n{rounds} rounds, medians (min–max)\n")
    print("| | requests/s | of the in-process limit | p50 ms | p99 ms |")
    print("|---|---|---|---|---|")
    print(f"| in-process limit | {spread(limits)} | 1 | | |")
    for concurrency in _CONCURRENCY:
        shares = [rate / limit for rate, limit in zip(rates[concurrency], limits, strict=True)]
        print(
            f"| {concurrency} in flight | {spread(rates[concurrency])} | {median(shares):.2f} "
            f"({min(shares):.2f}–{max(shares):.2f}) | {median(p50[concurrency]):.1f} | {median(p99[concurrency]):.1f} |"
        )
    print(
        f"\nstart to ready {median(ready):.2f} s ({min(ready):.2f}–{max(ready):.2f}); RSS after load {spread(rss)} MB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=ROOT / "build" / "demo-models")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--versions", nargs="*", default=["1", "2"])
    arguments = parser.parse_args()
    print(machine())
    for version in arguments.versions:
        bench_version(arguments.models, version, arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
