"""One server of the recommendation comparison, in a process of its own: prints its address, ends when stdin does.

    python benchmarks/recommend_server.py headrace | faiss | faiss-grouped NUM_ITEMS DIMENSION
    python benchmarks/recommend_server.py limit NUM_ITEMS DIMENSION

headrace        the server as it is, with one catalog and no models
faiss           faiss.knn behind the same transport and messages: one worker a core, each a call a search
faiss-grouped   the same, but one worker takes all calls that wait, at most 32, into one search on all cores
limit           no server: for each line read, milliseconds of our kernel alone, as JSON
"""

from __future__ import annotations

import json
import logging
import os
import queue
import statistics
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from recommend_data import Data, K, item_id

CORES = len(os.sched_getaffinity(0))
MAX_GROUP = 32
BATCHES = (1, 8, 32)
_LIMIT_S = 0.4


def serve_headrace(data: Data) -> None:
    from headrace_server.server import Server

    logging.disable()  # it says that there are no models
    with TemporaryDirectory() as models:
        server = Server(repository=Path(models), listen="127.0.0.1:0", catalogs=data.catalogs)
        print(server.start().grpc[0], flush=True)
        sys.stdin.read()
        server.stop(0)


class FaissWorkers:
    """Answers calls of Recommend by exact search: `num_workers` threads, each up to `max_group` calls a search."""

    def __init__(self, data: Data, *, num_workers: int, max_group: int, num_threads: int) -> None:
        import faiss

        self._faiss: Any = faiss
        faiss.cvar.distance_compute_blas_threshold = 20
        self._items = data.items()
        self._ids = [item_id(number) for number in range(data.num_items)]
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._max_group = max_group
        self._num_threads = num_threads
        self.put = self._calls.put
        for _ in range(num_workers):
            threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        from headrace.v1 import recommendation_pb2 as pb

        self._faiss.omp_set_num_threads(self._num_threads)  # of this thread's searches
        while True:
            calls = [self._calls.get()]
            while len(calls) < self._max_group:
                try:
                    calls.append(self._calls.get_nowait())
                except queue.Empty:
                    break
            queries = [
                np.frombuffer(pb.RecommendRequest.FromString(call.message).query.vectors.data, dtype="<f4")
                for call in calls
            ]
            # What IndexFlatIP computes, without a copy of the items.
            scores, rows = self._faiss.knn(np.stack(queries), self._items, K, metric=self._faiss.METRIC_INNER_PRODUCT)
            for call, found, best in zip(calls, rows.tolist(), scores.tolist(), strict=True):
                response = pb.RecommendResponse()
                answer = response.results.add(exact=True)
                for row, score in zip(found, best, strict=True):
                    answer.items.add(score=score).item.id = self._ids[row]
                call.reply(response.SerializeToString())


def serve_faiss(data: Data, grouped: bool) -> None:
    from headrace_server.config import TransportOptions
    from headrace_server.rpc.transport.call import Kind, Method
    from headrace_server.rpc.transport.select import open_transport

    workers = FaissWorkers(
        data,
        num_workers=1 if grouped else CORES,
        max_group=MAX_GROUP if grouped else 1,
        num_threads=CORES if grouped else 1,
    )
    transport = open_transport(
        TransportOptions(listen=("127.0.0.1:0",), transport="direct"),
        [Method("/headrace.v1.RecommendationService/Recommend", Kind.UNARY, workers.put)],
    )
    print(transport.start()[0], flush=True)
    sys.stdin.read()
    transport.stop(0)


def measure_limit(data: Data) -> None:
    """For each line of stdin: {batch size: milliseconds a scan on all cores}, the median of a moment's."""
    from headrace_kernels.packing import pack_items
    from headrace_kernels.scan import scan_topk

    items, queries = pack_items(data.items()), data.queries()
    print("ready", flush=True)
    for _ in sys.stdin:
        milliseconds = {}
        for size in BATCHES:
            taken: list[float] = []
            until = time.perf_counter() + _LIMIT_S
            while time.perf_counter() < until:
                began = time.perf_counter()
                scan_topk(items, queries[:size], K, num_threads=CORES)
                taken.append((time.perf_counter() - began) * 1e3)
            milliseconds[size] = statistics.median(taken)
        print(json.dumps(milliseconds), flush=True)


def main() -> None:
    name, num_items, dimension = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    data = Data(num_items, dimension)
    if name == "headrace":
        serve_headrace(data)
    elif name == "limit":
        measure_limit(data)
    else:
        serve_faiss(data, grouped=name == "faiss-grouped")


if __name__ == "__main__":
    main()
