"""The load client as a function, and a served process as a context: shared by the benchmarks over gRPC."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
_CLIENT = ROOT / "build" / "bench" / "load_client"
_SOURCE = ROOT / "benchmarks" / "load_client.cc"


@dataclass(frozen=True, slots=True)
class Load:
    """What one closed-loop run measured."""

    calls_per_s: float
    messages_per_s: float
    p50_ms: float
    p99_ms: float
    client_cpu_s: float


def build_client() -> Path:
    """The compiled load client. Exits with the cure where gRPC's C++ headers are missing."""
    if _CLIENT.exists() and _CLIENT.stat().st_mtime >= _SOURCE.stat().st_mtime:
        return _CLIENT
    _CLIENT.parent.mkdir(parents=True, exist_ok=True)
    compiler = shutil.which("c++") or shutil.which("g++")
    command = [compiler or "c++", "-O2", "-std=c++17", str(_SOURCE), "-o", str(_CLIENT), *_libraries()]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(getattr(error, "stderr", "")[-2000:], file=sys.stderr)
        sys.exit("the load client needs a C++ compiler and gRPC for C++ (Debian: apt-get install g++ libgrpc++-dev)")
    return _CLIENT


def _libraries() -> list[str]:
    """What gRPC's C++ library is linked with: some builds need every library below it named."""
    try:
        done = subprocess.run(["pkg-config", "--libs", "grpc++"], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError):
        return ["-lgrpc++", "-lgrpc", "-lgpr"]
    return done.stdout.split()


def run_load(
    address: str,
    method: str,
    request: bytes | Sequence[bytes],
    *,
    concurrency: int,
    seconds: float,
    stream: bool = False,
    expect: bytes | Sequence[bytes] | None = None,
) -> Load:
    """Closed-loop calls for `seconds` after a warm-up of a fifth of it. Raises RuntimeError if any call failed.

    request  one message, or several that calls take in turn
    expect   what each call must be answered: one message, or one a request; None: not looked at
    """
    with tempfile.TemporaryDirectory() as folder:
        request_file = Path(folder, "request")
        request_file.write_bytes(request if isinstance(request, bytes) else _framed(request))
        command = [str(build_client()), address, method, str(request_file), str(concurrency), str(seconds)]
        if stream:
            command.append("stream")
        if not isinstance(request, bytes):
            command.append("framed")
        if expect is not None:
            expect_file = Path(folder, "expect")
            expect_file.write_bytes(expect if isinstance(expect, bytes) else _framed(expect))
            command.append(f"expect={expect_file}")
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds * 1.2 + 90, check=False)
    if not done.stdout:
        raise RuntimeError(f"the load client failed: {done.stderr.strip()}")
    answer = json.loads(done.stdout)
    if answer["failures"]:
        raise RuntimeError(f"{answer['failures']} calls failed, the first with: {answer['first_failure']}")
    return Load(
        answer["calls_per_s"],
        answer["messages_per_s"],
        answer["p50_us"] / 1000,
        answer["p99_us"] / 1000,
        answer["client_cpu_s"],
    )


def _framed(messages: Sequence[bytes]) -> bytes:
    return b"".join(len(message).to_bytes(4, "little") + message for message in messages)


@dataclass(frozen=True, slots=True)
class Served:
    """A server in a process of its own."""

    address: str
    ready_s: float  # from the start of the process until health says SERVING
    process: psutil.Process

    @property
    def rss_mb(self) -> float:
        return float(self.process.memory_info().rss) / 1e6

    @property
    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextlib.contextmanager
def served(repository: Path, *options: str) -> Iterator[Served]:
    """`headrace serve` on a free port, until the block ends; on the CPU provider where `options` name no device."""
    from headrace_client import Client

    with tempfile.TemporaryDirectory() as folder:
        port_file = Path(folder, "ports")
        command = [
            *(str(Path(sys.executable).with_name("headrace")), "serve", str(repository)),
            *("--listen", "127.0.0.1:0", "--admin", "off", "--port-file", str(port_file), "--log-level", "warning"),
            *(() if "--device" in options else ("--device", "cpu")),
            *options,
        ]
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "PYTHONWARNINGS": "ignore"})
        try:
            address = _wait_for_address(port_file, process)
            with Client(address) as client:
                while not client.is_ready():
                    if process.poll() is not None or time.perf_counter() - started > 60:
                        raise RuntimeError("the server did not become ready")
                    time.sleep(0.005)
            yield Served(address, time.perf_counter() - started, psutil.Process(process.pid))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


def _wait_for_address(port_file: Path, process: subprocess.Popen[bytes]) -> str:
    until = time.perf_counter() + 60
    while time.perf_counter() < until and process.poll() is None:
        if port_file.exists() and (words := port_file.read_text().split()):  # "grpc ADDRESS" a line
            return words[1]
        time.sleep(0.005)
    raise RuntimeError("the server did not say where it listens")


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> str:
    """Median with minimum and maximum."""
    return f"{statistics.median(values):.0f} ({min(values):.0f}–{max(values):.0f})"


def machine() -> str:
    """One line about what this ran on."""
    import platform
    from importlib.metadata import version

    model = "unknown processor"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    packages = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf", "onnxruntime", "numpy"))
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}, {packages}"
