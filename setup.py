"""What pyproject.toml cannot say: two source roots, compiled extensions, and which files a wheel holds.

`HEADRACE_EXTENSIONS=0` leaves the extensions out; the Makefile compiles them in place in a step of its own.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
SOURCE_ROOTS = {"headrace_server": "server", "headrace_kernels": "kernels"}
# code, which setuptools finds itself, and its sources
NOT_IN_A_WHEEL = {".c", ".cpp", ".h", ".html", ".o", ".py", ".pxd", ".pxi", ".pyc", ".pyx", ".so"}


def data_files(package: str) -> list[str]:
    """Every file of a package that is neither code nor a source of code, relative to the package."""
    folder = ROOT / SOURCE_ROOTS[package] / package
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [
        str(path)
        for path in files
        if path.suffix not in NOT_IN_A_WHEEL and not any(part.startswith((".", "__pycache__")) for part in path.parts)
    ]


def extensions() -> list[Any]:
    """The kernels' extension modules. The file is loaded by path: a build frontend leaves the project off sys.path."""
    if os.environ.get("HEADRACE_EXTENSIONS") == "0":
        return []
    spec = importlib.util.spec_from_file_location("build_extensions", ROOT / "kernels" / "build_extensions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: list[Any] = module.extensions()
    return found


os.chdir(ROOT)  # extension sources are given relative to the project
setup(
    packages=[name for folder in SOURCE_ROOTS.values() for name in find_packages(folder)],
    package_dir={name: f"{folder}/{name}" for name, folder in SOURCE_ROOTS.items()},
    package_data={name: data_files(name) for name in SOURCE_ROOTS},
    ext_modules=extensions(),
    options={"build_ext": {"parallel": os.cpu_count()}},
)
