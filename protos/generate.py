"""Python messages and stubs, made from the .proto files beside this one.

    python protos/generate.py            write protos/gen/python and the server's messages of the inference protocol
    python protos/generate.py --check    exit 1 and name what differs, write nothing

`headrace.v1` becomes an import package. The Open Inference Protocol becomes one module inside the server, with a
descriptor pool of its own: its package is named `inference`, as every such server's and client's is, and two of them
in the default pool of one process clash.

Run it with the pinned generator, as `make protos` does: a runtime refuses stubs made for a newer one, so the committed
stubs are made with the oldest grpcio and protobuf of the supported range.
"""

from __future__ import annotations

import argparse
import base64
import filecmp
import re
import shutil
import sys
import tempfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

__all__ = ["generate", "generate_inference", "main", "stale"]

PROTOS = Path(__file__).resolve().parent
OUTPUT = PROTOS / "gen" / "python"
INFERENCE = "inference/grpc_service.proto"
INFERENCE_OUTPUT = PROTOS.parent / "server" / "headrace_server" / "rpc" / "inference"
INFERENCE_FILES = ("messages.py", "messages.pyi")
REQUIREMENTS = PROTOS / "generator-requirements.txt"
PACKAGES = {
    "headrace": '"""Generated from the .proto files of Headrace; `headrace.v1` is the API."""\n',
    "headrace/v1": '"""Generated messages (`*_pb2`) and stubs (`*_pb2_grpc`) of the API, version 1."""\n',
}
INFERENCE_MODULE = '''\
"""Generated from protos/inference: the Open Inference Protocol's messages, in a descriptor pool of their own."""

from __future__ import annotations

from base64 import b64decode

from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.internal.enum_type_wrapper import EnumTypeWrapper
from google.protobuf.message_factory import GetMessageClass

__all__ = [
{names}
]

_FILE = b64decode(
{data}
)
_POOL = DescriptorPool()
_POOL.Add(FileDescriptorProto.FromString(_FILE))
DESCRIPTOR = _POOL.FindFileByName("{file}")
_enums = DESCRIPTOR.enum_types_by_name
_messages = DESCRIPTOR.message_types_by_name

{classes}
'''


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


def generate_inference(output: Path) -> None:
    """Fill an empty folder with the module of the Open Inference Protocol's messages, and its types."""
    from google.protobuf.descriptor_pb2 import FileDescriptorSet
    from grpc_tools import protoc

    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder)
        descriptors = made / "descriptors.binpb"
        arguments = ["protoc", f"--proto_path={PROTOS}", f"--descriptor_set_out={descriptors}", f"--pyi_out={made}"]
        if protoc.main([*arguments, INFERENCE]) != 0:
            raise SystemExit("protos: the compiler refused a file, see above")
        (file,) = FileDescriptorSet.FromString(descriptors.read_bytes()).file
        types = (made / INFERENCE).with_name("grpc_service_pb2.pyi").read_text(encoding="utf-8")
    made_by = {enum.name: f'EnumTypeWrapper(_enums["{enum.name}"])' for enum in file.enum_type}
    made_by |= {message.name: f'GetMessageClass(_messages["{message.name}"])' for message in file.message_type}
    coded = base64.b64encode(file.SerializeToString(deterministic=True)).decode()
    text = INFERENCE_MODULE.format(
        names="\n".join(f'    "{name}",' for name in ("DESCRIPTOR", *sorted(made_by))),
        data="\n".join(f'    "{coded[at : at + 112]}"' for at in range(0, len(coded), 112)),
        file=INFERENCE,
        classes="\n".join(f"{name} = {made}" for name, made in sorted(made_by.items())),
    )
    (output / "messages.py").write_text(text, encoding="utf-8")
    (output / "messages.pyi").write_text(
        f'# Generated.\n# mypy: disable-error-code="type-arg"\n{types}', encoding="utf-8"
    )


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
        fresh, fresh_inference = Path(folder) / "python", Path(folder) / "inference"
        fresh.mkdir()
        fresh_inference.mkdir()
        generate(fresh)
        generate_inference(fresh_inference)
        differing = [(OUTPUT, fresh, name) for name in stale(OUTPUT, fresh)]
        differing += [
            (INFERENCE_OUTPUT, fresh_inference, name)
            for name in INFERENCE_FILES
            if name in stale(INFERENCE_OUTPUT, fresh_inference)
        ]
        if check:
            for _, _, name in differing:
                print(f"protos: {name} is not what the .proto files say: run `make protos` and commit", file=sys.stderr)
            return 1 if differing else 0
        for committed, made, name in differing:
            if (made / name).is_file():
                (committed / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(made / name, committed / name)
            else:
                (committed / name).unlink()
    print(f"protos: {len(differing)} files written or removed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
