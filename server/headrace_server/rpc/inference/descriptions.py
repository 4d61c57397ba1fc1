"""A model's signature as the protocol's metadata and configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from headrace_server.jobs.signatures import Signature
from headrace_server.models.model import Model
from headrace_server.models.signature import DataType, TensorSpec
from headrace_server.rpc.codec.inference import DATATYPES
from headrace_server.rpc.inference import messages as pb

__all__ = ["describe_config", "describe_metadata"]

_GRAPH_PLATFORM, _GRAPH_BACKEND = "onnxruntime_onnx", "onnxruntime"
_OWN = "headrace"
_TYPES: Mapping[DataType, str] = MappingProxyType(
    {name: f"TYPE_{'STRING' if datatype == 'BYTES' else datatype}" for name, datatype in DATATYPES.items()}
)


def describe_metadata(
    name: str, model: Model, signature: Signature, versions: Sequence[str]
) -> pb.ModelMetadataResponse:
    """Versions and tensors; shapes with the batch axis."""
    properties = {"format": model.format}
    if model.max_length:
        properties["max_length"] = str(model.max_length)
    if model.generator is not None and model.generator.chat is not None:
        properties["chat"] = "true"
    return pb.ModelMetadataResponse(
        name=name,
        versions=versions,
        platform=_OWN if signature.reads else _GRAPH_PLATFORM,
        inputs=map(_tensor, signature.inputs),
        outputs=map(_tensor, signature.outputs),
        properties=properties,
    )


def describe_config(name: str, model: Model, signature: Signature) -> pb.ModelConfig:
    """What a client plans its requests by; dims without the batch axis."""
    cut = 1 if signature.max_batch_size else 0
    config = pb.ModelConfig(
        name=name,
        platform=_OWN if signature.reads else _GRAPH_PLATFORM,
        backend=_OWN if signature.reads else _GRAPH_BACKEND,
        max_batch_size=signature.max_batch_size,
        input=[
            pb.ModelInput(
                name=spec.name,
                data_type=_TYPES[spec.dtype],
                dims=spec.shape[cut:],
                optional=spec.name in signature.optional,
            )
            for spec in signature.inputs
        ],
        output=[
            pb.ModelOutput(
                name=spec.name,
                data_type=_TYPES[spec.dtype],
                dims=spec.shape[cut:],
                label_filename="labels" if signature.labels and spec.name == signature.labelled else "",
            )
            for spec in signature.outputs
        ],
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=signature.decoupled),
        response_cache=pb.ModelResponseCache(enable=False),
    )
    if signature.max_batch_size > 1:
        config.dynamic_batching.max_queue_delay_microseconds = int(model.batching.max_delay_ms * 1000)
    return config


def _tensor(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    return pb.ModelMetadataResponse.TensorMetadata(name=spec.name, datatype=DATATYPES[spec.dtype], shape=spec.shape)
