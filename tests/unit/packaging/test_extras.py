"""Extras that go together and those that do not: which onnxruntime each brings, itself or through what it needs."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from test_projects import project

# The two that own the same files.
RUNTIMES = {"onnxruntime", "onnxruntime-gpu"}
# Each of these fills an environment of its own, in which nothing of ours is installed beside it.
APART = {"dev", "generation-peers", "oip-clients", "oip-peers", "peers"}


def extras() -> dict[str, list[Requirement]]:
    table: dict[str, list[str]] = project("headrace")["optional-dependencies"]
    return {name: [Requirement(text) for text in texts] for name, texts in table.items() if name not in APART}


def needed(requirements: list[Requirement]) -> Iterator[str]:
    """Names of all that these bring, as far as this environment has it installed to be asked."""
    waiting, seen = [(each, frozenset(each.extras)) for each in requirements], set()
    while waiting:
        requirement, chosen = waiting.pop()
        name = requirement.name.lower().replace("_", "-")
        if (name, chosen) in seen:
            continue
        seen.add((name, chosen))
        yield name
        try:
            texts = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        waiting += [
            (inner, frozenset(inner.extras))
            for inner in map(Requirement, texts)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in {"", *chosen})
        ]


@pytest.mark.parametrize("name", extras())
def test_an_extra_brings_no_runtime_but_its_own(name: str) -> None:
    allowed = {"cpu": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}.get(name, set())
    assert RUNTIMES & set(needed(extras()[name])) == allowed


def test_what_serving_needs_in_any_case_brings_no_runtime() -> None:
    assert not RUNTIMES & set(needed([Requirement(text) for text in project("headrace")["dependencies"]]))


def test_the_plugin_of_openvino_goes_with_either_runtime() -> None:
    # Its metadata names none. With one that named the CPU's, headrace[gpu,openvino] would install both.
    try:
        requirements = importlib.metadata.requires("onnxruntime-ep-openvino") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("onnxruntime-ep-openvino is not installed")
    assert not [text for text in requirements if text.startswith("onnxruntime")]


def test_the_gpu_extra_brings_the_libraries_of_cuda_and_cudnn() -> None:
    (requirement,) = extras()["gpu"]
    assert requirement.extras == {"cuda", "cudnn"}
