"""What a machine and its packages are, as far as serving cares: read from the system, nothing of it is started."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import resource
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path

from headrace_server.engines.installed import installed_version
from headrace_server.engines.machine.cpu import find_cpu
from headrace_server.engines.machine.cuda_devices import CudaMachine, find_cuda

__all__ = [
    "CpuFacts",
    "Extra",
    "LimitFacts",
    "MachineFacts",
    "MemoryFacts",
    "PortFacts",
    "installed_extras",
    "read_machine",
    "versions",
]

# What engines and kernels multiply with, by the kernel's names of flags, narrowest first.
_INSTRUCTIONS = (
    "avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip
_PACKAGES = (
    "headrace", "headrace-protos", "headrace-client", "onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino",
    "tensorrt", "tensorrt-rtx", "cuda-bindings", "grpcio", "protobuf", "numpy", "tokenizers", "llguidance", "pillow",
)  # fmt: skip
# Extras for those who serve, and what each is for; the others are for those who work on Headrace itself.
_PURPOSES = {
    "cpu": "ONNX Runtime on CPUs",
    "gpu": "ONNX Runtime on NVIDIA GPUs; instead of cpu",
    "openvino": "the fast way on CPUs with AMX or AVX-512",
    "tensorrt": "TensorRT 11 on NVIDIA GPUs",
    "tensorrt-rtx": "TensorRT for GeForce and RTX GPUs; compiles without one",
    "quantize": "headrace quantize",
    "demo": "headrace demo, headrace tour",
    "arrow": "catalogs to and from Parquet and Arrow",
    "otel": "traces over OTLP",
    "train": "headrace recommend train --model als",
}
_REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+).*extra\s*==\s*['\"]([^'\"]+)['\"]")
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuFacts:
    """`cores` this process may use; `container_cores`: how many cores' time it has, None: as much as there is.

    kernels  the variant of Headrace's own kernels that is used; "": they are not compiled
    """

    model: str
    architecture: str
    cores: int
    container_cores: float | None
    instructions: tuple[str, ...]
    kernels: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFacts:
    """Bytes; None where the system does not say, or sets no limit."""

    total_bytes: int | None
    available_bytes: int | None
    container_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitFacts:
    """Limits of this process; None: none. `shared_memory_bytes` is the size of /dev/shm."""

    open_files: int | None
    locked_memory_bytes: int | None
    shared_memory_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortFacts:
    """A port that `headrace serve` takes unless told otherwise."""

    address: str
    what_for: str
    is_free: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """Everything of the machine."""

    system: str
    python: str
    cpu: CpuFacts
    memory: MemoryFacts
    limits: LimitFacts
    ports: tuple[PortFacts, ...]
    cuda: CudaMachine


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """An extra of the headrace distribution: what it is for, and which of its packages are not there."""

    name: str
    what_for: str
    missing: tuple[str, ...]

    @property
    def cure(self) -> str:
        """The command that installs it; "" where it is installed. cpu and gpu exclude each other."""
        if not self.missing:
            return ""
        other = {"cpu": "onnxruntime-gpu", "gpu": "onnxruntime"}.get(self.name, "")
        first = f"pip uninstall {other} && " if other and installed_version(other) else ""
        return f"{first}pip install 'headrace[{self.name}]'"


def read_machine() -> MachineFacts:
    cpu = find_cpu()
    return MachineFacts(
        system=f"{platform.system()} {platform.release()}, {platform.libc_ver()[0]} {platform.libc_ver()[1]}".rstrip(
            ", "
        ),
        python=platform.python_version(),
        cpu=CpuFacts(
            model=cpu.model,
            architecture=cpu.architecture,
            cores=cpu.num_cores,
            container_cores=_container_cores(),
            instructions=tuple(flag for flag in _INSTRUCTIONS if flag in cpu.flags),
            kernels=_kernels(),
        ),
        memory=_memory(),
        limits=_limits(),
        ports=tuple(
            PortFacts(address=f"127.0.0.1:{port}", what_for=what_for, is_free=_is_free(port))
            for port, what_for in ((50051, "gRPC"), (50052, "management"), (9090, "admin"))
        ),
        cuda=find_cuda(),
    )


def versions() -> dict[str, str]:
    """Versions of the packages that serving stands on; "" of those that are not installed."""
    return {name: installed_version(name) for name in _PACKAGES}


def installed_extras() -> tuple[Extra, ...]:
    """The extras for those who serve, read from the distribution's own metadata; () where it is not installed."""
    needs: dict[str, list[str]] = {}
    try:
        requirements = importlib.metadata.requires("headrace") or []
    except importlib.metadata.PackageNotFoundError:
        return ()
    for requirement in requirements:
        found = _REQUIREMENT.match(requirement)
        if found and found[2] in _PURPOSES:
            needs.setdefault(found[2], []).append(found[1])
    return tuple(
        Extra(
            name=name,
            what_for=what_for,
            missing=tuple(package for package in needs[name] if not installed_version(package)),
        )
        for name, what_for in _PURPOSES.items()
        if name in needs
    )


def _kernels() -> str:
    try:
        from headrace_kernels import isa
    except ImportError:
        return ""
    return isa()


def _container_cores() -> float | None:
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        return int(quota) / int(period)
    quota, period = (_read(_CGROUP / "cpu" / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() else None


def _memory() -> MemoryFacts:
    said = {
        key: int(value.split()[0]) * 1024
        for key, _, value in (line.partition(":") for line in _read(Path("/proc/meminfo")).splitlines())
        if value.split()[:1] and value.split()[0].isdecimal()
    }
    total = said.get("MemTotal")
    limit = _read(_CGROUP / "memory.max") or _read(_CGROUP / "memory" / "memory.limit_in_bytes")
    container = int(limit) if limit.isdecimal() else None
    if container is not None and total is not None and container >= total:
        container = None  # the first version writes a number that nobody reaches where there is no limit
    return MemoryFacts(total_bytes=total, available_bytes=said.get("MemAvailable"), container_bytes=container)


def _limits() -> LimitFacts:
    try:
        shared: int | None = shutil.disk_usage("/dev/shm").total
    except OSError:
        shared = None
    return LimitFacts(
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_memory_bytes=_limit(resource.RLIMIT_MEMLOCK),
        shared_memory_bytes=shared,
    )


def _limit(which: int) -> int | None:
    soft = resource.getrlimit(which)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""
