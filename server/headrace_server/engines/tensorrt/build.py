"""From an ONNX graph to a plan: parse, profiles, flags, build. The graph's own types are the precision.

`module` is tensorrt 11, or tensorrt_rtx, which compiles without a GPU when it is told for which.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace_server.engines.tensorrt.cache import file_lock, write_whole
from headrace_server.engines.tensorrt.log import ErrorLog
from headrace_server.engines.tensorrt.seam import BuildOrder, BuiltPlan
from headrace_server.engines.tensorrt.support import node_faults, refusal
from headrace_server.errors import Reason, ServingError

__all__ = ["build_plan", "target_names"]


def build_plan(module: Any, order: BuildOrder, log: ErrorLog) -> BuiltPlan:
    """The compiled graph. Takes seconds to minutes.

    raises  ServingError MODEL_INVALID naming the nodes that cannot be compiled, or what the builder said;
            DEVICE_UNAVAILABLE for a GPU that the library does not compile for
    """
    name = order.graph.name
    logger = log.logger
    builder = module.Builder(logger)
    network = builder.create_network(0)  # strongly typed: TensorRT 11 knows no other
    parser = module.OnnxParser(network, logger)
    if not parser.parse_from_file(str(order.graph)):
        raise refusal(name, node_faults(parser, order.header), log.errors())
    for index in range(network.num_inputs):
        if network.get_input(index).is_shape_tensor:
            given = network.get_input(index).name
            raise ServingError(
                Reason.MODEL_INVALID, f"{name}: input {given!r} holds a shape, which TensorRT is not given here"
            )
    config = builder.create_builder_config()
    _configure(module, config, order)
    for profile in order.profiles:
        wanted = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index).name
            wanted.set_shape(tensor, profile.min[tensor], profile.opt[tensor], profile.max[tensor])
        if config.add_optimization_profile(wanted) < 0:
            raise ServingError(Reason.MODEL_INVALID, f"{name}: TensorRT refuses a profile", detail=log.errors())
    with _timings(config, order.timing_cache):
        plan = builder.build_serialized_network(network, config)
        if plan is None:
            said = log.errors()
            raise ServingError(
                Reason.MODEL_INVALID, f"{name}: TensorRT could not compile it: {_last_line(said)}", detail=said
            )
    return BuiltPlan(plan=bytes(plan), layers=log.engine_layers())


def target_names(module: Any) -> tuple[str, ...]:
    """Compute capabilities that the library can be told to compile for ("8.9"); (): it compiles for the one here."""
    names = [name for name in dir(getattr(module, "ComputeCapability", None)) if name.startswith("SM")]
    digits = sorted((int(name[2:-1]), int(name[-1])) for name in names)
    return tuple(f"{major}.{minor}" for major, minor in digits)


def _configure(module: Any, config: Any, order: BuildOrder) -> None:
    flags = module.BuilderFlag
    if order.workspace_mb:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, order.workspace_mb << 20)
    # On by default; without it fp32 is fp32.
    (config.set_flag if order.tf32 else config.clear_flag)(flags.TF32)
    if order.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    if order.compute_capabilities:
        config.num_compute_capabilities = len(order.compute_capabilities)
        for index, capability in enumerate(order.compute_capabilities):
            config.set_compute_capability(getattr(module.ComputeCapability, f"SM{capability.replace('.', '')}"), index)


@contextlib.contextmanager
def _timings(config: Any, path: Path | None) -> Iterator[None]:
    """Tactics timed before are not timed again; those of this build are added for the next, beside other processes'."""
    if path is None:
        yield
        return
    cache = config.create_timing_cache(_read(path))
    config.set_timing_cache(cache, False)
    yield
    with file_lock(path.with_suffix(".lock")):
        timed = config.get_timing_cache()
        meanwhile = _read(path)
        if meanwhile:
            timed.combine(config.create_timing_cache(meanwhile), False)
        write_whole(path, bytes(timed.serialize()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _last_line(said: str) -> str:
    return said.strip().rpartition("\n")[2] or "it gave no reason"
