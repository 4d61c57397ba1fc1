"""Typed client of a Headrace server.

    with Client("127.0.0.1:50051") as client:
        answer = client.classify("spam", "You have won a prize, click here!")
        print(answer.results[0].best)

`AsyncClient` is the same with `await`. Every failure is a `HeadraceError` of a kind that says what to do.
"""

from headrace_client import filters
from headrace_client.aio import AsyncClient
from headrace_client.catalogs import CatalogInfo, CatalogSpec
from headrace_client.channel import ChannelOptions
from headrace_client.client import Client
from headrace_client.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    HeadraceError,
    InvalidArgument,
    NotFound,
    Overloaded,
    PermissionDenied,
    Resource,
    ServerFault,
    Unavailable,
    Unimplemented,
    Violation,
)
from headrace_client.generation import (
    Generated,
    GeneratedToken,
    GenerationDelta,
    GenerationSummary,
    TextChoice,
    TokenLogprob,
)
from headrace_client.inputs import Image, Input, Raw, Tensors
from headrace_client.items import Item, ItemBatch, ItemError, ScanPage, UpsertProgress, UpsertReport
from headrace_client.recommendations import Recommended
from headrace_client.results import (
    Classification,
    Classifications,
    Embeddings,
    EngineCandidate,
    EngineChoice,
    InputUsage,
    LabelScore,
    ModelInfo,
    ModelVersion,
    Quantization,
    RankedDocument,
    Ranking,
    Similarities,
    TensorSpec,
    Timings,
    Token,
    TokenizedText,
)
from headrace_client.versions import (
    ModelStatistics,
    RollbackRule,
    Section,
    Shadow,
    ShadowStatistics,
    Traffic,
    TrafficSplit,
)

__all__ = [
    "AsyncClient",
    "Cancelled",
    "CatalogInfo",
    "CatalogSpec",
    "ChannelOptions",
    "Classification",
    "Classifications",
    "Client",
    "DeadlineExceeded",
    "Embeddings",
    "EngineCandidate",
    "EngineChoice",
    "FailedPrecondition",
    "Generated",
    "GeneratedToken",
    "GenerationDelta",
    "GenerationSummary",
    "HeadraceError",
    "Image",
    "Input",
    "InputUsage",
    "InvalidArgument",
    "Item",
    "ItemBatch",
    "ItemError",
    "LabelScore",
    "ModelInfo",
    "ModelStatistics",
    "ModelVersion",
    "NotFound",
    "Overloaded",
    "PermissionDenied",
    "Quantization",
    "RankedDocument",
    "Ranking",
    "Raw",
    "Recommended",
    "Resource",
    "RollbackRule",
    "ScanPage",
    "Section",
    "ServerFault",
    "Shadow",
    "ShadowStatistics",
    "Similarities",
    "TensorSpec",
    "Tensors",
    "TextChoice",
    "Timings",
    "Token",
    "TokenLogprob",
    "TokenizedText",
    "Traffic",
    "TrafficSplit",
    "Unavailable",
    "Unimplemented",
    "UpsertProgress",
    "UpsertReport",
    "Violation",
    "filters",
]
