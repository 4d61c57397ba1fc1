"""The inference protocol's messages on the installed runtime: in a pool of their own, with the protocol's numbers.

`make test-matrix` runs this on both ends of the supported range.
"""

from __future__ import annotations

import importlib.util

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message_factory import GetMessageClass

from headrace_server.rpc.inference import messages as pb

# What clients were built with, by message: name → (number, type as .proto files write it). From Triton's own client.
CONTRACT = {
    "ModelInferRequest": {
        "model_name": 1, "model_version": 2, "id": 3, "parameters": 4, "inputs": 5, "outputs": 6,
        "raw_input_contents": 7,
    },
    "ModelInferResponse": {
        "model_name": 1, "model_version": 2, "id": 3, "parameters": 4, "outputs": 5, "raw_output_contents": 6
    },
    "InferParameter": {"bool_param": 1, "int64_param": 2, "string_param": 3, "double_param": 4, "uint64_param": 5},
    "InferTensorContents": {
        "bool_contents": 1, "int_contents": 2, "int64_contents": 3, "uint_contents": 4, "uint64_contents": 5,
        "fp32_contents": 6, "fp64_contents": 7, "bytes_contents": 8,
    },
    "ModelMetadataResponse": {
        "name": 1, "versions": 2, "platform": 3, "inputs": 4, "outputs": 5, "properties": 6
    },
    "ModelStreamInferResponse": {"error_message": 1, "infer_response": 2},
    "ModelInput": {"name": 1, "data_type": 2, "dims": 4, "optional": 8},
    "ModelOutput": {"name": 1, "data_type": 2, "dims": 3, "label_filename": 4},
    "ModelConfig": {
        "name": 1, "platform": 2, "max_batch_size": 4, "input": 5, "output": 6, "dynamic_batching": 11,
        "sequence_batching": 13, "ensemble_scheduling": 15, "parameters": 14, "backend": 17,
        "model_transaction_policy": 19, "response_cache": 24,
    },
    "ModelStatistics": {
        "name": 1, "version": 2, "last_inference": 3, "inference_count": 4, "execution_count": 5, "inference_stats": 6,
        "batch_stats": 7, "memory_usage": 8,
    },
    "InferStatistics": {
        "success": 1, "fail": 2, "queue": 3, "compute_input": 4, "compute_infer": 5, "compute_output": 6,
        "cache_hit": 7, "cache_miss": 8,
    },
    "InferBatchStatistics": {"batch_size": 1, "compute_input": 2, "compute_infer": 3, "compute_output": 4},
    "StatisticDuration": {"count": 1, "ns": 2},
    "RepositoryIndexRequest": {"repository_name": 1, "ready": 2},
    "RepositoryModelLoadRequest": {"repository_name": 1, "model_name": 2, "parameters": 3},
    "RepositoryModelUnloadRequest": {"repository_name": 1, "model_name": 2, "parameters": 3},
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRACT)
def test_fields_have_the_numbers_of_the_protocol(name: str) -> None:
    fields = pb.DESCRIPTOR.message_types_by_name[name].fields
    assert {field.name: field.number for field in fields} == CONTRACT[name]


def test_every_message_survives_bytes() -> None:
    for name, descriptor in pb.DESCRIPTOR.message_types_by_name.items():
        cls = getattr(pb, name)
        assert cls is GetMessageClass(descriptor)
        assert cls.FromString(cls().SerializeToString()) == cls()
    request = pb.ModelInferRequest(inputs=[{"name": "x", "shape": [1], "parameters": {"a": {"int64_param": 1}}}])
    assert pb.ModelInferRequest.FromString(request.SerializeToString()) == request


def test_nothing_named_inference_is_shared_with_other_code_of_the_process() -> None:
    for look_up in (descriptor_pool.Default().FindMessageTypeByName, descriptor_pool.Default().FindServiceByName):
        with pytest.raises(KeyError):
            look_up("inference.ModelInferRequest")
    assert importlib.util.find_spec("inference") is None
