"""Python messages and stubs of `headrace.v1`, made from the .proto files beside this one.

    python protos/generate.py            write protos/gen/python
    python protos/generate.py --check    exit 1 and name what differs, write nothing

Run it with the pinned generator, as `make protos` does: a runtime refuses stubs made for a newer one, so the committed
stubs are made with the oldest grpcio and protobuf of the supported range.
"""

from __future__ import annotations

import argparse
import filecmp
import re
import shutil
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

__all__ = ["generate", "main", "stale"]

PROTOS = Path(__file__).resolve().parent
OUTPUT = PROTOS / "gen" / "python"
REQUIREMENTS = PROTOS / "generator-requirements.txt"
PACKAGES = {
    "headrace": '"""Generated from the .proto files of Headrace; `headrace.v1` is the API."""\n',
    "headrace/v1": '"""Generated messages (`*_pb2`) and stubs (`*_pb2_grpc`) of the API, version 1."""\n',
}


def googleapis() -> Path:
    """The folder that holds google/rpc/*.proto, from the installed googleapis-common-protos."""
    spec = find_spec("google.rpc.status_pb2")
    if spec is None or spec.origin is None:
        raise SystemExit("protos: googleapis-common-protos is not installed beside the generator")
    return Path(spec.origin).parents[2]


def well_known_types() -> Path:
    """The folder that holds google/protobuf/*.proto, from the installed grpcio-tools."""
    import grpc_tools

    return Path(grpc_tools.__file__).parent / "_proto"


def generate(output: Path) -> None:
    """Fill an empty folder with the import package `headrace`."""
    from grpc_tools import protoc

    sources = sorted((PROTOS / "headrace").rglob("*.proto"))
    if not sources:
        raise SystemExit("protos: no .proto file under protos/headrace")
    plugin = Path(sys.executable).with_name("protoc-gen-mypy_grpc")
    arguments = [
        "protoc",
        *(f"--proto_path={folder}" for folder in (PROTOS, googleapis(), well_known_types())),
        *(f"--{kind}={output}" for kind in ("python_out", "pyi_out", "grpc_python_out")),
        f"--mypy_grpc_out=quiet:{output}",
        f"--plugin=protoc-gen-mypy_grpc={plugin}",
        *(str(source.relative_to(PROTOS)) for source in sources),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protos: the compiler refused a file, see above")
    for source in sources:
        if not re.search(r"^service\s", source.read_text(encoding="utf-8"), re.MULTILINE):
            for suffix in ("_pb2_grpc.py", "_pb2_grpc.pyi"):  # holds nothing but a version check
                (output / source.relative_to(PROTOS)).with_name(source.stem + suffix).unlink(missing_ok=True)
    for package, text in PACKAGES.items():
        (output / package / "__init__.py").write_text(text, encoding="utf-8")
    (output / "headrace" / "py.typed").touch()


def stale(committed: Path, fresh: Path) -> list[str]:
    """Paths that differ between two folders, are missing from one, or are left over in the other; sorted."""
    names = {
        path.relative_to(folder).as_posix()
        for folder in (committed, fresh)
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.parent.name.endswith(".egg-info")
    }
    return sorted(
        name
        for name in names
        if not (committed / name).is_file()
        or not (fresh / name).is_file()
        or not filecmp.cmp(committed / name, fresh / name, shallow=False)
    )


def main(arguments: list[str] | None = None) -> int:
    """0 when the committed code is (now) up to date, 1 when --check found a difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args(arguments).check
    for name, version in re.findall(r"^([\w-]+)==([\w.]+)", REQUIREMENTS.read_text(encoding="utf-8"), re.MULTILINE):
        if (found := metadata.version(name)) != version:
            raise SystemExit(f"protos: {name} is {found}, the generator is pinned to {version}: run `make protos`")

    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        generate(fresh)
        differing = stale(OUTPUT, fresh)
        if check:
            for name in differing:
                print(f"protos: {name} is not what the .proto files say: run `make protos` and commit", file=sys.stderr)
            return 1 if differing else 0
        for name in differing:
            if (fresh / name).is_file():
                (OUTPUT / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(fresh / name, OUTPUT / name)
            else:
                (OUTPUT / name).unlink()
    print(f"protos: {len(differing)} files written or removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
