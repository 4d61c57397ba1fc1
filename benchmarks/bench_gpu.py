"""CUDA and TensorRT on an NVIDIA GPU: answers beside the CPU's, latency, contexts, cache, graphs, refusals.

    make bench-gpu                (ARGS="--models minilm --precisions fp16 int8 --json gpu.json")

One engine at a time. A latency is the median of its runs and their 99th percentile; beside it stands the smallest
cosine of a row's answer with the CPU's, which computes fp32 and emulates the roundings of bf16 and fp8.

`--rehearsal` puts the CPU in the place of CUDA, to look at this script where no GPU is. It has not run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "gpu"))
from gpu_graphs import MODES, GpuGraph, cosine, feeds_of, make_graph, model_of, reference_graph

from headrace_server.config import (
    BatchPolicy,
    CudaOptions,
    EngineOptions,
    ShapeProfile,
    TensorRtOptions,
    ThreadBudget,
)
from headrace_server.engines.base import Engine
from headrace_server.engines.factory import create_engine
from headrace_server.engines.installed import installed_version
from headrace_server.engines.machine.cpu import find_cpu
from headrace_server.engines.machine.cuda_devices import find_cuda
from headrace_server.errors import ServingError

ROOT = Path(__file__).resolve().parents[1]
_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_LENGTHS = {"minilm": 64, "efficientnet-lite0": 0}
_TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_LONGEST = 128
_NO_GPU = 3  # exit status


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One line of the report."""

    part: str
    model: str
    device: str
    precision: str
    what: str
    value: float = 0.0
    unit: str = ""
    p99: float = 0.0
    cosine: float = 0.0
    remark: str = ""


