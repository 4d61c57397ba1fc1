"""Recommend over gRPC beside Milvus Lite's server, and faiss behind the same transport: requests a second, latency.

    make bench-recommend          (ARGS="--servers headrace faiss faiss-grouped milvus --rounds 3 --seconds 2")

One query vector a request, k = 10, at 1, 8 and 32 calls in flight. All servers stand beside each other, each in a
process of its own, and take turns within a round; a C++ client with one thread and one connection sends 256 different
requests in turn and shares the cores with them. Of ours every answer under load must be, byte for byte, the one given
alone; every server's answers are first held to sums in f64. The limit is our kernel alone, in a process without server.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from load import Load, build_client, machine, median, run_load, spread
from recommend_data import CATALOG, Data, K, item_id, milvus_server

CONCURRENCIES = (1, 8, 32)
RECOMMEND = "/headrace.v1.RecommendationService/Recommend"
MILVUS = "/milvus.proto.milvus.MilvusService/Search"
LABELS = {
    "headrace": "headrace",
    "faiss": "faiss, a call a search",
    "faiss-grouped": "faiss, waiting calls in one search",
    "milvus": "Milvus Lite",
}


@dataclass
class Contestant:
    """A running server, how to ask it, and what was measured of it."""

    name: str
    address: str
    method: str
    requests: list[bytes]
    ids_of: Callable[[bytes], set[int]]
    answers: list[bytes] = field(default_factory=list)
    loads: dict[int, list[Load]] = field(default_factory=lambda: {each: [] for each in CONCURRENCIES})

    def ask_alone(self) -> None:
        """Every request once, one after the other."""
        with grpc.insecure_channel(self.address, options=[("grpc.max_receive_message_length", -1)]) as channel:
            ask = channel.unary_unary(self.method)
            self.answers = [ask(request, timeout=60) for request in self.requests]

    def recall(self, truth: Sequence[set[int]]) -> float:
        found = [len(self.ids_of(answer) & ids) for answer, ids in zip(self.answers, truth, strict=True)]
        return sum(found) / (K * len(truth))

    def load(self, concurrency: int, seconds: float) -> None:
        load = run_load(
            self.address,
            self.method,
            self.requests,
            concurrency=concurrency,
            seconds=seconds,
            expect=self.answers if self.name == "headrace" else None,
        )
        self.loads[concurrency].append(load)


@contextmanager
def process(name: str, data: Data) -> Iterator[subprocess.Popen[str]]:
    """recommend_server.py; `first_line` waits until it is ready."""
    command = [sys.executable, str(Path(__file__).with_name("recommend_server.py")), name]
    command += [str(data.num_items), str(data.dimension)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, env=environment
    ) as server:
        assert server.stdin is not None
        try:
            yield server
        finally:
            server.stdin.close()
            server.wait(60)


def first_line(server: subprocess.Popen[str]) -> str:
    assert server.stdout is not None
    line = server.stdout.readline().strip()
    if not line:
        raise RuntimeError("a server did not start")
    return line


def ours(name: str, address: str, data: Data) -> Contestant:
    from headrace.v1 import recommendation_pb2 as pb

    requests = [
        pb.RecommendRequest(
            catalog=CATALOG,
            k=K,
            query={"vectors": {"num_vectors": 1, "dimension": data.dimension, "data": query.tobytes()}},
        ).SerializeToString()
        for query in data.queries()
    ]

    def ids_of(answer: bytes) -> set[int]:
        listed = pb.RecommendResponse.FromString(answer).results[0]
        assert listed.exact
        return {int(item.item.id.removeprefix(item_id(0)[:5])) for item in listed.items}

    return Contestant(name, address, RECOMMEND, requests, ids_of)


def milvus(address: str, data: Data) -> Contestant:
    """Set up by pymilvus; asked with the bytes that pymilvus would send, and read by its messages."""
    from pymilvus import MilvusClient
    from pymilvus.client.prepare import Prepare
    from pymilvus.grpc_gen import milvus_pb2

    client = MilvusClient(f"http://{address}")
    client.load_collection(CATALOG)
    client.search(CATALOG, data=[data.queries()[0]], limit=K, search_params={"metric_type": "IP"})
    client.close()
    requests = [
        Prepare.search_requests_with_expr(CATALOG, "vector", {"metric_type": "IP"}, K, data=[query]).SerializeToString()
        for query in data.queries()
    ]

    def ids_of(answer: bytes) -> set[int]:
        return set(milvus_pb2.SearchResults.FromString(answer).results.ids.int_id.data)

    return Contestant("milvus", address, MILVUS, requests, ids_of)


def contestants(names: Sequence[str], data: Data, stack: ExitStack) -> list[Contestant]:
    """The servers, started at once."""
    children = {name: stack.enter_context(process(name, data)) for name in names if name != "milvus"}
    found = []
    for name in names:
        if name == "milvus":
            found.append(milvus(stack.enter_context(milvus_server(data.milvus)), data))
        else:
            found.append(ours(name, first_line(children[name]), data))
    return found


def measured_limit(limit: subprocess.Popen[str]) -> dict[int, float]:
    assert limit.stdin is not None
    assert limit.stdout is not None
    limit.stdin.write("measure\n")
    return {int(size): value for size, value in json.loads(limit.stdout.readline()).items()}


def print_table(servers: Sequence[Contestant], limits: Sequence[dict[int, float]], recalls: dict[str, float]) -> None:
    print("\n| kernel alone, queries a scan | ms a scan | queries/s |\n|---|---|---|")
    for size in limits[0]:
        taken = [each[size] for each in limits]
        rates = [1000 * size / each for each in taken]
        print(f"| {size} | {median(taken):.2f} ({min(taken):.2f}–{max(taken):.2f}) | {spread(rates)} |")
    first = servers[0]
    print(f"\n| server | in flight | requests/s | p50 ms | p99 ms | requests/s of {first.name} ÷ | recall |")
    print("|---|---|---|---|---|---|---|")
    for server in servers:
        for concurrency, loads in server.loads.items():
            rates = [load.calls_per_s for load in loads]
            pairs = zip(first.loads[concurrency], rates, strict=True)
            ratios = [load.calls_per_s / rate if rate else float("inf") for load, rate in pairs]
            ratio = "" if server is first else f"{median(ratios):.1f} ({min(ratios):.1f}–{max(ratios):.1f})"
            p50, p99 = [load.p50_ms for load in loads], [load.p99_ms for load in loads]
            print(
                f"| {LABELS[server.name]} | {concurrency} | {spread(rates)} | {median(p50):.2f} ({min(p50):.2f}–"
                f"{max(p50):.2f}) | {median(p99):.1f} ({min(p99):.1f}–{max(p99):.1f}) | {ratio} | "
                f"{recalls[server.name]:.4f} |"
            )


def versions() -> str:
    from importlib.metadata import PackageNotFoundError, version

    found: list[Any] = []
    for name in ("faiss-cpu", "milvus-lite", "pymilvus"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--servers", nargs="+", choices=list(LABELS), default=list(LABELS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--prepare", action="store_true", help="only make what is searched, and end")
    arguments = parser.parse_args()
    data = Data(arguments.items, arguments.dimension)
    data.build_catalog(check=arguments.prepare)
    truth = data.truth()
    if "milvus" in arguments.servers:
        data.build_milvus()
    build_client()
    if arguments.prepare:
        return
    print(f"{machine()}, {versions()}")
    print(
        f"{arguments.items:,} × {arguments.dimension}, {arguments.rounds} rounds of {arguments.seconds:g} s, medians "
        "(minimum–maximum)"
    )
    with ExitStack() as stack:
        limit = stack.enter_context(process("limit", data))
        servers = contestants(arguments.servers, data, stack)
        first_line(limit)
        limits, recalls = [], {}
        for server in servers:
            server.ask_alone()
            recalls[server.name] = server.recall(truth)
        for _ in range(arguments.rounds):
            limits.append(measured_limit(limit))
            for server in servers:
                for concurrency in CONCURRENCIES:
                    server.load(concurrency, arguments.seconds)
    print_table(servers, limits, recalls)


if __name__ == "__main__":
    main()
