"""An unmodified tritonclient at work, in a process and an environment of its own: its messages have the names of ours.

    python triton_client.py ADDRESS MANAGEMENT-ADDRESS

Runs every scenario below and prints one JSON object: scenario → "" or what went wrong.
"""

from __future__ import annotations

import asyncio
import json
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

TIMEOUT_S = 30
ADDRESS, MANAGEMENT = sys.argv[1:3]
SCENARIOS: dict[str, Callable[[Any], None]] = {}


def scenario(function: Callable[[Any], None]) -> Callable[[Any], None]:
    SCENARIOS[function.__name__] = function
    return function


def given(name: str, array: Any, datatype: str = "") -> Any:
    tensor = triton.InferInput(name, list(array.shape), datatype or np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def texts(*values: str) -> Any:
    return np.array([value.encode() for value in values], dtype=object)


def refused(call: Callable[[], Any]) -> Any:
    try:
        call()
    except InferenceServerException as error:
        return error
    raise AssertionError("it was answered")


# what there is


@scenario
def server_is_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("every")
    assert client.is_model_ready("every", "1")
    assert not client.is_model_ready("every", "7")
    assert not client.is_model_ready("nothing")


@scenario
def server_says_what_it_is_and_what_works(client: Any) -> None:
    metadata = client.get_server_metadata()
    assert metadata.name == "headrace", metadata
    assert metadata.version
    assert {"model_repository", "model_configuration", "statistics", "parameters"} <= set(metadata.extensions)
    assert not {"cuda_shared_memory", "system_shared_memory", "sequence"} & set(metadata.extensions)


@scenario
def metadata_and_configuration_agree(client: Any) -> None:
    metadata = client.get_model_metadata("linear", as_json=True)
    assert metadata["versions"] == ["1"], metadata
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}], metadata
    config = client.get_model_config("linear").config
    assert config.max_batch_size > 0
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [("x", [4])], config
    assert config.HasField("dynamic_batching")
    assert not config.model_transaction_policy.decoupled
    assert client.get_model_config("llama").config.model_transaction_policy.decoupled


@scenario
def index_lists_every_name_that_can_be_asked(client: Any) -> None:
    models = client.get_model_repository_index().models
    names = {model.name for model in models}
    assert {"every", "linear", "llama", "mood", "mood.classify", "sentence.embed"} <= names, names
    assert {model.state for model in models if model.name == "every"} == {"READY"}


@scenario
def statistics_count_what_was_asked(client: Any) -> None:
    def counts() -> tuple[int, int, int]:
        (model,) = client.get_inference_statistics("linear").model_stats
        return model.inference_count, model.execution_count, model.inference_stats.success.count

    before = counts()
    client.infer("linear", [given("x", np.ones((3, 4), np.float32))])
    rows, runs, requests = (after - earlier for after, earlier in zip(counts(), before, strict=True))
    assert (rows, requests) == (3, 1), (rows, requests)
    assert 1 <= runs <= 3, runs  # idle workers share what one request brought
    stats = client.get_inference_statistics("linear").model_stats[0].inference_stats
    stages = (stats.queue, stats.compute_input, stats.compute_infer, stats.compute_output)
    assert stats.compute_infer.ns > 0
    assert sum(stage.ns for stage in stages) <= stats.success.ns, stats


# tensors


def every_array() -> dict[str, Any]:
    arrays: dict[str, Any] = {"BOOL": np.array([[True, False, True]])}
    for bits in (8, 16, 32, 64):
        for name, kind in ((f"INT{bits}", np.dtype(f"int{bits}")), (f"UINT{bits}", np.dtype(f"uint{bits}"))):
            limits = np.iinfo(kind)
            arrays[name] = np.array([[limits.min, 1, limits.max]], kind)
    arrays["FP16"] = np.array([[1.5, -0.0, np.inf]], np.float16)
    arrays["FP32"] = np.array([[1.5, np.nan, -3e38]], np.float32)
    arrays["FP64"] = np.array([[1e300, -1e-300, 0.1]], np.float64)
    arrays["BYTES"] = np.array([["", "plain", "zwölf €"]], dtype=object)
    return arrays


@scenario
def every_datatype_comes_back_as_it_was_sent(client: Any) -> None:
    arrays = every_array()
    result = client.infer("every", [given(name, array) for name, array in arrays.items()], request_id="seven")
    assert result.get_response().id == "seven"
    for name, array in arrays.items():
        answer = result.as_numpy(f"{name}_out")
        if name == "BYTES":
            assert [item.decode() for item in answer.ravel()] == array.ravel().tolist(), answer
        else:
            assert answer.dtype == array.dtype, (name, answer.dtype)
            assert answer.tobytes() == array.tobytes(), (name, answer)


