"""`headrace doctor`: what this machine has, which engines really run on it, and what cures those that do not."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace_server.cli.faults import FAILURE, fail, plain_failures

if TYPE_CHECKING:
    from headrace_server.cli.doctor_machine import Extra, MachineFacts
    from headrace_server.engines.probes.probe import EngineProbe

__all__ = ["Examination", "doctor", "examine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """Everything that was found.

    parts     what serving needs besides an engine: (name, how it is, fault); a fault of "" is none
    problems  why serving cannot work, each with its cure; none: it can
    """

    machine: MachineFacts
    versions: dict[str, str]
    extras: tuple[Extra, ...]
    engines: tuple[EngineProbe, ...]
    parts: tuple[tuple[str, str, str], ...]
    problems: tuple[tuple[str, str], ...]


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    strict: Annotated[
        str, typer.Option(metavar="DEVICE", help="Fail where this device cannot serve: cpu, openvino, cuda:1, …")
    ] = "",
) -> None:
    """Say what this machine has and which engines run on it. Exit status 1 where nothing can be served."""
    with plain_failures():
        if strict:
            _check(strict)
        found = examine(strict)
    if as_json:
        json.dump(_fields(found), sys.stdout, indent=2)
        print()
    else:
        from headrace_server.cli.doctor_text import doctor_text

        print(doctor_text(found))
    if strict:
        probe = next(each for each in found.engines if each.device == _full(strict))
        if not probe.runs:
            raise fail(f"device {strict} cannot serve: {probe.fault}", cure=probe.cure)
    if found.problems:
        raise typer.Exit(FAILURE)


def examine(device: str = "") -> Examination:
    """What is found here; `device` is asked for besides those that always are ("cuda:1")."""
    from headrace_server.cli.doctor_machine import installed_extras, read_machine, versions
    from headrace_server.engines.probes.probe import probe_engines, probes_of

    probes = list(probes_of())
    if device:
        probes += [probe for probe in probes_of(device) if probe not in probes]
    engines = probe_engines(probes)
    machine = read_machine()
    kernels = ("kernels", machine.cpu.kernels, "" if machine.cpu.kernels else "they are not compiled for this Python")
    parts = (_transport(), _text(), kernels)
    return Examination(
        machine=machine,
        versions=versions(),
        extras=installed_extras(),
        engines=engines,
        parts=parts,
        problems=_problems(engines, parts),
    )


def _check(device: str) -> None:
    """Raises ServingError CONFIG_INVALID for a device that no engine has."""
    from headrace_server.config import EngineOptions
    from headrace_server.engines.devices import split_device

    EngineOptions(device=device)
    if split_device(device)[0] == "auto":
        raise fail("--strict auto: auto takes whatever runs; name a device", status=2)


def _full(device: str) -> str:
    base, _, index = device.partition(":")
    return f"{base}:{index or 0}" if base in ("cuda", "tensorrt") else base


def _problems(engines: tuple[EngineProbe, ...], parts: tuple[tuple[str, str, str], ...]) -> tuple[tuple[str, str], ...]:
    from headrace_server.engines.onnx.session import load_runtime
    from headrace_server.errors import ServingError

    found = [(f"{name}: {fault}", "") for name, _, fault in parts if fault]
    try:
        load_runtime()
    except ServingError as error:
        return (*found, (error.facts["reason"], error.facts["cure"]))
    if not any(probe.runs for probe in engines if probe.device):
        cpu = engines[0]
        found.append((f"no engine runs; on the CPU: {cpu.fault}", cpu.cure or "pip install 'headrace[cpu]'"))
    return tuple(found)


def _transport() -> tuple[str, str, str]:
    from headrace_server.config import TransportOptions
    from headrace_server.errors import ServingError
    from headrace_server.rpc.transport.select import open_transport

    try:
        transport = open_transport(TransportOptions(), ())
    except (ServingError, ImportError) as error:
        return "transport", "", str(error)
    because = f": {transport.reason}" if transport.reason else ""
    return "transport", f"{transport.name}{because}", ""


def _text() -> tuple[str, str, str]:
    """Texts are read by tokenizers, and forms of generated text by llguidance: both are compiled."""
    try:
        import llguidance
        import tokenizers

        tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
        is_right = tokenizer.encode("a").ids == [0]
        matcher = llguidance.LLMatcher.grammar_from_regex("a+")
    except Exception as error:
        return "texts", "", f"{type(error).__name__} where tokenizers and llguidance are tried"
    return "texts", "tokenizers and llguidance work", "" if is_right and matcher else "tokenizers answers wrongly"


def _fields(found: Examination) -> dict[str, Any]:
    parts = {name: {"state": state, "fault": fault} for name, state, fault in found.parts}
    return {
        "can_serve": not found.problems,
        "problems": [{"reason": reason, "cure": cure} for reason, cure in found.problems],
        "machine": asdict(found.machine),
        "versions": found.versions,
        "extras": [asdict(extra) | {"cure": extra.cure} for extra in found.extras],
        "engines": [asdict(probe) for probe in found.engines],
        "parts": parts,
    }
