"""How people read what runs a version, and how it was chosen."""

from __future__ import annotations

from dataclasses import replace

from headrace_client import EngineCandidate, EngineChoice, ModelInfo
from headrace_server.cli.models_text import engine_text

CPU = EngineCandidate("cpu", "fp32", "slower", "", 1.0, (0.012, 0.08), 1.0, 0.0)
FAST = EngineCandidate("openvino", "bf16", "chosen", "", 2.95, (0.005, 0.02), 0.99998, 0.01)
LEFT_OUT = EngineCandidate("openvino", "fp32", "not_measured", "bf16 is far ahead", 0.0, (), 0.0, 0.0)
INFO = ModelInfo(
    name="minilm", version="1", state="ready", state_reason="", serving=True, tasks=(), input_kinds=(), inputs=(),
    outputs=(), class_labels=(), num_classes=0, embedding_dimension=0, max_length=0, prompts={}, features=(),
    device="openvino", precision="bf16", digest="", format="",
)  # fmt: skip


def test_every_candidate_stands_with_its_figures_by_shape() -> None:
    choice = EngineChoice("openvino in bf16 is 2.95 times as fast", ("1 × 23", "8 × 26"), (CPU, FAST, LEFT_OUT), True)
    info = replace(INFO, engine_choice=choice, nodes_by_provider={"OpenVINOExecutionProvider": 216})
    assert engine_text([info]).splitlines() == [
        "minilm/1: graph nodes 216 on OpenVINOExecutionProvider",
        "minilm/1: openvino in bf16 is 2.95 times as fast (measured earlier)",
        "  cpu fp32: slower; 1.00×, cosine 1.00000; 12.00 ms for 1 × 23; 80.00 ms for 8 × 26",
        "  openvino bf16: chosen; 2.95×, cosine 0.99998; 5.00 ms for 1 × 23; 20.00 ms for 8 × 26",
        "  openvino fp32: not measured; bf16 is far ahead",
    ]


def test_nothing_is_said_of_what_was_asked_for() -> None:
    assert engine_text([INFO]) == ""
