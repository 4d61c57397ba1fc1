"""ModelStreamInfer under readers that are slow and callers that leave; on both transports."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from contract.services_models import Serving, serving_models
from decoder_folders import write_decoder
from inference_client import encoded_tensor, tensors_of
from unit.serving.model_folders import linear

from headrace_server.rpc.inference import messages as pb
from headrace_server.rpc.inference import stream as inference_stream
from headrace_server.rpc.status import Code
from headrace_server.rpc.streaming import WINDOW
from headrace_server.rpc.transport.call import Status
from headrace_server.serving.text_servable import TextServable

TIMEOUT_S = 30
METHOD = "/inference.GRPCInferenceService/ModelStreamInfer"
STALL_S = 1.0


@pytest.fixture(scope="module", params=["direct", "aio"])
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    repository: Path = tmp_path_factory.mktemp("models")
    write_decoder(repository / "llama" / "1")
    linear(repository / "linear" / "1", width=1000)
    with serving_models(repository, request.param, stream_stall_s=STALL_S) as serving:
        yield serving


def stream(serving: Serving, requests: Iterator[pb.ModelInferRequest], timeout: float = TIMEOUT_S) -> Any:
    call = serving.channel.stream_stream(
        METHOD,
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    return call(requests, timeout=timeout)


def rows_request(number: int, rows: np.ndarray[Any, Any]) -> pb.ModelInferRequest:
    tensor, raw = encoded_tensor("x", rows)
    return pb.ModelInferRequest(model_name="linear", id=str(number), inputs=[tensor], raw_input_contents=[raw])


def text_request(name: str, max_tokens: int) -> pb.ModelInferRequest:
    prompt, raw = encoded_tensor("text_input", np.array([b"in the end"], object))
    parameters = {
        "stream": pb.InferParameter(bool_param=True),
        "max_tokens": pb.InferParameter(int64_param=max_tokens),
        "ignore_eos": pb.InferParameter(bool_param=True),
    }
    return pb.ModelInferRequest(
        model_name="llama", id=name, inputs=[prompt], raw_input_contents=[raw], parameters=parameters
    )


def eventually(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.01)


def num_active(serving: Serving) -> int:
    with serving.server._repository.acquire("llama") as lease:
        assert isinstance(lease.servable, TextServable)
        return lease.servable.decoder.num_active


def test_a_reader_that_takes_nothing_stops_the_requests_and_loses_its_call(serving: Serving) -> None:
    rows = np.ones((8, 1000), np.float32)
    num_sent, most = 0, 3000  # 96 MB each way

    def requests() -> Iterator[pb.ModelInferRequest]:
        nonlocal num_sent
        for number in range(most):
            num_sent = number
            yield rows_request(number, rows)

    call = stream(serving, requests())
    eventually(lambda: serving.server.num_calls == 1)
    began = time.monotonic()
    eventually(lambda: serving.server.num_calls == 0)
    assert time.monotonic() - began < TIMEOUT_S / 2  # not for its deadline
    assert num_sent < most - 1
    call.cancel()


def test_a_reader_that_comes_back_in_time_misses_nothing(serving: Serving) -> None:
    rows = np.ones((8, 1000), np.float32)
    call = stream(serving, (rows_request(number, rows) for number in range(200)))
    time.sleep(STALL_S / 3)
    ids = [response.infer_response.id for response in call if not response.error_message]
    assert ids == [str(number) for number in range(200)]


def test_a_caller_that_leaves_frees_its_slots(serving: Serving) -> None:
    over = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        for name in "abc":
            yield text_request(name, 200)
        over.wait(TIMEOUT_S)

    call = stream(serving, requests())
    next(call)
    call.cancel()
    over.set()
    eventually(lambda: num_active(serving) == 0)


def test_more_generations_than_the_window_are_all_answered(serving: Serving) -> None:
    names = [str(number) for number in range(3 * WINDOW)]
    texts: dict[str, str] = dict.fromkeys(names, "")
    finals = []
    for response in stream(serving, (text_request(name, 4) for name in names)):
        assert not response.error_message
        answer = response.infer_response
        (data,) = tensors_of(answer)["text_output"].tolist()
        texts[answer.id] += data.decode()
        if answer.parameters["triton_final_response"].bool_param:
            finals.append(answer.id)
    assert sorted(finals) == sorted(names)


def test_a_deadline_ends_the_stream(serving: Serving) -> None:
    over = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield rows_request(0, np.ones((1, 1000), np.float32))
        over.wait(TIMEOUT_S)

    call = stream(serving, requests(), timeout=0.5)
    assert next(call).infer_response.id == "0"
    with pytest.raises(grpc.RpcError) as ended:
        next(call)
    over.set()
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_what_is_no_message_is_told_and_the_stream_goes_on(serving: Serving) -> None:
    good = rows_request(1, np.ones((1, 1000), np.float32)).SerializeToString()
    call = serving.channel.stream_stream(
        METHOD, request_serializer=None, response_deserializer=pb.ModelStreamInferResponse.FromString
    )
    refused, answered = call(iter([b"\xff\xff", good]), timeout=TIMEOUT_S)
    assert "well-formed" in refused.error_message
    assert answered.infer_response.id == "1"


def test_an_answer_that_cannot_be_written_ends_the_stream_with_its_status(
    serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwritable = "half of a character: \ud83d"
    monkeypatch.setattr(inference_stream, "status_of", lambda *_: Status(int(Code.NOT_FOUND), unwritable))
    over = threading.Event()

    def requests() -> Iterator[pb.ModelInferRequest]:
        yield pb.ModelInferRequest(model_name="nobody", id="0")
        over.wait(TIMEOUT_S)

    began = time.monotonic()
    with pytest.raises(grpc.RpcError) as ended:
        next(stream(serving, requests()))
    over.set()
    assert time.monotonic() - began < TIMEOUT_S / 2  # not for its deadline
    assert ended.value.code() is grpc.StatusCode.INTERNAL
    assert "half of" not in ended.value.details()
    assert dict(ended.value.trailing_metadata())["headrace-request-id"]