@scenario
def bf16_comes_back_as_it_was_sent(client: Any) -> None:
    values = np.array([[1.5, -0.0], [np.inf, 0.0078125]], ml_dtypes.bfloat16)
    result = client.infer("brain", [given("x", values, "BF16")])
    assert result.get_output("y").datatype == "BF16"
    answer = result.as_numpy("y")  # as the float32 that they stand for
    assert answer.tobytes() == values.astype(answer.dtype).tobytes(), answer


@scenario
def bf16_reaches_a_model_of_fp32_exactly(client: Any) -> None:
    values = np.array([[1.5, -2.0, 0.0078125, 3.0]], ml_dtypes.bfloat16)
    answer = client.infer("linear", [given("x", values, "BF16")]).as_numpy("y")
    assert np.array_equal(answer, values.astype(np.float32) * 2), answer


@scenario
def typed_contents_are_answered_as_raw_ones(client: Any) -> None:
    service = triton.service_pb2
    fields = {
        "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
        "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
        "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
    }  # fmt: skip
    arrays = every_array()
    del arrays["FP16"]  # raw only
    request = service.ModelInferRequest(model_name="typed")
    for name, array in arrays.items():
        values = array.ravel().tolist()
        tensor = request.inputs.add(name=name, datatype=name, shape=array.shape)
        values = [value.encode() for value in values] if name == "BYTES" else values
        getattr(tensor.contents, fields[name]).extend(values)
    answer = triton.InferResult(client._client_stub.ModelInfer(request, timeout=TIMEOUT_S))
    for name, array in arrays.items():
        if name != "BYTES":
            assert answer.as_numpy(f"{name}_out").tobytes() == array.tobytes(), name


