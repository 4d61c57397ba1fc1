"""Engines beside each other: the demo's models in process, and MiniLM over gRPC.

    make bench-engines            (ARGS="--part grpc --rounds 5 --seconds 4")

In process: one run at a time on one thread, the engines in turns, the shortest of the rounds; beside each figure the
smallest cosine of a row's answer with that of ONNX Runtime in fp32. Over gRPC: the whole server, one text of 32 tokens
a call, 32 calls in flight, its engines in turns.
"""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from bench_serving import _EMBED, _TEXT_32, request_bytes
from load import ROOT, machine, median, run_load, served, spread

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.choosing.sample_batches import sample_batches
from headrace_server.engines.factory import create_engine
from headrace_server.errors import ServingError
from headrace_server.models.inputs import Input, TextInput
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, PrepareOptions, Task

_MODELS = ROOT / "build" / "demo-models"
_VOCABULARY = """
    river water mill hill stone bread market winter garden letter window signal number paper engine table music summer
    doctor village orange silver morning question answer church station mountain island harbour ticket animal
"""
_WORDS = _VOCABULARY.split()


@dataclass(frozen=True, slots=True)
class Variant:
    """An engine of a model, by the version that holds its graph."""

    version: str
    device: str
    precision: str

    @property
    def name(self) -> str:
        runtime = "OpenVINO" if self.device == "openvino" else "ORT"
        weights = " of int8 weights" if self.version == "2" and self.precision == "bf16" else ""
        return f"{runtime} {self.precision}{weights}"


_FP32 = [Variant("1", "cpu", "fp32"), Variant("1", "openvino", "fp32"), Variant("1", "openvino", "bf16")]
# The demo's version 2 keeps weights in 8 bits and multiplies floats.
_INT8 = [Variant("2", "cpu", "int8"), Variant("2", "openvino", "int8"), Variant("2", "openvino", "bf16")]
_IN_PROCESS = {
    "minilm": ([*_FP32, *_INT8], [(1, 32), (8, 32), (32, 32), (1, 128), (8, 128), (32, 128)]),
    "efficientnet-lite0": (_FP32, [(1, 0), (8, 0)]),
    "spam": (_FP32, [(1, 32), (8, 32)]),
    "magika": (_FP32, [(1, 0), (8, 0)]),
    "synthetic-churn": (_FP32, [(1, 0), (32, 0)]),
}


def texts(count: int, tokens: int) -> list[Input]:
    """Texts of so many tokens, the two marks of a sentence among them."""
    random = np.random.default_rng(tokens)
    return [TextInput(" ".join(random.choice(_WORDS, tokens - 2))) for _ in range(count)]


def feeds_of(model: Model, engine: Engine, rows: int, tokens: int) -> dict[str, np.ndarray]:
    if tokens:
        pipeline = next(iter(model.pipelines.values()))
        return pipeline.collate(pipeline.prepare(texts(rows, tokens), PrepareOptions()))
    (batch,) = [
        each
        for each in sample_batches(replace(model, batching=replace(model.batching, max_batch_size=rows)), engine.inputs)
        if each.shape.split(" ")[0] == str(rows)
    ][:1] or [_repeated(model, engine, rows)]
    return dict(batch.feeds)


def _repeated(model: Model, engine: Engine, rows: int):  # type: ignore[no-untyped-def]
    """One row as often as wanted: where no more than that can be made up."""
    batch = sample_batches(model, engine.inputs)[0]
    return replace(batch, feeds={name: np.repeat(array[:1], rows, axis=0) for name, array in batch.feeds.items()})


