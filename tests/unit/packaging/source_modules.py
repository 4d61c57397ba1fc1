"""The hand-written modules of the three import packages, for tests that read them without importing them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PACKAGES", "ROOT", "imported_names", "modules", "name_of", "parse"]

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = {
    "headrace_client": ROOT / "clients" / "python" / "headrace_client",
    "headrace_kernels": ROOT / "kernels" / "headrace_kernels",
    "headrace_server": ROOT / "server" / "headrace_server",
}


def modules(*packages: str) -> list[Path]:
    """Every .py file of the packages, of all three where none is named."""
    return [path for name in packages or PACKAGES for path in sorted(PACKAGES[name].rglob("*.py"))]


def name_of(path: Path) -> str:
    """A file's place in the repository, as a test's id."""
    return path.relative_to(ROOT).as_posix()


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imported_names(tree: ast.Module) -> Iterator[str]:
    """Full names of the modules a file imports, at any depth; relative imports as their bare name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