@scenario
def outputs_are_those_that_were_wanted(client: Any) -> None:
    arrays = every_array()
    wanted = [triton.InferRequestedOutput("INT8_out"), triton.InferRequestedOutput("FP64_out")]
    result = client.infer("every", [given(name, array) for name, array in arrays.items()], outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["INT8_out", "FP64_out"]


@scenario
def many_rows_are_answered_in_order(client: Any) -> None:
    rows = np.arange(400, dtype=np.float32).reshape(100, 4)
    assert np.array_equal(client.infer("linear", [given("x", rows)]).as_numpy("y"), rows * 2)


@scenario
def an_inline_model_answers_as_others_do(client: Any) -> None:
    for number in range(20):
        row = np.full((1, 4), number, np.float32)
        assert np.array_equal(client.infer("inline", [given("x", row)]).as_numpy("y"), row * 2)
    (counted,) = client.get_inference_statistics("inline").model_stats
    assert counted.inference_count == counted.inference_stats.success.count == 20, counted
    assert counted.inference_stats.compute_infer.ns > 0
    wrong = refused(lambda: client.infer("inline", [given("x", np.ones((1, 3), np.float32))]))
    assert wrong.status() == "StatusCode.INVALID_ARGUMENT", wrong
    assert client.get_inference_statistics("inline").model_stats[0].inference_stats.fail.count == 1
    many = np.ones((3000, 4), np.float32)  # larger than what is answered inline
    assert np.array_equal(client.infer("inline", [given("x", many[:1000])]).as_numpy("y"), many[:1000] * 2)


@scenario
def callbacks_are_called(client: Any) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    for number in range(10):
        row = np.full((1, 4), number, np.float32)
        client.async_infer("linear", [given("x", row)], lambda result, error: answers.put((result, error)))
    values = []
    for _ in range(10):
        result, error = answers.get(timeout=TIMEOUT_S)
        assert error is None, error
        values.append(float(result.as_numpy("y")[0, 0]))
    assert sorted(values) == [2.0 * number for number in range(10)]


@scenario
def the_asyncio_client_is_answered(client: Any) -> None:
    async def ask() -> None:
        async with triton_aio.InferenceServerClient(ADDRESS) as aio:
            assert await aio.is_server_ready()
            rows = [np.full((2, 4), number, np.float32) for number in range(30)]
            results = await asyncio.gather(*(aio.infer("linear", [given("x", row)]) for row in rows))
            for row, result in zip(rows, results, strict=True):
                assert np.array_equal(result.as_numpy("y"), row * 2)

    asyncio.run(ask())


# texts


@scenario
def texts_are_classified(client: Any) -> None:
    result = client.infer("mood.classify", [given("text_input", texts("fine", "bad weather").reshape(2, 1))])
    assert result.as_numpy("scores").shape[0] == 2
    assert result.as_numpy("label").shape == (2, 1)
    classes = [triton.InferRequestedOutput("scores", class_count=1)]
    best = client.infer("mood.classify", [given("text_input", texts("fine").reshape(1, 1))], outputs=classes)
    assert best.as_numpy("scores")[0][0].decode().count(":") == 2


@scenario
def texts_are_embedded(client: Any) -> None:
    result = client.infer("sentence.embed", [given("text_input", texts("fine", "fine").reshape(2, 1))])
    first, second = result.as_numpy("embedding")
    assert np.array_equal(first, second)
    assert abs(float(np.linalg.norm(first)) - 1) < 1e-5


# errors


@scenario
def errors_name_the_field_and_the_limit(client: Any) -> None:
    good = np.ones((1, 4), np.float32)
    missing = refused(lambda: client.infer("nothing", [given("x", good)]))
    assert missing.status() == "StatusCode.NOT_FOUND", missing
    wrong = refused(lambda: client.infer("linear", [given("x", good[:, :3])]))
    assert wrong.status() == "StatusCode.INVALID_ARGUMENT", wrong
    assert "x" in wrong.message()
    named = refused(lambda: client.infer("linear", [given("z", good)]))
    assert named.status() == "StatusCode.INVALID_ARGUMENT", named
    version = refused(lambda: client.infer("linear", [given("x", good)], model_version="9"))
    assert version.status() == "StatusCode.NOT_FOUND", version
    generator = refused(lambda: client.infer("llama", [given("text_input", texts("a"))]))
    assert generator.status() == "StatusCode.FAILED_PRECONDITION", generator
    assert "ModelStreamInfer" in generator.message()


@scenario
def management_is_refused_where_data_is_served(client: Any) -> None:
    error = refused(lambda: client.unload_model("spare"))
    assert error.status() in ("StatusCode.PERMISSION_DENIED", "StatusCode.UNIMPLEMENTED"), error
    assert client.is_model_ready("spare")


@scenario
def models_are_unloaded_and_loaded_by_management(client: Any) -> None:
    with triton.InferenceServerClient(MANAGEMENT) as management:
        management.unload_model("spare")
        until(lambda: not client.is_model_ready("spare"))
        assert refused(lambda: client.infer("spare", [given("x", np.ones((1, 4), np.float32))]))
        management.load_model("spare")
        until(lambda: client.is_model_ready("spare"))
        assert client.infer("spare", [given("x", np.ones((1, 4), np.float32))]).as_numpy("y")[0, 0] == 2
        assert refused(lambda: management.load_model("nothing")).status() == "StatusCode.NOT_FOUND"


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < limit, "it did not come about"
        time.sleep(0.01)


# streams


class Stream:
    """A stream of one client, its answers in a queue."""

    def __init__(self, headers: dict[str, str] | None = None) -> None:
        self.client = triton.InferenceServerClient(ADDRESS)
        self.answers: queue.Queue[Any] = queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)), headers=headers)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.stop_stream()
        self.client.close()

    def ask(self, model: str, *tensors: Any, **options: Any) -> None:
        self.client.async_stream_infer(model, list(tensors), **options)

    def next(self) -> tuple[Any, Any]:
        answer: tuple[Any, Any] = self.answers.get(timeout=TIMEOUT_S)
        return answer

    def generation(self) -> tuple[list[str], Any]:
        """The pieces of the one text that is being generated, and the last answer."""
        pieces = []
        while True:
            result, error = self.next()
            assert error is None, error
            pieces.append(text_of(result))
            if result.get_response().parameters["triton_final_response"].bool_param:
                return pieces, result.get_response()


def text_of(result: Any) -> str:
    return str(result.as_numpy("text_output")[0].decode())


GREEDY = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


def flag(value: bool) -> Any:
    return given("stream", np.array([value]))


@scenario
def a_stream_answers_tensors_in_order(client: Any) -> None:
    with Stream() as stream:
        rows = [np.full((1 + number % 3, 4), number, np.float32) for number in range(60)]
        for number, row in enumerate(rows):
            stream.ask("linear", given("x", row), request_id=str(number))
        for number, row in enumerate(rows):
            result, error = stream.next()
            assert error is None, error
            assert result.get_response().id == str(number)
            assert np.array_equal(result.as_numpy("y"), row * 2)


@scenario
def a_stream_goes_on_after_an_error(client: Any) -> None:
    row = np.ones((1, 4), np.float32)
    with Stream() as stream:
        stream.ask("nothing", given("x", row), request_id="first")
        stream.ask("linear", given("x", row[:, :2]), request_id="second")
        stream.ask("linear", given("x", row), request_id="third")
        _, missing = stream.next()
        _, wrong = stream.next()
        assert "nothing" in missing.message(), missing
        assert "x" in wrong.message(), wrong
        result, error = stream.next()
        assert error is None, error
        assert result.get_response().id == "third"


