"""Recipe: how one version folder of the demo repository is made, and from what."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace_server.prepare.fetch import Archive
from headrace_server.prepare.sources import Package

__all__ = ["OpenPackage", "Recipe"]

OpenPackage = Callable[[Package], Archive]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One version: `build(folder, open_package)` fills an empty folder, reading packages through `open_package`.

    modules  the modules whose text decides the result, and `data` the files beside them: a change of either makes
             a built version stale
    """

    model: str
    version: str
    packages: Sequence[Package]
    modules: Sequence[str]
    build: Callable[[Path, OpenPackage], None]
    data: Sequence[Path] = ()

    @property
    def key(self) -> str:
        return f"{self.model}/{self.version}"

    def digest(self) -> str:
        """SHA-256 over everything the result depends on: packages by digest, code and data by content."""
        total = hashlib.sha256(self.key.encode())
        for package in self.packages:
            total.update(f"\0{package.sha256}".encode())
        for module in sorted(self.modules):
            spec = importlib.util.find_spec(module)
            if spec is None or spec.origin is None:
                raise ModuleNotFoundError(module)
            total.update(b"\0" + Path(spec.origin).read_bytes())
        for path in self.data:
            total.update(b"\0" + path.read_bytes())
        return total.hexdigest()
