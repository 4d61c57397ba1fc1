"""The Open Inference Protocol beside plain grpc.aio and Triton's own server with its Python backend.

    make bench-oip            (ARGS="--rounds 5 --seconds 2 --parts identity minilm analyzer")

    identity   f32[1,16] back as it came; ours both answered on the transport's thread (batching.inline) and through the
               Batcher
    minilm     one text of 32 tokens to its sentence vector, int8; the same graph, tokenizer and pooling everywhere
    analyzer   what perf_analyzer reports of ours and of Triton

The load is a C++ client with one thread and one connection on the same cores; of the identity it compares every answer.
All servers run at once and are asked by turns: a round asks each once at every concurrency.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import struct
import tempfile
from pathlib import Path

from load import ROOT, Load, Served, build_client, machine, run_load, spread
from oip_servers import TRITON, WIDTH, headrace, infer, perf_analyzer, plain_aio, triton, write_repository

from headrace_server.rpc.inference import messages as pb

INFER = "/inference.GRPCInferenceService/ModelInfer"
IDENTITY = ("headrace, inline", "headrace, Batcher", "grpc.aio", "Triton")
MINILM = ("headrace", "grpc.aio", "Triton")
MODELS = {"headrace, inline": "identity_inline"}
CONCURRENCIES = (1, 8, 32, 64)
WANTED = {("headrace, inline", 64): "≥ 1.1, aim 1.5", ("headrace, Batcher", 64): "aim 1", ("headrace", 32): "≥ 1"}
_SENTENCE = "the river carries water from the hills down to the mill and then on to the sea"
_TEXT = " ".join(f"{_SENTENCE} {_SENTENCE}".split()[:30]).encode()  # 30 word pieces and the two marks of a sentence


def identity_request(model: str) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="INPUT0", datatype="FP32", shape=(1, WIDTH))
    data = struct.pack(f"<{WIDTH}f", *range(WIDTH))
    return pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[data]).SerializeToString()


def minilm_request(model: str) -> bytes:
    tensor = pb.ModelInferRequest.InferInputTensor(name="text_input", datatype="BYTES", shape=(1, 1))
    data = struct.pack("<I", len(_TEXT)) + _TEXT
    return pb.ModelInferRequest(model_name=model, inputs=[tensor], raw_input_contents=[data]).SerializeToString()


def compare(
    names: tuple[str, ...],
    servers: dict[str, Served],
    requests: dict[str, bytes],
    expected: dict[str, bytes | None],
    rounds: int,
    seconds: float,
) -> None:
    found: dict[tuple[str, int], list[Load]] = {}
    cpu: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for concurrency in CONCURRENCIES:
            for name in names:
                server = servers[name.split(",")[0]]
                before = cpu_s(server)
                load = run_load(
                    server.address,
                    INFER,
                    requests[name],
                    concurrency=concurrency,
                    seconds=seconds,
                    expect=expected[name],
                )
                found.setdefault((name, concurrency), []).append(load)
                # The client does not count its warm-up, a fifth of the time; the server works in it all the same.
                spent = (cpu_s(server) - before) / (load.calls_per_s * seconds * 1.2) * 1e6
                cpu.setdefault((name, concurrency), []).append(spent)
    print("| | in flight | requests/s | p50 ms | p99 ms | CPU µs of the server | ÷ Triton |")
    print("|---|---|---|---|---|---|---|")
    for concurrency in CONCURRENCIES:
        for name in names:
            loads = found[name, concurrency]
            ratio = ""
            if "Triton" in names:
                peers = found["Triton", concurrency]
                ratios = [ours.calls_per_s / peer.calls_per_s for ours, peer in zip(loads, peers, strict=True)]
                ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
            wanted = WANTED.get((name, concurrency))
            print(
                f"| {name} | {concurrency} | {spread([load.calls_per_s for load in loads])} "
                f"| {statistics.median(load.p50_ms for load in loads):.2f} "
                f"| {statistics.median(load.p99_ms for load in loads):.2f} "
                f"| {statistics.median(cpu[name, concurrency]):.0f} | {ratio}{f', wanted {wanted}' if wanted else ''} |"
            )
    print()


def cpu_s(server: Served) -> float:
    """Of the process and those it started: Triton's backend computes in processes of its own."""
    processes = [server.process, *server.process.children(recursive=True)]
    return sum(each.cpu_times().user + each.cpu_times().system for each in processes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minilm", type=Path, default=ROOT / "build" / "demo-models" / "minilm" / "2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--parts", nargs="*", default=["identity", "minilm", "analyzer"])
    arguments = parser.parse_args()
    build_client()
    print(machine())
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        repository = write_repository(folder / "models", arguments.minilm)
        servers = {
            "headrace": stack.enter_context(headrace(repository)),
            "grpc.aio": stack.enter_context(plain_aio(arguments.minilm)),
        }
        has_triton = (TRITON / ".installed").exists()
        if has_triton:
            servers["Triton"] = stack.enter_context(triton(arguments.minilm))
        else:
            print("Triton is not installed: make build/bench/triton/.installed")
        print(f"{arguments.rounds} rounds, interleaved, {arguments.seconds:g} s a load; median (minimum–maximum)\n")
        if "identity" in arguments.parts:
            names = tuple(name for name in IDENTITY if name.split(",")[0] in servers)
            requests = {name: identity_request(MODELS.get(name, "identity")) for name in names}
            expected: dict[str, bytes | None] = {}
            for name in names:
                answer = infer(servers[name.split(",")[0]].address, requests[name])
                (raw,) = pb.ModelInferResponse.FromString(answer).raw_output_contents
                assert raw == struct.pack(f"<{WIDTH}f", *range(WIDTH)), name
                expected[name] = answer
            print(f"identity, {len(requests[names[0]])} bytes in, {len(expected[names[0]] or b'')} out\n")
            compare(names, servers, requests, expected, arguments.rounds, arguments.seconds)
        if "minilm" in arguments.parts:
            names = tuple(name for name in MINILM if name in servers)
            requests = {name: minilm_request("minilm.embed" if name == "headrace" else "minilm") for name in names}
            vectors = [infer(servers[name].address, requests[name]) for name in names]
            vectors = [pb.ModelInferResponse.FromString(answer).raw_output_contents[0] for answer in vectors]
            first, *others = [struct.unpack(f"<{len(vector) // 4}f", vector) for vector in vectors]
            for other in others:
                assert sum(a * b for a, b in zip(first, other, strict=True)) > 0.999, "the servers' vectors differ"
            print("minilm, one text of 32 tokens\n")
            compare(names, servers, requests, dict.fromkeys(names), arguments.rounds, arguments.seconds)
        if "analyzer" in arguments.parts and has_triton:
            for name, model in (("headrace", "identity_inline"), ("headrace", "identity"), ("Triton", "identity")):
                print(f"perf_analyzer, {name}, {model}, 64 in flight\n")
                report = perf_analyzer(servers[name].address, model, 64, arguments.seconds)
                start = report.find("Request concurrency")
                print(report[start:] if start >= 0 else report)


if __name__ == "__main__":
    main()