class Bench:
    """Opens engines one after the other, and writes down what is measured."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self.arguments, self.plans = arguments, folder / "plans"
        self.figures: list[Figure] = []
        self._graphs: dict[tuple[str, str], GpuGraph] = {}

    def graph(self, model: str, precision: str) -> GpuGraph:
        key = (model, precision)
        if key not in self._graphs:
            models, made = ROOT / "build" / "demo-models", ROOT / "build" / "gpu-graphs"
            self._graphs[key] = make_graph(models, made, model, precision)
        return self._graphs[key]

    @contextmanager
    def opened(self, graph: GpuGraph, device: str, *, num_workers: int = 1, graphs: bool = False) -> Iterator[Engine]:
        asked = "cpu" if self.arguments.rehearsal and device == "cuda:0" else device
        options = EngineOptions(
            device=asked,
            num_workers=num_workers,
            cache=self.plans,
            cuda=CudaOptions(cuda_graphs=graphs),
            tensorrt=TensorRtOptions(profiles=_profiles(graph.model), cuda_graphs=graphs),
        )
        model = model_of(graph.graph, batching=BatchPolicy(max_batch_size=max(_BATCHES)))
        engine = create_engine(model, options, ThreadBudget(num_cores=num_workers))
        try:
            yield engine
        finally:
            engine.close()

    def say(self, figure: Figure) -> None:
        self.figures.append(figure)
        said = [f"{figure.value:.3f} {figure.unit}"] if figure.unit else []
        said += [f"p99 {figure.p99:.3f}"] if figure.p99 else []
        said += [f"cosine {figure.cosine:.5f}"] if figure.cosine else []
        said += [figure.remark] if figure.remark else []
        head = f"{figure.part:<9} {figure.model:<18} {figure.device:<10} {figure.precision:<5} {figure.what:<22}"
        print(f"{head} {', '.join(said)}", flush=True)


def answers(bench: Bench, model: str, device: str, precision: str) -> None:
    """Latency and agreement by batch size."""
    graph = bench.graph(model, precision)
    facts = {"part": "latency", "model": model, "device": device, "precision": precision}
    reference = reference_graph(graph)
    with bench.opened(graph, device) as engine:
        for rows in bench.arguments.batches:
            feeds = feeds_of(model, rows, _LENGTHS[model])
            agreement = cosine(engine.run(feeds), reference.run(feeds))
            median, p99 = _timed(lambda feeds=feeds: engine.run(feeds), bench.arguments.seconds)  # type: ignore[misc]
            bench.say(Figure(**facts, what=f"{rows} rows", value=median, unit="ms", p99=p99, cosine=agreement))


def contexts(bench: Bench, model: str, device: str, precision: str) -> None:
    """Rows a second with one, two and four runs in flight."""
    graph = bench.graph(model, precision)
    for workers in (1, 2, 4):
        with bench.opened(graph, device, num_workers=workers) as engine:
            feeds = feeds_of(model, 8, _LENGTHS[model])
            rate = _rate(lambda feeds=feeds: engine.run(feeds), workers, bench.arguments.seconds) * 8  # type: ignore[misc]
        what = f"{workers} contexts of 8 rows"
        facts = {"part": "contexts", "model": model, "device": device, "precision": precision}
        bench.say(Figure(**facts, what=what, value=rate, unit="rows/s"))


def graphs(bench: Bench, model: str, device: str, precision: str) -> None:
    """Runs by recorded graph beside eager ones."""
    graph = bench.graph(model, precision)
    facts = {"part": "graphs", "model": model, "device": device, "precision": precision}
    eager: dict[int, dict[str, np.ndarray]] = {}
    for recorded in (False, True):
        with bench.opened(graph, device, graphs=recorded) as engine:
            for rows in (1, 8):
                feeds = feeds_of(model, rows, _LENGTHS[model])
                found = engine.run(feeds)
                agreement = cosine(found, eager.setdefault(rows, found))
                median, p99 = _timed(lambda feeds=feeds: engine.run(feeds), bench.arguments.seconds)  # type: ignore[misc]
                what = f"{'graphs' if recorded else 'eager'}, {rows} rows"
                bench.say(Figure(**facts, what=what, value=median, unit="ms", p99=p99, cosine=agreement))


def cache(bench: Bench, model: str, precision: str) -> None:
    """TensorRT's plans: found again, damaged, and compiled once more."""
    graph = bench.graph(model, precision)
    facts = {"part": "cache", "model": model, "device": "tensorrt:0", "precision": precision}
    expected = reference_graph(graph).run(feeds_of(model, 2, _LENGTHS[model]))

    def load(what: str) -> None:
        started = time.perf_counter()
        with bench.opened(graph, "tensorrt:0") as engine:
            seconds = time.perf_counter() - started
            agreement = cosine(engine.run(feeds_of(model, 2, _LENGTHS[model])), expected)
        bench.say(Figure(**facts, what=what, value=seconds, unit="s", cosine=agreement))

    load("loaded first")
    load("loaded again")
    for plan in bench.plans.rglob("*.plan"):
        damaged = bytearray(plan.read_bytes())
        damaged[len(damaged) // 2 :] = bytes(len(damaged) - len(damaged) // 2)
        plan.write_bytes(damaged)
    load("loaded from damage")


def refusals(bench: Bench, model: str, device: str, precision: str) -> None:
    """Shapes out of range are the caller's fault, and the engine goes on."""
    facts = {"part": "refusals", "model": model, "device": device, "precision": precision}
    with bench.opened(bench.graph(model, precision), device) as engine:
        good = feeds_of(model, 2, _LENGTHS[model])
        before = engine.run(good)
        for what, feeds in (
            ("too many rows", feeds_of(model, 2 * max(_BATCHES), _LENGTHS[model])),
            ("too long", feeds_of(model, 1, 4 * _LONGEST)),
            ("wrong rank", {name: feed[0] for name, feed in good.items()}),
        ):
            if what == "too long" and not _LENGTHS[model]:
                continue
            try:
                engine.run(feeds)
                remark = "answered"
            except ServingError as error:
                remark = f"{error.reason.name}: {error.message}"
            agreement = cosine(engine.run(good), before)
            bench.say(Figure(**facts, what=what, cosine=agreement, remark=remark))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(_LENGTHS), choices=list(_LENGTHS))
    parser.add_argument("--precisions", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--devices", nargs="*", default=["cuda:0", "tensorrt:0"])
    parser.add_argument("--batches", nargs="*", type=int, default=list(_BATCHES))
    parser.add_argument("--seconds", type=float, default=2.0, help="of each figure")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--rehearsal", action="store_true", help="the CPU in the place of CUDA")
    arguments = parser.parse_args()
    found = find_cuda()
    if found.fault and not arguments.rehearsal:
        print(f"bench-gpu: {found.fault}", file=sys.stderr)
        return _NO_GPU
    there = ", ".join(f"{gpu.name} ({gpu.compute_capability}, {gpu.memory_bytes >> 30} GiB)" for gpu in found.devices)
    print(f"{_machine()}\n{there or 'REHEARSAL: the CPU in the place of CUDA'}; CUDA {found.driver_cuda or 'none'}")
    with TemporaryDirectory() as folder:
        bench = Bench(arguments, Path(folder))
        for model in arguments.models:
            for device in arguments.devices:
                _measure(bench, model, device)
    if arguments.json:
        gpus = [asdict(gpu) for gpu in found.devices]
        figures = [asdict(figure) for figure in bench.figures]
        said = {"machine": _machine(), "gpus": gpus, "driver_cuda": found.driver_cuda, "figures": figures}
        arguments.json.write_text(json.dumps(said, indent=2) + "\n")
    return int(any(figure.what == "fault" for figure in bench.figures))


def _measure(bench: Bench, model: str, device: str) -> None:
    """Every part of one model on one device; a part that fails is a line, and the rest goes on."""
    precisions = [each for each in bench.arguments.precisions if each != "fp8" or device.startswith("tensorrt")]
    parts: list[tuple[str, Callable[[], None]]] = [
        (each, lambda each=each: answers(bench, model, device, each))  # type: ignore[misc]
        for each in precisions
    ]
    first = "fp16" if "fp16" in precisions else precisions[0]
    parts += [
        (first, lambda: contexts(bench, model, device, first)),
        (first, lambda: graphs(bench, model, device, first)),
        (first, lambda: refusals(bench, model, device, first)),
    ]
    if device.startswith("tensorrt"):
        parts.append((first, lambda: cache(bench, model, first)))
    for precision, part in parts:
        try:
            part()
        except ServingError as error:
            facts = {"part": "fault", "model": model, "device": device, "precision": precision}
            bench.say(Figure(**facts, what="fault", remark=f"{error.reason.name}: {error.message}"))


def _machine() -> str:
    cpu = find_cpu()
    packages = ("onnxruntime-gpu", "onnxruntime", "tensorrt", "cuda-bindings", "numpy")
    versions = ", ".join(f"{name} {installed_version(name)}" for name in packages if installed_version(name))
    return f"{cpu.model or cpu.architecture}, {cpu.num_cores} cores, {versions}"


def _profiles(model: str) -> tuple[ShapeProfile, ...]:
    if not _LENGTHS[model]:
        return ()
    shapes = ((1, 1), (8, _LENGTHS[model]), (max(_BATCHES), _LONGEST))
    low, middle, high = (dict.fromkeys(_TEXT_INPUTS, shape) for shape in shapes)
    return (ShapeProfile(min=low, opt=middle, max=high),)


def _timed(run: Callable[[], object], seconds: float) -> tuple[float, float]:
    """Median and 99th percentile, milliseconds."""
    for _ in range(3):
        run()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 5:
        started = time.perf_counter()
        run()
        times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(times)), float(np.percentile(times, 99))


def _rate(run: Callable[[], object], threads: int, seconds: float) -> float:
    """Runs a second of so many threads together."""
    run()
    counts = [0] * threads
    stop = threading.Event()

    def work(index: int) -> None:
        while not stop.is_set():
            run()
            counts[index] += 1

    workers = [threading.Thread(target=work, args=(index,)) for index in range(threads)]
    started = time.perf_counter()
    for worker in workers:
        worker.start()
    time.sleep(seconds)
    stop.set()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
