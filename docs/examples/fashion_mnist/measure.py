"""Each step of docs/distillation.md as a model folder, and what it costs: size, accuracy, latency.

    make distill-example            (ARGS="--rounds 9 --seconds 2")

Reads the networks that train.py wrote, writes their model folders to build/distill/models, has `headrace quantize` make
the int8 version, and prints the tables. Accuracy is of the served model: the 10,000 test pictures go over gRPC as PNG
files. Latency in this process is of ONNX Runtime alone with one thread, the steps in turn within each round; over gRPC
it is of a closed loop of one-picture calls to a server in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import numpy as np

from fashion_mnist.data import LABELS, Pictures, fetch_package, read_pictures
from fashion_mnist.folders import encoded, write_calibration, write_model
from fashion_mnist.network import Network, prune, with_small_weights_zeroed
from headrace_client import Client, Image, requests

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))

from load import machine, run_load, served  # noqa: E402  (benchmarks are no package)

_CLASSIFY = "/headrace.v1.ClassificationService/Classify"
_BATCHES = (1, 8, 32)
_ASKED_TOGETHER = 250
_CALIBRATION = 2_000
_MAX_DROP = 0.01
_ZEROED = 0.5
_FILLED = (16, 16, 32)  # channels that fill a runtime's blocks of 16
_ROUND_S = 0.05
_KINDS = {
    "student-alone": "student, trained alone",
    "student-distilled": "student, distilled",
    "few-labels": "student, trained alone, 2,000 labels",
    "no-labels": "student, distilled, no labels",
    "cut": "distilled, channels cut, not trained again",
    "pruned": "distilled, channels cut, trained again",
    "small-distilled": "network of that size, distilled from scratch",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One served version, and how it came about."""

    title: str
    model: str
    version: str
    graph: Path
    network: Network


def write_models(networks: Path, models: Path, num_seeds: int) -> list[Step]:
    """The folders of every network, those of seed 0 first in the order of the page."""
    titles = {
        "teacher": "teacher",
        "student-alone-0": "student, trained alone",
        "student-distilled-0": "student, distilled",
        "pruned-0": "distilled, channels pruned",
    }
    names = [*titles, *(
        f"{kind}-{seed}" for seed in range(num_seeds)
        for kind in _KINDS
        if f"{kind}-{seed}" not in titles and (networks / f"{kind}-{seed}.npz").is_file()
    )]  # fmt: skip
    steps = []
    for name in names:
        network = Network.load(networks / f"{name}.npz")
        graph = write_model(network, models / name)
        steps.append(Step(title=titles.get(name, ""), model=name, version="1", graph=graph, network=network))
    student = next(step.network for step in steps if step.model == "student-distilled-0")
    for name, title, network in (
        ("filled-0", "distilled, cut to 16, 16, 32, not trained again", prune(student, _FILLED)),
        ("zeroed-0", "distilled, half its weights zeroed", with_small_weights_zeroed(student, _ZEROED)),
    ):
        graph = write_model(network, models / name)
        steps.append(Step(title=title, model=name, version="1", graph=graph, network=network))
    return steps


def quantize(step: Step, calibration: Path) -> None:
    """Writes the step's int8 version beside it, as version 2, by `headrace quantize`."""
    folder = step.graph.parent.parent
    command = [
        *(str(Path(sys.executable).with_name("headrace")), "quantize", str(folder)),
        *("--target", "cpu", "--mode", "static", "--calib", str(calibration)),
        *("--limit", str(_CALIBRATION), "--max-drop", str(_MAX_DROP)),
    ]
    subprocess.run(command, check=True)


def quantized(step: Step) -> Step:
    """The version that `quantize` wrote."""
    graph = next((step.graph.parent.parent / "2").rglob("*.onnx"))
    return Step(title=f"{step.title}, int8", model=step.model, version="2", graph=graph, network=step.network)


def accuracies(steps: Sequence[Step], models: Path, test: Pictures) -> dict[str, float]:
    """The share of the test pictures that each served version names rightly, by MODEL/VERSION."""
    pictures = [Image(picture) for picture in encoded(test.pixels)]
    found = {}
    with served(models, "--versions", "all") as server, Client(server.address) as client:
        for step in steps:
            right = 0
            for first in range(0, len(pictures), _ASKED_TOGETHER):
                given = pictures[first : first + _ASKED_TOGETHER]
                answers = client.classify(step.model, given, version=step.version, top_k=1).results
                labels = test.labels[first : first + _ASKED_TOGETHER]
                right += sum(
                    answer.best is not None and answer.best.label == LABELS[label]
                    for answer, label in zip(answers, labels, strict=True)
                )
            found[f"{step.model}/{step.version}"] = right / len(pictures)
    return found


