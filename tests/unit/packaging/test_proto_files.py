"""What every .proto file keeps to beyond buf's rules: options for other languages, and a comment on everything."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto, FileDescriptorSet
from source_modules import ROOT

BUF = Path(sys.executable).with_name("buf")
PACKAGES = ("headrace.v1", "inference")
MESSAGES, SERVICES, ENUMS = 4, 6, 5  # field numbers of FileDescriptorProto
FIELDS, NESTED, NESTED_ENUMS, VALUES, METHODS = 2, 3, 4, 2, 2  # and of what is within


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    """Descriptors of headrace.v1 and of the inference protocol, with their comments."""
    if not BUF.is_file():
        pytest.skip("buf is not installed beside this Python (buf-bin)")
    if not (ROOT / "build" / "googleapis").is_dir():
        pytest.skip("build/googleapis is not there: `make buf` copies it")
    image = tmp_path_factory.mktemp("buf") / "image.binpb"
    subprocess.run([BUF, "build", "-o", image], cwd=ROOT, check=True, timeout=60)
    return [f for f in FileDescriptorSet.FromString(image.read_bytes()).file if f.package in PACKAGES]


def places(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and path of every message, field, enum value, service and method."""

    def within(message: DescriptorProto, path: tuple[int, ...]) -> Iterator[tuple[str, tuple[int, ...]]]:
        if message.options.map_entry:
            return
        yield message.name, path
        for at, field in enumerate(message.field):
            yield f"{message.name}.{field.name}", (*path, FIELDS, at)
        for at, nested in enumerate(message.nested_type):
            yield from within(nested, (*path, NESTED, at))
        for at, enum in enumerate(message.enum_type):
            yield f"{message.name}.{enum.name}", (*path, NESTED_ENUMS, at)

    for at, message in enumerate(file.message_type):
        yield from within(message, (MESSAGES, at))
    for at, enum in enumerate(file.enum_type):
        yield enum.name, (ENUMS, at)
        for value_at, value in enumerate(enum.value):
            if value_at:  # the zero says itself that nothing was chosen
                yield f"{enum.name}.{value.name}", (ENUMS, at, VALUES, value_at)
    for at, service in enumerate(file.service):
        yield service.name, (SERVICES, at)
        for method_at, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (SERVICES, at, METHODS, method_at)


def test_every_file_names_its_place_in_go_and_java(files: list[FileDescriptorProto]) -> None:
    assert files
    for file in (file for file in files if file.package == "headrace.v1"):
        assert file.options.go_package, file.name
        assert file.options.java_package, file.name
        assert file.options.java_multiple_files, file.name


def test_everything_has_a_comment(files: list[FileDescriptorProto]) -> None:
    bare = []
    for file in files:
        said = {
            tuple(location.path)
            for location in file.source_code_info.location
            if location.leading_comments.strip() or location.trailing_comments.strip()
        }
        bare += [f"{file.name}: {name}" for name, path in places(file) if path not in said]
    # A stream's messages that only wrap another say nothing of their own; everything else says shape, unit, limit.
    assert bare == []
