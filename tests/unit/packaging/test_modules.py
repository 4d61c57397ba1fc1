"""What every hand-written module keeps to, read from its source."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest
from source_modules import PACKAGES, imported_names, modules, name_of, parse

MAY_READ_THE_ENVIRONMENT = ("server/headrace_server/cli/", "kernels/headrace_kernels/_dispatch.py")


def exported(tree: ast.Module) -> list[str] | None:
    """The literal `__all__` of a module; None where it has none."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    return None


def defined(tree: ast.Module) -> set[str]:
    """Names a module binds at its top level, by definition, assignment or import."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.TypeAlias) if sys.version_info >= (3, 12) else False:
            names.add(node.name.id)
    return names


def export_order(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions; each by name. The order ruff keeps."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, name


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_module_says_what_it_exports_in_order(path: Path) -> None:
    tree = parse(path)
    names = exported(tree)
    if names is None:
        own = [
            n for n in tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign)
        ]
        assert not own or path.name == "__main__.py", "a module that defines something has an __all__"
        return
    assert len(names) == len(set(names)), "a name is exported twice"
    assert names == sorted(names, key=export_order)
    if not any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body):  # lazily imported
        assert set(names) <= defined(tree)


@pytest.mark.parametrize("path", modules("headrace_kernels"), ids=name_of)
def test_kernels_import_numpy_and_themselves_only(path: Path) -> None:
    allowed = sys.stdlib_module_names | {"numpy", "headrace_kernels"}
    assert {name.split(".")[0] for name in imported_names(parse(path))} <= allowed


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_environment_is_read_by_the_command_line_only(path: Path) -> None:
    if name_of(path).startswith(MAY_READ_THE_ENVIRONMENT):
        return
    reads = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    ]
    assert not reads, f"reads the environment at lines {reads}"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_says_that_it_is_typed(package: str) -> None:
    assert (PACKAGES[package] / "py.typed").is_file()


def test_every_extension_has_its_types_beside_it() -> None:
    sources = sorted(PACKAGES["headrace_kernels"].rglob("*.pyx"))
    assert sources
    assert [path.name for path in sources if not path.with_suffix(".pyi").is_file()] == []
