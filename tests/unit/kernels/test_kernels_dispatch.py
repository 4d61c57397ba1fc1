"""Which variant runs, and that it is the one that was asked for."""

from __future__ import annotations

import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import headrace_kernels
from headrace_kernels import (
    _dispatch,
    activation,
    errors,
    graph_operators,
    packing,
    pooling,
    quantization,
    reference,
    sampling,
    scan,
    selection,
    similarity,
)
from headrace_kernels._native import dispatch
from headrace_kernels._native import scan as native_scan

PACKAGE = Path(headrace_kernels.__file__).parent


def start(isa: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter with the variant named in its environment."""
    program = "import headrace_kernels; print(headrace_kernels.isa())"
    environment = {**os.environ, _dispatch.ENVIRONMENT: isa}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("isa", headrace_kernels.variants())
def test_environment_forces_each_variant_and_isa_says_so(isa: str) -> None:
    assert start(isa).stdout.strip() == isa


def test_widest_variant_runs_when_none_is_asked_for() -> None:
    assert start("").stdout.strip() == headrace_kernels.variants()[0]


def test_unknown_variant_is_an_import_error_that_names_the_choices() -> None:
    failed = start("sse9")
    assert failed.returncode != 0
    assert "ImportError: HEADRACE_KERNELS_ISA is 'sse9'; this build has " in failed.stderr
    assert "portable" in failed.stderr


def test_variant_that_the_machine_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "runnable", lambda: ("portable",))
    monkeypatch.setattr(dispatch, "compiled", lambda: ("avx512", "portable"))
    monkeypatch.setenv(_dispatch.ENVIRONMENT, "avx512")
    with pytest.raises(ImportError, match=r"is 'avx512'; this machine runs portable"):
        _dispatch.choose()


def test_portable_is_always_there_and_comes_last() -> None:
    assert headrace_kernels.variants()[-1] == "portable"


@pytest.mark.skipif(platform.machine() not in {"x86_64", "AMD64"}, reason="x86-64 alone has more than one variant")
def test_x86_builds_hold_every_variant() -> None:
    assert dispatch.compiled() == ("amx", "avx512_vnni", "avx512", "avx2", "portable")


def test_force_ends_with_its_block_even_when_it_fails() -> None:
    def fail() -> None:
        with _dispatch.force("portable"):
            assert headrace_kernels.isa() == "portable"
            raise RuntimeError

    before = headrace_kernels.isa()
    with pytest.raises(RuntimeError):
        fail()
    assert headrace_kernels.isa() == before


def test_forced_variant_is_the_one_that_computes() -> None:
    # Variants differ in the order of a sum: rows long enough that this shows in the last bits.
    rows = np.random.default_rng(1).standard_normal((16, 1003), dtype=np.float32)
    answers = []
    names = [name for name in headrace_kernels.variants() if name not in {"amx", "avx512_vnni"}]  # they differ in scans
    for name in names:
        with _dispatch.force(name):
            answers.append(headrace_kernels.dot_pairs(rows, rows[::-1].copy()).tobytes())
    assert len(set(answers)) == len(answers)


@pytest.mark.parametrize("isa", headrace_kernels.variants())
def test_scans_are_those_of_the_forced_variant(isa: str) -> None:
    with _dispatch.force(isa):
        assert native_scan.current() == isa


def test_graph_operators_are_those_of_the_forced_variant_or_none() -> None:
    for name in headrace_kernels.variants():
        with _dispatch.force(name):
            assert (graph_operators.library() is not None) == (name in {"amx", "avx512_vnni"})
    assert set(graph_operators.variants()) == {"amx", "avx512_vnni"} & set(headrace_kernels.variants())


def test_select_refuses_an_unknown_name_and_changes_nothing() -> None:
    before = headrace_kernels.isa()
    with pytest.raises(ValueError, match="'neon9' is not one of"):
        dispatch.select("neon9")
    assert headrace_kernels.isa() == before


@pytest.mark.parametrize(
    "module",
    [
        headrace_kernels,
        _dispatch,
        activation,
        errors,
        graph_operators,
        packing,
        pooling,
        quantization,
        reference,
        sampling,
        scan,
        selection,
        similarity,
    ],
    ids=lambda module: module.__name__,
)
def test_all_is_sorted_and_names_what_is_there(module: object) -> None:
    names = module.__all__  # type: ignore[attr-defined]
    assert list(names) == sorted(names)
    assert [name for name in names if not hasattr(module, name)] == []


def test_reference_has_every_kernel() -> None:
    kernels = {name for name in headrace_kernels.__all__ if name[0].islower()} - {"isa", "variants"}
    assert kernels == set(reference.__all__)


def test_package_is_typed_and_each_extension_has_its_stub() -> None:
    assert (PACKAGE / "py.typed").is_file()
    compiled = {path.name.split(".")[0] for path in (PACKAGE / "_native").glob("*.so")}
    stubs = {path.stem for path in (PACKAGE / "_native").glob("*.pyi")}
    assert compiled == stubs


@pytest.mark.parametrize("stub", sorted((PACKAGE / "_native").glob("*.pyi")), ids=lambda path: path.stem)
def test_stub_names_what_its_extension_has(stub: Path) -> None:
    module = __import__(f"headrace_kernels._native.{stub.stem}", fromlist=["_"])
    named = (ast.FunctionDef, ast.ClassDef)
    declared = {node.name for node in ast.parse(stub.read_text()).body if isinstance(node, named)}
    present = {name for name in vars(module) if not name.startswith("_") and callable(getattr(module, name))}
    assert declared == present


def test_kernels_import_numpy_and_themselves_alone() -> None:
    program = (
        "import sys, numpy; before = set(sys.modules)\n"
        "import headrace_kernels\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new - set(sys.stdlib_module_names)))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    foreign = {name for name in ast.literal_eval(ran.stdout) if not name.startswith(("_cython_", "cython_runtime"))}
    assert foreign - {"numpy"} == {"headrace_kernels"}