def latencies(steps: Sequence[Step], test: Pictures, rounds: int) -> dict[str, dict[int, list[float]]]:
    """Milliseconds a run by title and batch size, one figure a round; the steps run in turn within each round."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    sessions = {
        step.title: onnxruntime.InferenceSession(str(step.graph), options, providers=["CPUExecutionProvider"])
        for step in steps
    }
    values = test.values().transpose(0, 3, 1, 2)
    found: dict[str, dict[int, list[float]]] = {step.title: {batch: [] for batch in _BATCHES} for step in steps}
    for batch in _BATCHES:
        feeds = {"image": np.ascontiguousarray(values[:batch])}
        counts = {title: _count(partial(session.run, None, feeds)) for title, session in sessions.items()}
        for _ in range(rounds):
            for title, session in sessions.items():
                began = time.perf_counter()
                for _ in range(counts[title]):
                    session.run(None, feeds)
                found[title][batch].append((time.perf_counter() - began) / counts[title] * 1e3)
    return found


def _count(run: Callable[[], Any]) -> int:
    """How many runs fill a round."""
    for _ in range(3):
        run()
    began = time.perf_counter()
    run()
    return max(1, round(_ROUND_S / (time.perf_counter() - began)))


def print_seeds(found: dict[str, float], num_seeds: int) -> None:
    print("\naccuracy on the test pictures in %, by seed: mean (lowest–highest)\n")
    for kind, title in _KINDS.items():
        figures = [found[name] * 100 for seed in range(num_seeds) if (name := f"{kind}-{seed}/1") in found]
        if figures:
            spread = f"({min(figures):.2f}–{max(figures):.2f}), {len(figures)} seeds"
            print(f"  {title:46} {statistics.mean(figures):.2f} {spread}")


def print_steps(
    steps: Sequence[Step],
    found: dict[str, float],
    times: dict[str, dict[int, list[float]]],
    served_at: dict[str, tuple[float, float, float]],
) -> None:
    print("\n| step | parameters | file KB | accuracy % | B1 µs | B8 µs | B32 µs | p50 µs over gRPC | calls/s of 8 |")
    print("|---|---|---|---|---|---|---|---|---|")
    for step in steps:
        runs = " | ".join(
            f"{statistics.median(times[step.title][batch]) * 1e3:.0f} ({min(times[step.title][batch]) * 1e3:.0f}–"
            f"{max(times[step.title][batch]) * 1e3:.0f})"
            for batch in _BATCHES
        )
        p50, _, rate = served_at[step.title]
        print(
            f"| {step.title} | {step.network.num_parameters} | {step.graph.stat().st_size / 1e3:.0f} "
            f"| {found.get(f'{step.model}/{step.version}', nan) * 100:.2f} | {runs} | {p50 * 1e3:.0f} | {rate:.0f} |"
        )


def loads(steps: Sequence[Step], models: Path, test: Pictures, seconds: float) -> dict[str, tuple[float, float, float]]:
    """By title: p50 and p99 in ms of one call in flight, and calls/s with eight."""
    picture = Image(next(encoded(test.pixels[:1])))
    found = {}
    with served(models, "--versions", "all") as server:
        for step in steps:
            request = requests.classify_request(step.model, picture, version=step.version).SerializeToString()
            alone = run_load(server.address, _CLASSIFY, request, concurrency=1, seconds=seconds)
            together = run_load(server.address, _CLASSIFY, request, concurrency=8, seconds=seconds)
            found[step.title] = (alone.p50_ms, alone.p99_ms, together.calls_per_s)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "cache")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "distill")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--timed-only", action="store_true", help="latency alone, of models that are there")
    arguments = parser.parse_args()
    _, validation, test = read_pictures(fetch_package(arguments.cache))
    models: Path = arguments.out / "models"
    record: Path = arguments.out / "accuracy.json"
    if models.exists() and not arguments.timed_only:
        shutil.rmtree(models)
    steps = write_models(arguments.out / "networks", models, arguments.seeds)
    pruned = next(step for step in steps if step.model == "pruned-0")
    if not arguments.timed_only:
        quantize(pruned, write_calibration(validation, arguments.out / "calibration", _CALIBRATION))
    steps.append(quantized(pruned))
    shown = [step for step in steps if step.title]
    if arguments.timed_only:
        found = json.loads(record.read_text(encoding="utf-8"))
    else:
        found = accuracies(steps, models, test)
        record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(machine())
    print_seeds(found, arguments.seeds)
    times = latencies(shown, test, arguments.rounds)
    print_steps(shown, found, times, loads(shown, models, test, arguments.seconds))


if __name__ == "__main__":
    main()
