"""Generate and GenerateText over real gRPC, held to a llama worked out in NumPy; on both transports."""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import byte_tokenizer
import grpc
import pytest
from contract.services_models import Serving, serving_models
from decoder_folders import CONTEXT, SmallLlama, write_decoder
from services_rig import details_of
from unit.models.small_models import write_embedder

from headrace.v1 import embedding_pb2, generation_pb2, generation_pb2_grpc
from headrace_server.serving.text_servable import TextServable

TIMEOUT_S = 30
TOKENIZER = byte_tokenizer.byte_tokenizer()
LLAMA = SmallLlama()
PROMPT = "in the end"


@pytest.fixture(scope="module", params=["direct", "aio"])
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    repository: Path = tmp_path_factory.mktemp("models")
    write_decoder(repository / "llama" / "1")
    write_embedder(repository / "sentence" / "1")
    with serving_models(repository, request.param) as serving:
        yield serving


@pytest.fixture
def stub(serving: Serving) -> Any:
    return generation_pb2_grpc.GenerationServiceStub(serving.channel)


def asked(**request: Any) -> generation_pb2.GenerateRequest:
    if not request.keys() & {"prompt", "chat", "token_ids"}:
        request["prompt"] = PROMPT
    return generation_pb2.GenerateRequest(**{"model": {"name": "llama"}, "ignore_end": True, **request})


def streamed(stub: Any, **request: Any) -> list[generation_pb2.GenerateResponse]:
    return list(stub.Generate(asked(**request), timeout=TIMEOUT_S))


def whole(stub: Any, **request: Any) -> generation_pb2.GenerateTextResponse:
    message = generation_pb2.GenerateTextRequest(request=asked(**request))
    answer: generation_pb2.GenerateTextResponse = stub.GenerateText(message, timeout=TIMEOUT_S)
    return answer


def token_ids(messages: list[generation_pb2.GenerateResponse], choice: int = 0) -> list[int]:
    return [token.id for message in messages if message.choice == choice for token in message.tokens]


@functools.cache
def expected(prompt: str, count: int) -> list[int]:
    return LLAMA.greedy(TOKENIZER.encode(prompt, add_special_tokens=False).ids, count)


def decoder_of(serving: Serving) -> Any:
    with serving.server._repository.acquire("llama") as lease:
        assert isinstance(lease.servable, TextServable)
        return lease.servable.decoder


def eventually(holds: Callable[[], bool], timeout_s: float = 10) -> bool:
    limit = time.monotonic() + timeout_s
    while time.monotonic() < limit:
        if holds():
            return True
        time.sleep(0.005)
    return False


def refusal(stub: Any, **request: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as failed:
        streamed(stub, **request)
    return failed.value


def test_greedy_tokens_are_the_references_and_the_text_is_theirs(stub: Any) -> None:
    messages = streamed(stub, max_tokens=24)
    tokens = expected(PROMPT, 24)
    assert token_ids(messages) == tokens
    assert "".join(message.text for message in messages) == TOKENIZER.decode(tokens)
    assert messages[-2].finish_reason == generation_pb2.FINISH_REASON_LENGTH
    summary = messages[-1].summary
    assert (summary.num_prompt_tokens, summary.num_generated_tokens) == (len(TOKENIZER.encode(PROMPT).ids), 24)
    assert summary.first_token_us >= summary.queue_us
    assert (summary.model.name, summary.model.version) == ("llama", "1")


def test_the_whole_text_is_the_stream_joined(stub: Any) -> None:
    answer = whole(stub, max_tokens=24, logprobs=True)
    messages = streamed(stub, max_tokens=24)
    assert answer.choices[0].text == "".join(message.text for message in messages)
    assert [token.id for token in answer.choices[0].tokens] == token_ids(messages)
    assert not whole(stub, max_tokens=2).choices[0].tokens


def test_many_at_once_get_what_each_gets_alone(stub: Any) -> None:
    prompts = [f"{word} and {number}" for number in range(5) for word in ("the", "in", "er", "is", "xyz")]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: token_ids(streamed(stub, prompt=prompt, max_tokens=20)), prompts))
    for prompt, tokens in zip(prompts, answers, strict=True):
        assert len(tokens) == 20
        assert LLAMA.is_greedy(TOKENIZER.encode(prompt).ids, tokens), prompt


def test_a_seed_gives_the_same_text_and_another_seed_another(stub: Any) -> None:
    drawn = {
        seed: [token_ids(streamed(stub, max_tokens=12, sampling={"temperature": 3.0, "seed": seed})) for _ in "ab"]
        for seed in (1, 2)
    }
    assert drawn[1][0] == drawn[1][1] != drawn[2][0]


def test_a_seed_that_was_drawn_is_told_and_gives_the_text_again(stub: Any) -> None:
    first = whole(stub, max_tokens=12, sampling={"temperature": 3.0})
    again = whole(stub, max_tokens=12, sampling={"temperature": 3.0, "seed": first.summary.seed})
    assert first.choices[0].text == again.choices[0].text


