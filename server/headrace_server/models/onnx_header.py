"""What an ONNX file says about itself: its tensors, metadata, labels and external files, without any weight being read.

Needs neither onnx nor a runtime: a `WireReader` walks the ModelProto and steps over tensor data by length, so a file
of gigabytes costs as much as its node list. External files are listed wherever a tensor may stand: initialisers,
node attributes, subgraphs, functions, training graphs.
"""

from __future__ import annotations

import mmap
from pathlib import Path

from headrace_server.errors import Reason, ServingError
from headrace_server.models.onnx_graph import GraphNode, GraphValue, OnnxHeader
from headrace_server.models.onnx_parser import parse_onnx_header
from headrace_server.models.wire import WireError

__all__ = ["GraphNode", "GraphValue", "OnnxHeader", "parse_onnx_header", "read_onnx_header"]


def read_onnx_header(path: Path) -> OnnxHeader:
    """The header of the file at `path`. Raises ServingError MODEL_INVALID for what is no ONNX graph."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return parse_onnx_header(content)
    except WireError as error:
        raise ServingError(
            Reason.MODEL_INVALID, f"{path.name}: not a readable ONNX file ({error}); export or copy it again"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise ServingError(
            Reason.MODEL_INVALID, f"{path.name}: empty or unreadable; export or copy it again", detail=repr(error)
        ) from None
