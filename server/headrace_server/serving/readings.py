"""What a repository shows to whoever reads the metrics, as it stands at that moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from headrace_server.serving.repository import ModelState, Repository
from headrace_server.telemetry.metrics import Reading

__all__ = ["model_readings"]


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
        yield Reading("headrace_queue_rows", "Rows waiting for an engine.", version_of, status.queue_depth)
        if status.engine is not None:
            engine = asdict(status.engine)
            names = ("engine", "runtime_version", "device", "provider", "precision")
            labels = tuple((name, str(engine[name])) for name in names)
            yield Reading("headrace_model_info", "What runs a version.", (*version_of, *labels), 1)
    for (model, outcome), count in repository.num_loads().items():
        outcome_of = (("model", model), ("outcome", outcome))
        yield Reading("headrace_model_loads_total", "Loads that have ended, by how they ended.", outcome_of, count)
