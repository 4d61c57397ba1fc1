"""grpc.reflection v1 and v1alpha: what the server serves, told to tools. Only services that are built are listed, and
only the files that they reach are given out. What is not found is told in-band, as the protocol wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import Default
from grpc_reflection.v1alpha import reflection_pb2 as pb  # type: ignore[import-untyped]

from headrace_server.errors import ServingError
from headrace_server.rpc.dispatch import parse
from headrace_server.rpc.exchange import Exchange
from headrace_server.rpc.observer import RpcObserver
from headrace_server.rpc.status import Code, clip
from headrace_server.rpc.transport.call import Call, Kind, Method

__all__ = ["SERVICE_NAMES", "Reflection"]

# Both versions have one wire format; the stubs of v1alpha serve for both.
SERVICE_NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")


class Reflection:
    """Answers by file, symbol and extension over a fixed set of services."""

    def __init__(self, services: Sequence[ServiceDescriptor], observer: RpcObserver) -> None:
        self._observer = observer
        self._names = sorted([*(service.full_name for service in services), *SERVICE_NAMES])
        self._files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
        self._file_of: dict[str, str] = {}  # by symbol
        self._extensions: dict[str, dict[int, str]] = {}  # by extended type: number → file
        for service in services:
            self._add(service.file)
        self._add(pb.DESCRIPTOR)
        self._index(_renamed_file(SERVICE_NAMES[0]))

    def methods(self) -> list[Method]:
        return [Method(f"/{name}/ServerReflectionInfo", Kind.BIDI_STREAM, self._handle) for name in SERVICE_NAMES]

    def answer(self, request: pb.ServerReflectionRequest) -> pb.ServerReflectionResponse:
        """The answer to one question, which comes back with it."""
        response = pb.ServerReflectionResponse(valid_host=request.host, original_request=request)
        kind = request.WhichOneof("message_request")
        if kind == "list_services":
            response.list_services_response.service.extend(pb.ServiceResponse(name=name) for name in self._names)
        elif kind == "file_by_filename":
            self._give_file(response, request.file_by_filename, f"file {request.file_by_filename!r}")
        elif kind == "file_containing_symbol":
            symbol = request.file_containing_symbol
            self._give_file(response, self._file_of.get(symbol), f"symbol {symbol!r}")
        elif kind == "file_containing_extension":
            extension = request.file_containing_extension
            file = self._extensions.get(extension.containing_type, {}).get(extension.extension_number)
            what = f"extension {extension.extension_number} of {extension.containing_type!r}"
            self._give_file(response, file, what)
        elif kind == "all_extension_numbers_of_type":
            name = request.all_extension_numbers_of_type
            if name in self._file_of:
                numbers = response.all_extension_numbers_response
                numbers.base_type_name = name
                numbers.extension_number.extend(sorted(self._extensions.get(name, {})))
            else:
                _refuse(response, Code.NOT_FOUND, f"type {name!r} is not known")
        else:
            _refuse(response, Code.INVALID_ARGUMENT, "no question is set")
        return response

    def _handle(self, call: Call) -> None:
        exchange = Exchange(call, self._observer)
        _Conversation(call, exchange, self.answer)

    def _give_file(self, response: pb.ServerReflectionResponse, name: str | None, what: str) -> None:
        if name is None or name not in self._files:
            _refuse(response, Code.NOT_FOUND, f"{what} is not known")
            return
        files = response.file_descriptor_response.file_descriptor_proto
        files.extend(self._files[each].SerializeToString() for each in self._with_imports(name))

    def _with_imports(self, name: str) -> list[str]:
        """The file first, then all that it needs."""
        names = [name]
        for each in names:
            names.extend(needed for needed in self._files[each].dependency if needed not in names)
        return names

    def _add(self, file: FileDescriptor) -> None:
        if file.name in self._files:
            return
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        self._index(proto)
        for needed in proto.dependency:
            self._add(Default().FindFileByName(needed))

    def _index(self, proto: descriptor_pb2.FileDescriptorProto) -> None:
        self._files[proto.name] = proto
        for symbol in _symbols(proto):
            self._file_of.setdefault(symbol, proto.name)
        for extension in _extensions(proto):
            self._extensions.setdefault(extension.extendee.removeprefix("."), {})[extension.number] = proto.name


class _Conversation:
    """One call: each question is answered as it comes; a reader that is slow is asked no further questions of."""

    def __init__(
        self,
        call: Call,
        exchange: Exchange,
        answer: Callable[[pb.ServerReflectionRequest], pb.ServerReflectionResponse],
    ) -> None:
        self._call = call
        self._exchange = exchange
        self._answer = answer
        self._ended = False
        call.on_message = self._on_message
        call.on_half_close = self._on_half_close
        exchange.context.on_cancel(self._on_cancel)

    def _on_message(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            answer = self._answer(parse(pb.ServerReflectionRequest, data))
        except ServingError as error:
            self._ended = True
            self._exchange.fail(error)
            return
        if not self._call.send(answer.SerializeToString()):
            self._call.pause()
            self._call.on_writable(self._call.resume)

    def _on_half_close(self) -> None:
        if not self._ended:
            self._ended = True
            self._exchange.finish()

    def _on_cancel(self) -> None:
        if not self._ended:
            self._ended = True
            self._exchange.abandon()


def _refuse(response: pb.ServerReflectionResponse, code: Code, text: str) -> None:
    response.error_response.error_code = int(code)
    response.error_response.error_message = clip(text)


def _renamed_file(service: str) -> descriptor_pb2.FileDescriptorProto:
    """The file of reflection v1, made from that of v1alpha: grpcio-reflection carries no stubs for v1."""
    package = service.rpartition(".")[0]
    renamed = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(renamed)
    old = renamed.package
    renamed.name = renamed.name.replace("v1alpha", "v1")
    renamed.package = package
    for message in renamed.message_type:
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(f".{old}.", f".{package}.")
    for service_proto in renamed.service:
        for method in service_proto.method:
            method.input_type = method.input_type.replace(f".{old}.", f".{package}.")
            method.output_type = method.output_type.replace(f".{old}.", f".{package}.")
    return renamed


def _symbols(proto: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    package = proto.package
    yield from _type_symbols(package, proto.message_type, proto.enum_type)
    for service in proto.service:
        name = f"{package}.{service.name}"
        yield name
        yield from (f"{name}.{method.name}" for method in service.method)
    yield from (f"{package}.{extension.name}" for extension in proto.extension)


def _type_symbols(
    scope: str,
    messages: Iterable[descriptor_pb2.DescriptorProto],
    enums: Iterable[descriptor_pb2.EnumDescriptorProto],
) -> Iterator[str]:
    for message in messages:
        name = f"{scope}.{message.name}"
        yield name
        yield from (f"{name}.{field.name}" for field in (*message.field, *message.extension))
        yield from (f"{name}.{oneof.name}" for oneof in message.oneof_decl)
        yield from _type_symbols(name, message.nested_type, message.enum_type)
    for enum in enums:
        yield f"{scope}.{enum.name}"
        yield from (f"{scope}.{value.name}" for value in enum.value)


def _extensions(proto: descriptor_pb2.FileDescriptorProto) -> Iterator[descriptor_pb2.FieldDescriptorProto]:
    yield from proto.extension
    nested = list(proto.message_type)
    for message in nested:
        yield from message.extension
        nested.extend(message.nested_type)
