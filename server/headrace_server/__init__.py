"""Headrace: one gRPC server for classification, embedding, recommendation and text generation.

import headrace_server

with headrace_server.Server(repository="models") as server:
    print(server.classify("spam", ["You have won!"]).results[0].labels)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headrace_server.config import (
        AdminOptions,
        BatchPolicy,
        CatalogOptions,
        EngineOptions,
        InputLimits,
        ServerConfig,
        ThreadBudget,
        TlsOptions,
        TransportOptions,
    )
    from headrace_server.errors import Reason, ServingError
    from headrace_server.jobs.queries import ModelRef
    from headrace_server.models.inputs import BytesInput, FeaturesInput, ImageInput, TensorsInput, TextInput
    from headrace_server.models.model import PrepareOptions
    from headrace_server.server import Addresses, Server

__all__ = [
    "Addresses",
    "AdminOptions",
    "BatchPolicy",
    "BytesInput",
    "CatalogOptions",
    "EngineOptions",
    "FeaturesInput",
    "ImageInput",
    "InputLimits",
    "ModelRef",
    "PrepareOptions",
    "Reason",
    "Server",
    "ServerConfig",
    "ServingError",
    "TensorsInput",
    "TextInput",
    "ThreadBudget",
    "TlsOptions",
    "TransportOptions",
]

_ROOMS = {
    "headrace_server.config": (
        "AdminOptions", "BatchPolicy", "CatalogOptions", "EngineOptions", "InputLimits", "ServerConfig", "ThreadBudget",
        "TlsOptions", "TransportOptions",
    ),
    "headrace_server.errors": ("Reason", "ServingError"),
    "headrace_server.jobs.queries": ("ModelRef",),
    "headrace_server.models.inputs": ("BytesInput", "FeaturesInput", "ImageInput", "TensorsInput", "TextInput"),
    "headrace_server.models.model": ("PrepareOptions",),
    "headrace_server.server": ("Addresses", "Server"),
}  # fmt: skip
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str) -> Any:
    # Each room's submodule imports this package first: what it offers is fetched when it is asked for.
    room = _ROOM_OF.get(name)
    if room is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(room), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
