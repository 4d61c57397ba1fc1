"""What a repository shows to whoever reads the metrics, as it stands at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from headrace_server.serving.repository import ModelState, Repository
from headrace_server.serving.residence import Residence
from headrace_server.telemetry.metrics import Reading

__all__ = ["memory_readings", "model_readings"]


def model_readings(repository: Repository) -> Iterator[Reading]:
    """States of the versions, what runs them, what waits, and how loads ended."""
    for status in repository.status():
        version_of = (("model", status.name), ("version", status.version))
        for state in ModelState:
            yield Reading(
                "headrace_model_state",
                "1 for the state that a version is in.",
                (*version_of, ("state", state.value)),
                float(status.state is state),
            )
        yield Reading(
            "headrace_model_serving",
            "1 for the version that answers requests which name none.",
            version_of,
            float(status.serving),
        )
        yield Reading(
            "headrace_model_held",
            "1 for a version that its quantization report keeps from serving.",
            version_of,
            float(bool(status.held_because)),
        )
        yield Reading("headrace_queue_rows", "Rows waiting for an engine.", version_of, status.queue_depth)
        if status.engine is not None:
            engine = asdict(status.engine)
            names = ("engine", "runtime_version", "device", "provider", "precision")
            labels = tuple((name, str(engine[name])) for name in names)
            yield Reading("headrace_model_info", "What runs a version.", (*version_of, *labels), 1)
            for failure in () if status.engine.choice is None else status.engine.choice.failures:
                yield Reading(
                    "headrace_engine_fallback_total",
                    "Engines that `auto` would have tried or used for a version, and could not.",
                    (
                        *version_of,
                        ("device", failure.device),
                        ("precision", failure.precision),
                        ("verdict", failure.verdict.value),
                    ),
                    1,
                )
    for (model, outcome), count in repository.num_loads().items():
        outcome_of = (("model", model), ("outcome", outcome))
        yield Reading("headrace_model_loads_total", "Loads that have ended, by how they ended.", outcome_of, count)


def memory_readings(residence: Residence) -> Iterator[Reading]:
    """What versions hold of the memory, who was put to rest and came back, and who waits for that."""
    for holding in residence.holdings():
        version_of = (("model", holding.name), ("version", holding.version))
        kinds = {
            "estimated": holding.estimate.total_bytes,
            "measured": holding.measured_bytes,
            "counted": holding.bytes,
        }
        for kind, size in kinds.items():
            if size is not None:
                yield Reading(
                    "headrace_model_memory_bytes",
                    "Memory of a version: estimated before its load, measured by it, counted against the budget now.",
                    (*version_of, ("kind", kind)),
                    size,
                )
    budget = residence.budget
    yield Reading("headrace_memory_budget_bytes", "What all versions may hold; 0: no limit.", (), budget.limit_bytes)
    yield Reading("headrace_memory_held_bytes", "What all versions hold, as it is counted.", (), budget.held_bytes)
    yield Reading("headrace_parked_requests", "Requests waiting for a model to come back.", (), residence.num_waiting)
    for (model, cause), count in residence.num_rests().items():
        cause_of = (("model", model), ("cause", cause))
        yield Reading("headrace_model_rests_total", "Versions put to rest, out of memory.", cause_of, count)
    for (model, outcome), count in residence.num_returns().items():
        outcome_of = (("model", model), ("outcome", outcome))
        yield Reading("headrace_model_returns_total", "Versions brought back on demand.", outcome_of, count)
