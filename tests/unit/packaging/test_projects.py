"""The three pyproject.toml files agree, and each distribution asks for what it may."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import Specifier
from source_modules import ROOT

PROJECTS = {
    "headrace": ROOT / "pyproject.toml",
    "headrace-client": ROOT / "clients" / "python" / "pyproject.toml",
    "headrace-protos": ROOT / "protos" / "pyproject.toml",
}


def project(name: str) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads(PROJECTS[name].read_text(encoding="utf-8"))["project"]
    assert table["name"] == name
    return table


def required(name: str, extra: str = "") -> dict[str, Requirement]:
    texts = project(name)["optional-dependencies"][extra] if extra else project(name)["dependencies"]
    return {requirement.name: requirement for requirement in map(Requirement, texts)}


def test_all_projects_have_one_version_and_one_python() -> None:
    assert len({(project(name)["version"], project(name)["requires-python"]) for name in PROJECTS}) == 1


def test_every_project_carries_the_licence() -> None:
    texts = {(path.parent / "LICENSE").read_bytes() for path in PROJECTS.values()}
    assert len(texts) == 1
    assert b"Apache License" in texts.pop()
    assert {project(name)["license"] for name in PROJECTS} == {"Apache-2.0"}


def test_client_needs_grpc_protobuf_numpy_and_the_messages_alone() -> None:
    assert set(required("headrace-client")) == {"grpcio", "protobuf", "numpy", "headrace-protos"}


def test_no_engine_is_a_plain_dependency() -> None:
    assert not [name for name in required("headrace") if name.startswith("onnxruntime")]
    assert set(required("headrace", "cpu")) == {"onnxruntime"}
    assert set(required("headrace", "gpu")) == {"onnxruntime-gpu"}


@pytest.mark.parametrize("name", ["grpcio", "protobuf", "numpy", "headrace-protos"])
def test_shared_requirement_has_one_range(name: str) -> None:
    ranges = {str(required(owner)[name].specifier) for owner in PROJECTS if name in required(owner)}
    assert len(ranges) == 1


@pytest.mark.parametrize("owner", PROJECTS)
def test_every_dependency_has_a_lowest_and_a_first_refused_version(owner: str) -> None:
    for requirement in required(owner).values():
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators == {">=", "<"}, requirement


def test_stubs_are_made_with_the_oldest_supported_runtime() -> None:
    lines = (Path(ROOT) / "protos" / "generator-requirements.txt").read_text(encoding="utf-8").splitlines()
    pinned = {
        r.name: next(iter(r.specifier)) for r in (Requirement(line.split("#")[0]) for line in lines if line[0] != "#")
    }
    for name, in_range in (("grpcio", "grpcio"), ("grpcio-tools", "grpcio"), ("protobuf", "protobuf")):
        lowest = next(s for s in required("headrace-protos")[in_range].specifier if s.operator == ">=")
        assert Specifier(f"=={lowest.version}").contains(pinned[name].version), name
