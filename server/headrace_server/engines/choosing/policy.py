"""What `auto` means: of the candidates that are there, tried on the model's own kind of input, the fastest that agrees.

device auto        the CPU provider; OpenVINO where its plugin is installed, in the graph's own precision and, where the
                   CPU multiplies it in hardware, in bf16; CUDA where a GPU or a runtime for one is there
device openvino    with precision auto, its own precisions

The CPU provider in the graph's own precision is the reference: a candidate whose answers are others is refused. The
best has to be a tenth faster than the CPU provider, and bf16 a tenth faster than the graph's own precision, so that
neither memory nor precision is given for nothing, and noise decides nothing. What is found is kept, and asked for again
at the next load.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.base import Engine
from headrace_server.engines.choosing.choice import EngineChoice, Verdict
from headrace_server.engines.choosing.choice_cache import ChoiceCache, choice_key
from headrace_server.engines.choosing.chosen import ChosenEngine
from headrace_server.engines.choosing.measurement import Candidate, Measurement, Open
from headrace_server.engines.heap import trim_heap
from headrace_server.engines.installed import installed_version
from headrace_server.engines.machine.cpu import find_cpu
from headrace_server.engines.machine.cuda_devices import find_cuda
from headrace_server.engines.onnx.openvino import installed_openvino, openvino_precisions
from headrace_server.errors import ServingError
from headrace_server.models.model import Model
from headrace_server.models.onnx_header import OnnxHeader

__all__ = ["choose_engine", "find_candidates", "is_to_be_tried", "known_choice"]

logger = logging.getLogger(__name__)

_RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-ep-openvino")
_measuring = threading.Lock()  # two at once would measure each other


def find_candidates(header: OnnxHeader | None, device: str, precision: str) -> tuple[Candidate, ...]:
    """Who could run the graph as it is asked for; with one there is nothing to choose.

    Nothing is loaded to find out: a candidate may turn out not to start, which its trial then says.
    """
    if header is None:
        return (("tensorrt:0" if device == "auto" else device, precision),)
    weights = header.precision or "fp32"
    plain = ("cpu" if device == "auto" else device, precision)
    has_strings = any(value.spec is None or value.spec.dtype == "string" for value in header.inputs)
    if device not in ("auto", "openvino") or has_strings or (device == "openvino" and not installed_openvino()):
        return (plain,)
    found: list[Candidate] = [("cpu", weights)] if device == "auto" else []
    if installed_openvino():
        found += [("openvino", each) for each in reversed(openvino_precisions(weights))]
    if device == "auto" and (find_cuda().devices or installed_version("onnxruntime-gpu")):
        found.append(("cuda:0", weights))
    wanted = tuple(each for each in found if precision in ("auto", each[1]))
    return wanted or (plain,)


def is_to_be_tried(header: OnnxHeader | None, candidates: Sequence[Candidate]) -> bool:
    """Whether a trial decides: between several, or on one whose answers are known to be wrong for some graphs.

    OpenVINO 2026.4 loses the scales of some 8-bit weights when it computes in bf16.
    """
    if header is None or len(candidates) > 1:
        return header is not None
    return candidates[0] == ("openvino", "bf16") and header.precision in ("int8", "w8", "w4")


def choose_engine(
    model: Model,
    header: OnnxHeader,
    candidates: Sequence[Candidate],
    options: EngineOptions,
    threads: ThreadBudget,
    open_: Open,
) -> Engine:
    """The engine of the best of the candidates, its choice with it.

    options, threads  as the candidates are opened with
    raises  ServingError as the CPU's opener, where the reference itself does not load; DEVICE_UNAVAILABLE where no
            candidate may serve
    """
    cache = _cache(options)
    question = _question(model, candidates, options, threads)
    key = choice_key(question) if model.digest else ""
    kept = cache.find(key) if key else None
    if kept is not None:
        engine = _open_kept(model, kept, open_)
        if engine is not None:
            return engine
        cache.forget(key)
    with _measuring:
        engine, choice = Measurement(model, header, candidates, open_).result()
    trim_heap()
    _log(model, choice)
    # What did not start may start the next time.
    if key and choice.shapes and all(each.verdict is not Verdict.UNAVAILABLE for each in choice.candidates):
        cache.keep(key, choice, question)
    return ChosenEngine(engine, choice)


def known_choice(model: Model, header: OnnxHeader | None, budget: ThreadBudget) -> EngineChoice | None:
    """What was chosen for the model earlier, as it would be asked for now; None where that would be measured."""
    options = model.engine
    candidates = find_candidates(header, options.device, options.precision)
    if len(candidates) == 1 or not model.digest:
        return None
    question = _question(model, candidates, options, budget.for_engine(options))
    return _cache(options).find(choice_key(question))


def _cache(options: EngineOptions) -> ChoiceCache:
    return ChoiceCache(None if options.cache is None else options.cache / "choices")


def _open_kept(model: Model, kept: EngineChoice, open_: Open) -> Engine | None:
    """The engine that was chosen earlier; None where it does not start any more."""
    chosen = next(each for each in kept.candidates if each.verdict is Verdict.CHOSEN)
    try:
        engine = open_(chosen.device, chosen.precision)
    except ServingError as error:
        logger.warning(
            "model %s/%s: %s %s, chosen earlier, does not start; measured anew: %s",
            *(model.name, model.version, chosen.device, chosen.precision, error.message),
        )
        return None
    return ChosenEngine(engine, replace(kept, cached=True))


def _question(
    model: Model, candidates: Sequence[Candidate], options: EngineOptions, threads: ThreadBudget
) -> dict[str, Any]:
    """Everything that the answer depends on."""
    cpu = find_cpu()
    gpus = []
    if "cuda:0" in dict(candidates):
        gpus = [asdict(options.cuda), *([gpu.name, gpu.compute_capability] for gpu in find_cuda().devices)]
    return {
        "model": model.digest,
        "candidates": [list(each) for each in candidates],
        "cpu": [
            cpu.architecture,
            cpu.model,
            cpu.num_cores,
            hashlib.sha256(" ".join(sorted(cpu.flags)).encode()).hexdigest(),
        ],
        "gpus": gpus,
        "runtimes": [installed_version(each) for each in _RUNTIMES],
        "threads": [threads.num_workers, threads.intra_op_threads],
        "rows": model.batching.max_batch_size,
    }


def _log(model: Model, choice: EngineChoice) -> None:
    for each in choice.failures:
        logger.warning(
            "model %s/%s: %s %s cannot serve it and is left out: %s",
            *(model.name, model.version, each.device, each.precision, each.reason),
        )
    logger.info(
        "model %s/%s: chosen by measuring: %s; %s",
        *(model.name, model.version, choice.reason, "; ".join(map(str, choice.candidates)) or "no other candidate"),
    )
