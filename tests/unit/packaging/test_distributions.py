"""The distributions hold what they must, install in clean environments, and need no more than they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from source_modules import ROOT

PROJECTS = {"headrace": ROOT, "headrace-client": ROOT / "clients" / "python", "headrace-protos": ROOT / "protos"}
SOURCES = (".c", ".cpp", ".h", ".pxd", ".pxi", ".pyx")
NOT_SOURCES = ("*.so", "*.o", "__pycache__", "*.egg-info", "build", ".*")


def build(project: str, workplace: Path, *, isolated: bool) -> tuple[list[str], list[str], Path]:
    """Names in the sdist, names in the wheel, and the wheel, built from a copy of what a clean clone holds.

    Not isolated: without compiled extensions, with the build requirements of this environment. In seconds.
    """
    out = workplace / "dist"
    source = workplace / project
    if project == "headrace":  # the other folders of the repository are no part of it
        source.mkdir()
        for name in ("server", "kernels", "protos"):
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*NOT_SOURCES))
        for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE", "README.md", "CHANGELOG.md"):
            shutil.copy(ROOT / name, source / name)
    else:
        shutil.copytree(PROJECTS[project], source, ignore=shutil.ignore_patterns(*NOT_SOURCES))
    # With neither --sdist nor --wheel the wheel is built from the sdist, which so proves complete.
    flags = () if isolated else ("--no-isolation",)
    environment = {**os.environ, **({} if isolated else {"HEADRACE_EXTENSIONS": "0"})}
    checked([sys.executable, "-m", "build", *flags, "--outdir", str(out), str(source)], env=environment)
    wheel = next(out.glob(f"{project.replace('-', '_')}-*.whl"))
    sdist = next(out.glob(f"{project.replace('-', '_')}-*.tar.gz"))
    with tarfile.open(sdist) as archive:
        in_sdist = [name.split("/", 1)[1] for name in archive.getnames() if "/" in name]
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    return in_sdist, in_wheel, wheel


def checked(command: Sequence[str | Path], **options: object) -> str:
    """What a command printed; fails with all it said where it failed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return str(done.stdout)


def tops(names: list[str]) -> set[str]:
    return {name.split("/")[0] for name in names if ".dist-info/" not in name}


def files_of(folder: Path, pattern: str) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob(pattern) if "build" not in path.parts}


def test_server_distribution_holds_sources_in_the_sdist_and_none_in_the_wheel(tmp_path: Path) -> None:
    in_sdist, in_wheel, _ = build("headrace", tmp_path, isolated=False)
    native = {
        f"kernels/{name}" for suffix in ("pyx", "pxd", "h", "c") for name in files_of(ROOT / "kernels", f"*.{suffix}")
    }
    protos = {f"protos/headrace/{name}" for name in files_of(ROOT / "protos" / "headrace", "*.proto")}
    assert native
    assert protos
    assert native | protos | {"kernels/build_extensions.py", "setup.py", "LICENSE"} <= set(in_sdist)

    assert tops(in_wheel) == {"headrace_kernels", "headrace_server"}
    assert [name for name in in_wheel if name.endswith(SOURCES)] == []
    stubs = files_of(ROOT / "kernels", "*.pyi")
    modules = files_of(ROOT / "kernels" / "headrace_kernels", "*.py") | set()
    assert stubs | {"headrace_kernels/py.typed", "headrace_server/py.typed"} <= set(in_wheel)
    assert {f"headrace_kernels/{name}" for name in modules} <= set(in_wheel)
    assert {f"headrace_server/{name}" for name in files_of(ROOT / "server" / "headrace_server", "*.py")} <= set(
        in_wheel
    )


def test_messages_distribution_owns_headrace_and_carries_its_protos(tmp_path: Path) -> None:
    in_sdist, in_wheel, _ = build("headrace-protos", tmp_path, isolated=False)
    assert files_of(ROOT / "protos", "headrace/**/*.proto") <= set(in_sdist)
    generated = files_of(ROOT / "protos" / "gen" / "python", "*.py*") - files_of(
        ROOT / "protos" / "gen" / "python", "*.pyc"
    )
    assert tops(in_wheel) == {"headrace"}
    assert {name for name in generated if name.startswith("headrace/")} | {"headrace/py.typed"} <= set(in_wheel)


def test_client_distribution_is_the_client_alone(tmp_path: Path) -> None:
    in_sdist, in_wheel, _ = build("headrace-client", tmp_path, isolated=False)
    assert "headrace_client/py.typed" in in_sdist
    assert tops(in_wheel) == {"headrace_client"}
    assert {f"headrace_client/{n}" for n in files_of(PROJECTS["headrace-client"] / "headrace_client", "*.py")} <= set(
        in_wheel
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Real wheels, compiled in isolation from their sdists."""
    return {name: build(name, tmp_path_factory.mktemp(name), isolated=True)[2] for name in PROJECTS}


def clean_environment(folder: Path, wheels: Sequence[str | Path]) -> Path:
    """The Python of a new environment in which only these were installed."""
    checked([sys.executable, "-m", "venv", folder])
    python = folder / "bin" / "python"
    checked([python, "-m", "pip", "-qq", "--disable-pip-version-check", "install", *wheels])
    return python


def run_in(python: Path, code: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return checked([python, "-c", code], cwd=python.parent, env=environment)


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_client_installs_with_its_own_needs_and_no_more(wheels: dict[str, Path], tmp_path: Path) -> None:
    python = clean_environment(tmp_path / "env", [wheels["headrace-protos"], wheels["headrace-client"]])
    run_in(python, "import headrace_client; assert headrace_client.Client; import headrace.v1.embedding_pb2_grpc")
    listing = run_in(python, "from importlib import metadata; print(*(d.name for d in metadata.distributions()))")
    allowed = {"googleapis-common-protos", "grpcio", "headrace-client", "headrace-protos", "numpy", "pip", "protobuf"}
    assert set(listing.split()) - {"setuptools", "typing_extensions"} == allowed


@pytest.mark.full
@pytest.mark.timeout(3000)
def test_server_installs_compiled_and_answers_on_the_command_line(wheels: dict[str, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(wheels["headrace"]) as archive:
        names = archive.namelist()
    assert [name for name in names if name.endswith(SOURCES)] == []
    sources = files_of(ROOT / "kernels", "*.pyx")
    assert len([name for name in names if name.endswith(".so")]) == len(sources)

    python = clean_environment(tmp_path / "env", [wheels["headrace-protos"], f"{wheels['headrace']}[cpu]"])
    run_in(
        python,
        "import importlib, pkgutil, headrace_kernels, headrace_server\n"
        "for package in (headrace_kernels, headrace_server):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        if '.prepare' not in module.name and not module.name.endswith('__main__'):\n"  # needs the demo extra
        "            importlib.import_module(module.name)\n",
    )
    usage = checked([python.parent / "headrace", "--help"])
    for command in ("serve", "inspect", "demo", "tour"):
        assert command in usage