@scenario
def a_stream_fails_by_status_where_the_client_asks(client: Any) -> None:
    row = np.ones((1, 4), np.float32)
    with Stream({"triton_grpc_error": "true"}) as stream:
        stream.ask("linear", given("x", row))
        stream.ask("nothing", given("x", row))
        _, error = stream.next()
        assert error is None, error
        _, error = stream.next()
        assert error.status() == "StatusCode.NOT_FOUND", error


@scenario
def a_generation_comes_in_pieces_that_make_its_text(client: Any) -> None:
    with Stream() as stream:
        stream.ask("llama", given("text_input", texts("in the end")), flag(True), request_id="a", parameters=GREEDY)
        pieces, last = stream.generation()
        assert len([piece for piece in pieces if piece]) > 1, pieces
        assert last.id == "a"
        assert last.parameters["finish_reason"].string_param == "length"
        assert last.parameters["num_generated_tokens"].int64_param == 12
        whole = given("sampling_parameters", texts(json.dumps({**GREEDY, "temperature": "0", "max_tokens": "12"})))
        stream.ask("llama", given("text_input", texts("in the end")), whole)
        alone, _ = stream.generation()
        assert alone == ["in the end" + "".join(pieces)], (alone, pieces)
        excluded = given("exclude_input_in_output", np.array([True]))
        stream.ask("llama", given("text_input", texts("in the end")), excluded, parameters=GREEDY)
        without, _ = stream.generation()
        assert without == ["".join(pieces)]


@scenario
def generations_and_tensors_share_a_stream(client: Any) -> None:
    with Stream() as stream:
        for name in "ab":
            stream.ask("llama", given("text_input", texts(name)), flag(True), request_id=name, parameters=GREEDY)
        stream.ask("linear", given("x", np.ones((1, 4), np.float32)), request_id="c")
        over: set[str] = set()
        while over != {"a", "b", "c"}:
            result, error = stream.next()
            assert error is None, error
            response = result.get_response()
            assert response.id not in over, "an answer after the last"
            if response.id == "c" or response.parameters["triton_final_response"].bool_param:
                over.add(response.id)


@scenario
def what_a_generation_cannot_do_is_said(client: Any) -> None:
    prompt = given("text_input", texts("a"))
    with Stream() as stream:
        for parameters, named in (
            ({"max_token": 3}, "max_tokens"),
            ({"temperature": "warm"}, "temperature"),
            ({"max_tokens": -3}, "max_tokens"),
            ({"n": 2}, "n"),
        ):
            stream.ask("llama", prompt, parameters=parameters)
            _, error = stream.next()
            assert named in error.message(), error
        stream.ask("llama", flag(True))
        _, error = stream.next()
        assert "text_input" in error.message(), error


@scenario
def a_stream_that_is_left_is_cancelled(client: Any) -> None:
    stream = Stream()
    stream.ask("llama", given("text_input", texts("a")), flag(True), parameters={**GREEDY, "max_tokens": 200})
    assert stream.next()[1] is None
    stream.client.stop_stream(cancel_requests=True)
    stream.client.close()
    with Stream() as other:
        other.ask("llama", given("text_input", texts("a")), flag(True), parameters=GREEDY)
        other.generation()


@scenario
def the_asyncio_client_streams(client: Any) -> None:
    async def requests() -> Any:
        for number in range(20):
            row = np.full((1, 4), number, np.float32)
            yield {"model_name": "linear", "inputs": [given("x", row)], "request_id": str(number)}

    async def ask() -> None:
        async with triton_aio.InferenceServerClient(ADDRESS) as aio:
            number = 0
            async for result, error in aio.stream_infer(requests()):
                assert error is None, error
                assert result.get_response().id == str(number)
                number += 1
            assert number == 20

    asyncio.run(ask())


def main() -> None:
    outcome = {}
    with triton.InferenceServerClient(ADDRESS) as client:
        for name, run in SCENARIOS.items():
            failed = []

            def attempt(run: Callable[[Any], None] = run, failed: list[str] = failed) -> None:
                try:
                    run(client)
                except BaseException:
                    failed.append(traceback.format_exc())

            thread = threading.Thread(target=attempt, daemon=True)
            thread.start()
            thread.join(60)
            outcome[name] = "it hung" if thread.is_alive() else "".join(failed)
    print(json.dumps(outcome), flush=True)


if __name__ == "__main__":
    main()
