"""What `headrace doctor` found, as people read it."""

from __future__ import annotations

from collections.abc import Iterator

from headrace_server.cli.doctor import Examination
from headrace_server.cli.doctor_machine import MachineFacts
from headrace_server.cli.tables import table
from headrace_server.engines.probes.probe import EngineProbe

__all__ = ["doctor_text"]

_FEW_OPEN_FILES = 4096


def doctor_text(found: Examination) -> str:
    """Machine, GPUs, engines, packages, and at the end what is wrong and what cures it."""
    blocks = [
        "\n".join(_machine(found.machine)),
        table(("engine", "device", "precision", "", "ms"), map(_engine, found.engines), numbers=[4]),
        "\n".join(f"{name:<11} {state or fault}" for name, state, fault in found.parts),
        "packages    " + ", ".join(f"{name} {version}" for name, version in found.versions.items() if version),
    ]
    missing = [(extra.name, extra.what_for, extra.cure) for extra in found.extras if extra.missing]
    if missing:
        blocks.append(table(("extra, not installed", "for", "command"), missing))
    blocks.append("\n".join(_verdict(found)))
    return "\n\n".join(blocks)


def _machine(machine: MachineFacts) -> Iterator[str]:
    cpu, memory, limits = machine.cpu, machine.memory, machine.limits
    yield f"system      {machine.system}, Python {machine.python}"
    within = "" if cpu.container_cores is None else f", {cpu.container_cores:g} of the container"
    yield f"cpu         {cpu.model or cpu.architecture}, {cpu.cores} cores{within}"
    yield f"multiplies  {' '.join(cpu.instructions) or 'no wider than the architecture'}"
    limit = "" if memory.container_bytes is None else f", the container {_gib(memory.container_bytes)}"
    yield f"memory      {_gib(memory.total_bytes)}, {_gib(memory.available_bytes)} free{limit}"
    few = " (few: a connection is one)" if limits.open_files is not None and limits.open_files < _FEW_OPEN_FILES else ""
    files = "any number of" if limits.open_files is None else str(limits.open_files)
    locked = "any" if limits.locked_memory_bytes is None else f"{limits.locked_memory_bytes / 2**20:.0f} MiB of"
    yield f"limits      {files} open files{few}, {locked} locked memory, /dev/shm {_gib(limits.shared_memory_bytes)}"
    for port in machine.ports:
        if not port.is_free:
            yield f"port        {port.address} ({port.what_for}) is taken"
    if machine.cuda.fault:
        yield f"gpu         none: {machine.cuda.fault}"
    for device in machine.cuda.devices:
        size = _gib(device.memory_bytes)
        yield f"gpu         cuda:{device.index} {device.name}, compute capability {device.compute_capability}, {size}"
    if machine.cuda.driver_cuda:
        yield f"driver      for CUDA {machine.cuda.driver_cuda}"


def _engine(probe: EngineProbe) -> tuple[str, str, str, str, str]:
    runtime = f" ({probe.runtime})" if probe.runtime else ""
    state = f"runs{runtime}" if probe.runs else f"no: {probe.fault}"
    time = f"{probe.time_ms:.0f}" if probe.runs else ""
    return probe.name, probe.device or "-", probe.precision or "-", state, time


def _verdict(found: Examination) -> Iterator[str]:
    for reason, cure in found.problems:
        yield f"problem     {reason}"
        if cure:
            yield f"  cure      {cure}"
    for probe in found.engines:
        if not probe.runs and probe.device and probe.cure:
            yield f"{probe.device:<11} {probe.cure}"
    if found.problems:
        yield "Nothing can be served here."
    else:
        running = dict.fromkeys(probe.device for probe in found.engines if probe.runs and probe.device)
        yield f"Serving works here, on {', '.join(running)}."


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