def test_choices_have_one_form_and_texts_of_their_own(stub: Any) -> None:
    constraint = {"choices": {"texts": ["red", "green", "blue", "black"]}}
    answer = whole(stub, max_tokens=10, num_choices=8, constraint=constraint, sampling={"temperature": 5.0, "seed": 1})
    texts = [choice.text for choice in answer.choices]
    assert set(texts) <= {"red", "green", "blue", "black"}
    assert len(set(texts)) > 1
    assert {choice.finish_reason for choice in answer.choices} == {generation_pb2.FINISH_REASON_END}


def test_choices_draw_each_by_their_own_seed(stub: Any) -> None:
    answer = whole(stub, max_tokens=10, num_choices=3, sampling={"temperature": 3.0, "seed": 7})
    alone = [whole(stub, max_tokens=10, sampling={"temperature": 3.0, "seed": 7 + n}) for n in range(3)]
    assert [choice.text for choice in answer.choices] == [one.choices[0].text for one in alone]
    assert answer.summary.num_generated_tokens == 30


def test_a_stop_text_ends_it_and_is_not_shown(stub: Any) -> None:
    text = TOKENIZER.decode(expected(PROMPT, 24))
    stop = next(text[at : at + 2] for at in range(3, len(text)) if text[at : at + 2].isprintable())
    (choice,) = whole(stub, max_tokens=24, stop=[stop]).choices
    assert choice.text == text[: text.find(stop)]
    assert (choice.finish_reason, choice.stop_match) == (generation_pb2.FINISH_REASON_STOP, stop)


def test_a_stop_token_ends_it_and_is_not_shown(stub: Any) -> None:
    tokens = expected(PROMPT, 24)
    stop = tokens[5]
    messages = streamed(stub, max_tokens=24, stop_token_ids=[stop])
    assert token_ids(messages) == tokens[: tokens.index(stop)]
    assert messages[-2].finish_reason == generation_pb2.FINISH_REASON_STOP


def test_the_models_own_end_ends_it(stub: Any) -> None:
    bias = {byte_tokenizer.END: 100.0}
    (choice,) = whole(stub, max_tokens=24, ignore_end=False, min_tokens=3, sampling={"logit_bias": bias}).choices
    assert choice.finish_reason == generation_pb2.FINISH_REASON_END
    assert choice.text == TOKENIZER.decode(expected(PROMPT, 3))


def test_log_probabilities_are_the_models_own(stub: Any) -> None:
    import numpy as np

    prompt = TOKENIZER.encode(PROMPT).ids
    for message in streamed(stub, max_tokens=1, logprobs=True, top_logprobs=4, sampling={"temperature": 5.0})[:1]:
        logits = LLAMA.logits(prompt)[-1]
        logprobs = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
        likeliest = np.argsort(-logprobs, kind="stable")[:4]
        (token,) = message.tokens
        assert token.logprob == pytest.approx(logprobs[token.id], abs=1e-3)
        assert [top.id for top in token.top_logprobs] == likeliest.tolist()
        assert [top.logprob for top in token.top_logprobs] == pytest.approx(logprobs[likeliest].tolist(), abs=1e-3)


def test_the_prompt_is_echoed_before_each_choice(stub: Any) -> None:
    answer = whole(stub, max_tokens=4, num_choices=2, echo=True)
    assert all(choice.text.startswith(PROMPT) for choice in answer.choices)


def test_a_chat_goes_through_the_template(stub: Any) -> None:
    chat = {"messages": [{"role": "user", "content": "the end"}]}
    tokens = token_ids(streamed(stub, chat=chat, max_tokens=8))
    assert tokens == expected("user: the end\nassistant:", 8)
    tokens = token_ids(streamed(stub, chat={**chat, "add_generation_prompt": False}, max_tokens=8))
    assert tokens == expected("user: the end\n", 8)


