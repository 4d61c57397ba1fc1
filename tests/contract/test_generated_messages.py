"""The committed stubs on the installed runtime; `make test-matrix` runs this on both ends of the supported range."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import google.protobuf
import grpc
import pytest
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as Any_
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.struct_pb2 import Struct

import headrace.v1

MODULES = sorted(path.stem for path in Path(headrace.v1.__path__[0]).glob("*_pb2.py"))
STUBS = sorted(path.stem for path in Path(headrace.v1.__path__[0]).glob("*_pb2_grpc.py"))
FILES = [importlib.import_module(f"headrace.v1.{name}").DESCRIPTOR for name in MODULES]
MAX_DEPTH = 4  # filters nest in themselves


def all_messages() -> list[Descriptor]:
    def within(descriptor: Descriptor) -> list[Descriptor]:
        return [descriptor, *(found for nested in descriptor.nested_types for found in within(nested))]

    return [found for file in FILES for top in file.message_types_by_name.values() for found in within(top)]


def scalar(field: FieldDescriptor) -> Any:
    """A value that is not the field's default."""
    if field.enum_type is not None:
        return field.enum_type.values[-1].number
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        return "Zürich 中" if field.type == FieldDescriptor.TYPE_STRING else b"\x00\xff"
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return True
    return 1.5 if field.cpp_type in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE) else 7


def fill(message: Message, depth: int = 0) -> Message:
    """Set every field, and the last field of every oneof."""
    if isinstance(message, Struct):
        message.update({"text": "Zürich", "list": [1.5, None, True], "nested": {"a": 1}})
        return message
    if isinstance(message, Any_):
        message.Pack(Duration(seconds=7))
        return message
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and depth >= MAX_DEPTH:
            continue
        target = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            key = scalar(field.message_type.fields_by_name["key"])
            if value.message_type is None:
                target[key] = scalar(value)
            else:
                fill(target[key], depth + 1)
        elif hasattr(target, "append"):
            target.append(scalar(field)) if field.message_type is None else fill(target.add(), depth + 1)
        elif field.message_type is None:
            setattr(message, field.name, scalar(field))
        else:
            target.SetInParent()
            fill(target, depth + 1)
    return message


@pytest.mark.parametrize("descriptor", all_messages(), ids=lambda descriptor: descriptor.full_name)
def test_every_message_survives_bytes_and_json(descriptor: Descriptor) -> None:
    message_class = GetMessageClass(descriptor)
    message = fill(message_class())
    sent = message.SerializeToString(deterministic=True)
    assert message_class.FromString(sent) == message
    assert sent or not descriptor.fields
    if not descriptor.GetOptions().map_entry:
        assert json_format.Parse(json_format.MessageToJson(message), message_class()) == message


@pytest.mark.parametrize("name", STUBS)
def test_stubs_name_every_method_of_their_services(name: str) -> None:
    stubs = importlib.import_module(f"headrace.v1.{name}")
    messages = importlib.import_module(f"headrace.v1.{name.removesuffix('_grpc')}")
    services = messages.DESCRIPTOR.services_by_name
    assert services
    with grpc.insecure_channel("127.0.0.1:1") as channel:  # never connected
        for service in services.values():
            stub = getattr(stubs, f"{service.name}Stub")(channel)
            assert all(callable(getattr(stub, method.name)) for method in service.methods)


def test_runtime_is_one_the_stubs_accept() -> None:
    runtime = tuple(int(part) for part in google.protobuf.__version__.split(".")[:2])
    assert (6, 30) <= runtime < (8, 0)
    print(f"protobuf {google.protobuf.__version__}, grpcio {grpc.__version__}")
