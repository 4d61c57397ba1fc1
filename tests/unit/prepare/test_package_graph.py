"""The package graph: read from apt's stanzas by rule, and committed small and whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.package_graph import GRAPH_PATH, PackageGraph, derive_package_graph, graph_of_metadata
from headrace_server.prepare.package_graph_catalogs import words_of

_STANZAS = """\
Package: python3-app
Version: 1
Depends: python3 (>= 3.9), python3-web (>= 2:1.0), libc6:any, python3-old | python3-new, virtual-thing, python3-app

Package: python3-tool
Depends: python3:any, python3-web, libc6, python3-lonely
Description: not read
 Depends: nor this

Package: python3-web
Depends: python3, libc6

Package: python3-old

Package: python3-lonely
Depends: python3-old

Package: libc6

Package: server
Depends: python3-app
"""


def test_stanzas_become_edges_by_the_first_alternative_without_interpreter_and_virtual_names() -> None:
    graph = graph_of_metadata(_STANZAS, snapshot="made up")
    assert graph.needs == {
        "python3-app": ("libc6", "python3-old", "python3-web"),
        "python3-lonely": ("python3-old",),
        "python3-tool": ("libc6", "python3-web"),
        "python3-web": ("libc6",),
    }
    assert graph.num_needed_by == {"libc6": 3, "python3-old": 2, "python3-web": 2}
    assert graph.num_edges == len(list(graph.pairs())) == 7


def test_a_graph_is_written_and_read_alike(tmp_path: Path) -> None:
    graph = graph_of_metadata(_STANZAS, snapshot="made up")
    graph.write(tmp_path / "graph.tsv")
    assert PackageGraph.read(tmp_path / "graph.tsv") == graph


def test_the_committed_graph_is_small_sorted_and_what_the_docs_say() -> None:
    graph = PackageGraph.read()
    assert GRAPH_PATH.stat().st_size < 300_000
    assert list(graph.needs) == sorted(graph.needs)
    assert all(name.startswith("python3-") and list(needed) == sorted(needed) for name, needed in graph.needs.items())
    assert min(graph.num_needed_by.values()) == 2
    assert graph.snapshot.startswith("Debian ")
    page = (Path(__file__).resolve().parents[3] / "docs" / "recommend.md").read_text(encoding="utf-8")
    assert f"{len(graph.needs):,} packages" in page
    assert f"{graph.num_edges:,} edges" in page


def test_without_apt_the_cure_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PrepareError, match="apt's metadata cannot be read") as raised:
        derive_package_graph()
    assert "Debian" in raised.value.cure


@pytest.mark.full
@pytest.mark.skipif(shutil.which("apt-cache") is None, reason="no apt on this machine")
def test_this_machine_s_metadata_makes_a_graph() -> None:
    try:
        graph = derive_package_graph()
    except PrepareError as error:
        pytest.skip(error.message)
    assert "python3-numpy" in graph.num_needed_by


def test_a_name_is_read_as_words() -> None:
    assert words_of("python3-flask-login") == "flask login"
    assert words_of("python3-jaraco.text") == "jaraco text"