def test_token_ids_are_taken_as_they_stand(stub: Any) -> None:
    ids = [5, 250, byte_tokenizer.BREAK, 9]
    assert token_ids(streamed(stub, token_ids={"ids": ids}, max_tokens=8)) == LLAMA.greedy(ids, 8)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_text_has_the_form_that_was_asked_for(stub: Any, temperature: float) -> None:
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}},
        "required": ["n"],
        "additionalProperties": False,
    }
    sampling = {"temperature": temperature, "seed": 3}
    for _ in range(5):
        sampling["seed"] += 1
        answer = whole(
            stub, max_tokens=200, ignore_end=False, sampling=sampling, constraint={"json_schema": json.dumps(schema)}
        )
        if answer.choices[0].finish_reason == generation_pb2.FINISH_REASON_END:
            assert isinstance(json.loads(answer.choices[0].text)["n"], int)
        answer = whole(stub, max_tokens=64, ignore_end=False, sampling=sampling, constraint={"regex": "[a-c]{2,5}!"})
        assert re.fullmatch("[a-c]{2,5}!", answer.choices[0].text)


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"max_tokens": CONTEXT}, "max_tokens"),
        ({"token_ids": {"ids": [3, 9999]}}, "token_ids.ids[1]"),
        ({"min_tokens": 9, "max_tokens": 8}, "min_tokens"),
        ({"num_choices": 17}, "num_choices"),
        ({"num_beams": 2}, "num_beams"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"priority": 101}, "priority"),
        ({"token_ids": {"ids": [3] * 1_048_577}}, "token_ids.ids"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop_token_ids": [3] * 65}, "stop_token_ids"),
        ({"sampling": {"logit_bias": dict.fromkeys(range(1025), 0.5)}}, "sampling.logit_bias"),
        ({"constraint": {"choices": {"texts": ["x"] * 1001}}}, "constraint.choices.texts"),
        ({"chat": {"messages": [{"role": "a"}] * 1001}}, "chat.messages"),
        ({"stop": [""]}, "stop[0]"),
        ({"sampling": {"temperature": -1}}, "sampling.temperature"),
        ({"sampling": {"temperature": float("nan")}}, "sampling.temperature"),
        ({"sampling": {"top_p": 0}}, "sampling.top_p"),
        ({"sampling": {"logit_bias": {9999: 1.0}}}, "sampling.logit_bias"),
        ({"constraint": {"json_schema": "{"}}, "constraint.json_schema"),
        ({"constraint": {"regex": "["}}, "constraint.regex"),
        ({"constraint": {}}, "constraint"),
        ({"chat": {}}, "chat.messages"),
        ({"chat": {"messages": [{"content": "x"}]}}, "chat.messages[0].role"),
        ({"chat": {"messages": [{"role": "a"}], "template_values": {"messages": 1}}}, "chat.template_values.messages"),
    ],
)
def test_what_cannot_be_is_refused_by_field(stub: Any, request_: dict[str, Any], field: str) -> None:
    error = refusal(stub, **request_)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error.details()
    assert [violation.field for violation in details_of(error)["BadRequest"].field_violations] == [field]


def test_an_input_is_required(stub: Any) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        list(stub.Generate(generation_pb2.GenerateRequest(model={"name": "llama"}), timeout=TIMEOUT_S))
    assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_model_that_embeds_does_not_generate_and_the_other_way_round(serving: Serving, stub: Any) -> None:
    error = refusal(stub, model={"name": "sentence"})
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    with pytest.raises(grpc.RpcError) as failed:
        serving.embedding.Embed(
            embedding_pb2.EmbedRequest(model={"name": "llama"}, inputs=[{"text": "a"}]), timeout=TIMEOUT_S
        )
    assert failed.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_cancelling_frees_the_slot_at_once(serving: Serving, stub: Any) -> None:
    decoder = decoder_of(serving)
    call = stub.Generate(asked(max_tokens=240), timeout=TIMEOUT_S)
    next(call)
    assert decoder.num_active == 1
    call.cancel()
    assert eventually(lambda: decoder.num_active == 0)


def test_a_deadline_ends_it(serving: Serving, stub: Any) -> None:
    decoder = decoder_of(serving)
    call = stub.Generate(asked(max_tokens=240), timeout=0.02)
    with pytest.raises(grpc.RpcError):
        list(call)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert eventually(lambda: decoder.num_active == 0)


def test_a_slow_reader_keeps_nobody_waiting_and_misses_nothing(serving: Serving, stub: Any) -> None:
    decoder = decoder_of(serving)
    slow = stub.Generate(asked(max_tokens=240), timeout=TIMEOUT_S)
    assert eventually(lambda: decoder.num_active == 0), "its generation ends though nobody reads"
    tokens = token_ids(list(slow))
    assert len(tokens) == 240
    assert LLAMA.is_greedy(TOKENIZER.encode(PROMPT).ids, tokens)


def test_timings_travel_in_trailing_metadata(stub: Any) -> None:
    call = stub.Generate(asked(max_tokens=4), timeout=TIMEOUT_S)
    list(call)
    keys = dict(call.trailing_metadata())
    assert int(keys["headrace-infer-us"]) > 0
    assert keys["headrace-model-version"] == "llama/1" or keys["headrace-model-version"] == "1"


def test_more_than_there_are_slots_wait_and_are_all_answered(stub: Any) -> None:
    begun = threading.Barrier(40)

    def one(number: int) -> list[int]:
        begun.wait(TIMEOUT_S)
        return token_ids(streamed(stub, prompt=f"{number} is", max_tokens=6))

    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(one, range(40)))
    assert answers == [expected(f"{number} is", 6) for number in range(40)]
