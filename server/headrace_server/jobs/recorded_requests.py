"""A version's own recorded requests: asked of it through the jobs, before any traffic, and compared with what they are
to answer; and recorded, for a version that is known to be right."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from headrace_server.config import InputLimits, ThreadBudget
from headrace_server.errors import Reason, ServingError
from headrace_server.jobs.classify import Classify
from headrace_server.jobs.embed import Embed
from headrace_server.jobs.generate import Generate
from headrace_server.jobs.generation_queries import ChatPrompt, GenerateQuery, SamplingWishes
from headrace_server.jobs.infer import Infer
from headrace_server.jobs.infer_queries import InferQuery
from headrace_server.jobs.queries import ClassifyQuery, EmbedQuery, ModelRef, RerankQuery
from headrace_server.jobs.recorded_answer import difference
from headrace_server.jobs.recorded_request import RecordedRequest, parse_recorded, recorded_names
from headrace_server.jobs.rerank import Rerank
from headrace_server.models.folder import VersionFolder, model_invalid
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.models.model import Model, PrepareOptions
from headrace_server.serving.context import RequestContext
from headrace_server.serving.loading import load_servable
from headrace_server.serving.servable import Servable
from headrace_server.serving.version import Lease, Version

__all__ = ["RecordedRequests", "record"]

_NUMBERS = {
    "float32": np.float32, "float64": np.float64, "float16": np.float16, "bool": np.bool_, "string": np.object_,
    "int8": np.int8, "int16": np.int16, "int32": np.int32, "int64": np.int64,
    "uint8": np.uint8, "uint16": np.uint16, "uint32": np.uint32, "uint64": np.uint64,
}  # fmt: skip


class RecordedRequests:
    """Asks versions what their folders recorded."""

    def __init__(self, limits: InputLimits | None = None) -> None:
        self._limits = limits or InputLimits()

    def check(self, servable: Servable) -> None:
        """Raises ServingError MODEL_INVALID naming the file, what was expected and what came; nothing, where all is as
        recorded, or nothing is."""
        files = VersionFolder(servable.model.folder)
        for name in recorded_names(files):
            request = parse_recorded(files, name)
            if request.expected is None:
                raise model_invalid(f"{name}: nothing is expected; record it (headrace models record)")
            found = difference(
                request.task, request.expected, self.answer(servable, request, files, name), request.tolerance
            )
            if found:
                raise model_invalid(f"{name}: not as recorded: {found}")

    def answer(self, servable: Servable, request: RecordedRequest, files: VersionFolder, name: str) -> Any:
        """What exactly this servable answers, as plain values. Raises ServingError MODEL_INVALID where it fails."""
        context = RequestContext(deadline=time.monotonic() + request.options.timeout_s)
        try:
            return self._ask(_OneServable(servable), request, files, name, context)
        except ServingError as error:
            if error.reason is Reason.MODEL_INVALID:
                raise
            raise model_invalid(f"{name}: not answered: {error.message}", detail=error.detail) from error

    def _ask(
        self,
        leases: _OneServable,
        request: RecordedRequest,
        files: VersionFolder,
        name: str,
        context: RequestContext,
    ) -> Any:
        limits, options, ref = self._limits, request.options, ModelRef(leases.servable.model.name)
        prepare = PrepareOptions(truncate=options.truncate is not False, prompt_name=options.prompt_name or "")
        if request.task == "classify":
            classified = Classify(leases, limits).submit(
                ClassifyQuery(
                    model=ref,
                    inputs=request.model_inputs(files, name),
                    top_k=5 if options.top_k is None else options.top_k,
                    threshold=options.threshold,
                    prepare=prepare,
                ),
                context,
            )
            return [
                [{"label": each.label, "score": float(each.score)} for each in one.labels]
                for one in classified.result().results
            ]
        if request.task == "embed":
            embedded = Embed(leases, limits).submit(
                EmbedQuery(
                    model=ref,
                    inputs=request.model_inputs(files, name),
                    normalize=options.normalize,
                    dimensions=options.dimensions or 0,
                    prepare=prepare,
                ),
                context,
            )
            return [[round(float(value), 6) for value in row] for row in embedded.result().embeddings]
        if request.task == "rerank":
            ranked = Rerank(leases, limits).submit(
                RerankQuery(
                    model=ref,
                    query=request.query or "",
                    documents=request.documents,
                    top_k=options.top_k or 0,
                    prepare=prepare,
                ),
                context,
            )
            return [{"index": each.index, "score": float(each.score)} for each in ranked.result().documents]
        if request.task == "generate":
            prompt = ChatPrompt(messages=request.messages) if request.prompt is None else request.prompt
            written = Generate(leases, limits).submit(
                GenerateQuery(
                    model=ref,
                    prompt=prompt,
                    max_tokens=options.max_tokens or 0,
                    stop=options.stop or (),
                    sampling=SamplingWishes(temperature=0.0),
                ),
                context,
            )
            return [{"text": each.text, "finish_reason": each.finish_reason.value} for each in written.result().choices]
        tensors = _tensors(leases.servable.model, request.tensors, name)
        inferred = Infer(leases, limits).submit(InferQuery(model=ModelRef("model"), inputs=tensors), context)
        return {output: _plain(array) for output, array in inferred.result().outputs.items()}


class _OneServable:
    """Leases one servable, which no repository knows yet."""

    def __init__(self, servable: Servable) -> None:
        self.servable = servable
        self._version = Version(servable.model.name, servable.model.version)

    def acquire(self, name: str, *, version: str = "", label: str = "", routing_key: str = "") -> Lease:
        return Lease(self.servable, self._version, lambda lease: None)


def record(
    folder: Path,
    *,
    again: bool = False,
    limits: InputLimits | None = None,
    defaults: LoadDefaults | None = None,
    threads: ThreadBudget | None = None,
) -> list[str]:
    """The files of `warmup/` that were filled in with what the version in `folder` answers: those that expected nothing
    yet, or, with `again`, all.

    raises  ServingError MODEL_INVALID: what is wrong with the folder or a request, or that one is not answered
    """
    model = load_model(folder, name=folder.resolve().parent.name, version=folder.name, defaults=defaults)
    servable = load_servable(model, threads or ThreadBudget())
    try:
        return _record(servable, RecordedRequests(limits), again)
    finally:
        servable.close()


def _record(servable: Servable, requests: RecordedRequests, again: bool) -> list[str]:
    files = VersionFolder(servable.model.folder)
    written = []
    for name in recorded_names(files):
        request = parse_recorded(files, name)
        if request.expected is None or again:
            said = files.read_json(name)
            said["expected"] = requests.answer(servable, request, files, name)
            text = msgspec.json.format(msgspec.json.encode(said), indent=2)
            files.path(name).write_bytes(text + b"\n")
            written.append(name)
    return written


def _tensors(model: Model, said: Mapping[str, Any], where: str) -> dict[str, Any]:
    arrays: dict[str, Any] = {}
    for spec in model.inputs:
        if spec.name not in said:
            raise model_invalid(f"{where}: tensors.{spec.name}: missing")
        if spec.dtype not in _NUMBERS:
            raise model_invalid(f"{where}: tensors.{spec.name}: {spec.dtype} cannot be recorded")
        try:
            arrays[spec.name] = np.asarray(said[spec.name], dtype=_NUMBERS[spec.dtype])
        except (ValueError, TypeError, OverflowError) as error:
            raise model_invalid(f"{where}: tensors.{spec.name}: not {spec.dtype} ({error})") from None
    return arrays


def _plain(array: npt.NDArray[Any]) -> Any:
    """Nested lists, of numbers or texts."""
    if array.dtype.kind in "OS":
        texts = [each.decode(errors="replace") if isinstance(each, bytes) else str(each) for each in array.flat]
        return np.asarray(texts, dtype=np.object_).reshape(array.shape).tolist()
    return array.tolist()