def answers(model: Model, engine: Engine, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """f64[b, …] of what callers are told, or of the graph's last output in floats."""
    pipeline = next((model.pipelines[task] for task in Task if task in model.pipelines), None)
    outputs = engine.run(feeds, None if pipeline is None else pipeline.graph_outputs)
    found = outputs if pipeline is None else pipeline.reduce(outputs, feeds)
    values = [array for array in found.values() if array.dtype.kind == "f"][-1]
    return values.astype(np.float64).reshape(len(values), -1)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def in_process(name: str, rounds: int) -> None:
    variants, shapes = _IN_PROCESS[name]
    engines: list[tuple[Variant, Model, Engine]] = []
    print(f"\n### {name}, one run at a time on one thread, {rounds} rounds in turns\n")
    for variant in variants:
        model = load_model(_MODELS / name / variant.version, name=name, version=variant.version)
        options = EngineOptions(device=variant.device, precision=variant.precision)
        try:
            engine = create_engine(model, options, ThreadBudget(num_workers=1, intra_op_threads=1))
        except ServingError as error:
            print(f"{variant.name}: {error.message}\n")
            continue
        engines.append((variant, model, engine))
    print("| shape | " + " | ".join(variant.name for variant, _, _ in engines) + " |")
    print("|---" * (len(engines) + 1) + "|")
    for rows, tokens in shapes:
        feeds = [feeds_of(model, engine, rows, tokens) for _, model, engine in engines]
        expected = answers(engines[0][1], engines[0][2], feeds[0])
        shortest = [float("inf")] * len(engines)
        cosines = [
            cosine(answers(model, engine, given), expected)
            for (_, model, engine), given in zip(engines, feeds, strict=True)
        ]
        for _ in range(rounds):
            for index, (_, _, engine) in enumerate(engines):
                began = time.perf_counter()
                engine.run(feeds[index])
                shortest[index] = min(shortest[index], time.perf_counter() - began)
        cells = [
            f"{seconds * 1e3:.3g} ms, {shortest[0] / seconds:.2f}×, {each:.5f}"
            for seconds, each in zip(shortest, cosines, strict=True)
        ]
        shape = f"{rows} × {tokens} tokens" if tokens else f"{rows}"
        print(f"| {shape} | " + " | ".join([f"{shortest[0] * 1e3:.3g} ms", *cells[1:]]) + " |", flush=True)
    for _, _, engine in engines:
        engine.close()


def over_grpc(rounds: int, seconds: float, concurrency: int, variants: Sequence[Variant]) -> None:
    rates: dict[Variant, list[float]] = {variant: [] for variant in variants}
    p50: dict[Variant, list[float]] = {variant: [] for variant in variants}
    p99: dict[Variant, list[float]] = {variant: [] for variant in variants}
    vectors: dict[Variant, np.ndarray] = {}
    rss: dict[Variant, float] = {}
    for _ in range(rounds):
        for variant in variants:
            repository = ROOT / "build" / "bench" / f"minilm-{variant.version}"  # this version alone
            shutil.copytree(
                _MODELS / "minilm" / variant.version, repository / "minilm" / variant.version, dirs_exist_ok=True
            )
            options = ("--device", variant.device, "--precision", variant.precision)
            with served(repository, *options) as server:
                load = run_load(server.address, _EMBED, request_bytes(""), concurrency=concurrency, seconds=seconds)
                rates[variant].append(load.calls_per_s)
                p50[variant].append(load.p50_ms)
                p99[variant].append(load.p99_ms)
                rss[variant] = server.rss_mb
                if variant not in vectors:
                    vectors[variant] = _embeddings(server.address)
    first = variants[0]
    print(f"\n### MiniLM over gRPC, one text of 32 tokens a call, {concurrency} in flight; {rounds} rounds in turns\n")
    print("| engine | requests/s | of ORT fp32 | cosine mean, smallest | p50 ms | p99 ms | RSS MB |")
    print("|---|---|---|---|---|---|---|")
    for variant in variants:
        ratios = [a / b for a, b in zip(rates[variant], rates[first], strict=True)]
        cosines = (vectors[variant] * vectors[first]).sum(1)
        print(
            f"| {variant.name} | {spread(rates[variant])} | {median(ratios):.2f}× ({min(ratios):.2f}–{max(ratios):.2f})"
            f" | {cosines.mean():.5f}, {cosines.min():.5f} | {median(p50[variant]):.1f} | {median(p99[variant]):.1f}"
            f" | {rss[variant]:.0f} |"
        )


def _embeddings(address: str) -> np.ndarray:
    """Of texts of many lengths, asked as any client asks."""
    from headrace_client import Client

    asked = [_TEXT_32, *(text.text for count in (8, 20, 40, 90) for text in texts(16, count))]  # type: ignore[union-attr]
    with Client(address) as client:
        return np.asarray(client.embed("minilm", asked).vectors, np.float64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=["all", "in-process", "grpc"], default="all")
    parser.add_argument("--models", nargs="*", default=list(_IN_PROCESS), help="of the part in process")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--engines", nargs="*", default=[], help="of the part over gRPC, as 'OpenVINO bf16'")
    arguments = parser.parse_args()
    os.environ.setdefault("HEADRACE_ENGINE_CACHE", "off")
    print(machine())
    if arguments.part != "grpc":
        for name in arguments.models:
            in_process(name, arguments.rounds)
    if arguments.part != "in-process":
        wanted = [each for each in (*_FP32, *_INT8) if not arguments.engines or each.name in arguments.engines]
        over_grpc(arguments.rounds, arguments.seconds, arguments.concurrency, wanted)


if __name__ == "__main__":
    main()
