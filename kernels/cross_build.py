"""The kernels' extensions compiled for another machine, with the flags that `build_extensions` gives them.

    python kernels/cross_build.py --compiler GCC --sysroot DIR --python 3.11 --objects DIR --lib DIR

Writes DIR/headrace_kernels with the extensions and links to the sources' Python files. An object is compiled again
when its source, or any header, is newer.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension

ROOT = Path(__file__).resolve().parent.parent


def compile_source(options: argparse.Namespace, extension: Extension, source: Path, newest_header: float) -> Path:
    """The object of one source of an extension."""
    made: Path = options.objects / extension.name.rpartition(".")[2] / source.with_suffix(".o").name
    if made.exists() and made.stat().st_mtime > max(source.stat().st_mtime, newest_header):
        return made
    made.parent.mkdir(parents=True, exist_ok=True)
    include = options.sysroot / "usr" / "include"
    folders = [*extension.include_dirs, include / f"python{options.python}"]
    command = [
        options.compiler,
        f"--sysroot={options.sysroot}",
        "-c",
        "-fPIC",
        "-DNDEBUG",
        *extension.extra_compile_args,
    ]
    command += [f"-I{folder}" for folder in folders]
    subprocess.run([*command, str(source), "-o", str(made)], check=True)
    return made


def main() -> None:
    """Compiles what is out of date, then links."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compiler", required=True)
    parser.add_argument("--python", required=True)
    for name in ("--sysroot", "--objects", "--lib"):
        parser.add_argument(name, required=True, type=Path)
    options = parser.parse_args()
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT / "kernels"))
    from build_extensions import extensions

    package = Path("kernels") / "headrace_kernels"
    newest_header = max(path.stat().st_mtime for path in package.rglob("*.h"))
    native = options.lib / "headrace_kernels" / "_native"
    native.mkdir(parents=True, exist_ok=True)
    for path in (*package.iterdir(), *(package / "_native").iterdir()):
        link = options.lib / path.relative_to("kernels")
        if path.suffix in {".py", ".pyi", ".typed"} or path.name in {"simd", "py.typed"}:
            link.unlink(missing_ok=True)
            link.symlink_to(path.resolve())

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for extension in extensions():
            jobs = [
                pool.submit(compile_source, options, extension, Path(source), newest_header)
                for source in extension.sources
            ]
            objects = [str(job.result()) for job in jobs]
            made = native / f"{extension.name.rpartition('.')[2]}.so"
            link = [options.compiler, f"--sysroot={options.sysroot}", "-shared", *objects, "-lm", "-lpthread"]
            subprocess.run([*link, "-o", str(made)], check=True)


if __name__ == "__main__":
    main()
