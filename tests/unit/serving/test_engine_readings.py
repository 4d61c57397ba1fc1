"""Metrics of what `auto` could not use."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from headrace_server.engines.base import EngineInfo
from headrace_server.engines.choosing.choice import CandidateReport, EngineChoice, Verdict
from headrace_server.serving.readings import model_readings
from headrace_server.serving.repository import ModelState

INFO = EngineInfo(
    engine="onnx", runtime_version="1", device="cpu", provider="CPUExecutionProvider", precision="fp32", num_threads=1,
    num_workers=1, load_time_ms=1,
)  # fmt: skip


def fallbacks(info: EngineInfo) -> list[tuple[dict[str, str], float]]:
    status = SimpleNamespace(
        name="m", version="1", state=ModelState.READY, serving=True, held_because="", queue_depth=0, engine=info
    )
    repository = cast(Any, SimpleNamespace(status=lambda: [status], num_loads=dict))
    return [
        (dict(reading.labels), reading.value)
        for reading in model_readings(repository)
        if reading.name == "headrace_engine_fallback_total"
    ]


def test_what_auto_could_not_use_is_counted_by_device_precision_and_verdict() -> None:
    reports = [
        CandidateReport(device="cpu", precision="fp32", verdict=Verdict.CHOSEN),
        CandidateReport(device="cuda:0", precision="fp32", verdict=Verdict.UNAVAILABLE),
        CandidateReport(device="openvino", precision="bf16", verdict=Verdict.DISAGREES),
        CandidateReport(device="openvino", precision="fp32", verdict=Verdict.SLOWER),
    ]
    choice = EngineChoice(reason="", candidates=tuple(reports))
    of_model = {"model": "m", "version": "1"}
    assert fallbacks(replace(INFO, choice=choice)) == [
        ({**of_model, "device": "cuda:0", "precision": "fp32", "verdict": "unavailable"}, 1),
        ({**of_model, "device": "openvino", "precision": "bf16", "verdict": "disagrees"}, 1),
    ]


def test_nothing_is_counted_where_nothing_was_left_to_the_server() -> None:
    assert fallbacks(INFO) == []
