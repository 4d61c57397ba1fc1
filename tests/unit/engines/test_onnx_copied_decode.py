"""Exports of users' tools, small and with random weights, beside what PyTorch and onnxruntime make of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from exported_decoders import Answer, answers, open_decoder, unpacked
from onnx import TensorProto, helper

from headrace_server.engines.decode import DecodeState, Logits
from headrace_server.errors import Reason, ServingError
from headrace_server.models.generation import CacheKind
from headrace_server.models.load import load_model
from headrace_server.serving.decoder.beams import BeamSearch
from headrace_server.serving.decoder.sequence import SequenceRequest

END = 1  # of every export
WHOLE = {  # export: whose answers
    "gpt2": "gpt2",
    "gpt2-merged": "gpt2",
    "llama": "llama",
    "genai": "llama",
    "t5": "t5",
    "marian": "marian",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("exports")
    smaller = ("llama-int8", "llama-fp16", "llama-q4", "genai-int4", "t5-int8", "t5-fp16")
    return {name: unpacked(name, root / name) for name in (*WHOLE, *smaller)}


@contextmanager
def opened(folder: Path) -> Iterator[DecodeState]:
    state = open_decoder(folder)
    yield state
    state.close()


def ids(*tokens: int) -> npt.NDArray[np.int64]:
    return np.array(tokens, np.int64)


def greedy(state: DecodeState, prompt: list[int], count: int, slot: int = 0) -> tuple[list[int], list[Logits]]:
    """Tokens and the logits that each was chosen by."""
    rows = [state.prefill(slot, ids(*prompt)).copy()]
    tokens = [int(rows[0].argmax())]
    while len(tokens) < count:
        rows.append(state.decode(ids(tokens[-1]))[slot].copy())
        tokens.append(int(rows[-1].argmax()))
    state.clear(slot)
    return tokens, rows


def agrees(logits: Logits, reference: list[float]) -> bool:
    return np.allclose(logits[::8], reference, atol=2e-4)


@pytest.mark.parametrize("name", WHOLE)
def test_greedy_tokens_and_logits_are_those_of_pytorch(folders: dict[str, Path], name: str) -> None:
    with opened(folders[name]) as state:
        for answer in answers(WHOLE[name]):
            tokens, rows = greedy(state, answer.prompt, len(answer.tokens))
            assert tokens == answer.tokens
            assert agrees(rows[0], answer.first)
            assert agrees(rows[-1], answer.last)


@pytest.mark.parametrize("name", ["gpt2", "llama", "genai"])
def test_a_prompt_in_parts_is_the_prompt_whole(folders: dict[str, Path], name: str) -> None:
    answer = answers(WHOLE[name])[-1]
    with opened(folders[name]) as state:
        assert state.decode_info.chunked
        for size in (1, 7, 16, 39):
            for at in range(0, len(answer.prompt), size):
                logits = state.prefill(0, ids(*answer.prompt[at : at + size]))
            assert agrees(logits, answer.first)
            state.clear(0)


def test_a_graph_that_chooses_its_branch_is_given_prompts_whole(folders: dict[str, Path]) -> None:
    with opened(folders["gpt2-merged"]) as state:
        assert not state.decode_info.chunked
        assert not state.decode_info.shared_buffer


def test_rows_of_unequal_lengths_share_a_step_of_a_graph_that_reads_a_mask(folders: dict[str, Path]) -> None:
    chosen = answers("llama")[:10]
    with opened(folders["genai"]) as state:
        assert state.decode_info.shared_buffer
        assert state.decode_info.batched
        for slot, answer in enumerate(chosen):
            assert agrees(state.prefill(slot, ids(*answer.prompt)), answer.first)
        for step in range(len(chosen[0].tokens) - 1):
            logits = state.decode(ids(*(answer.tokens[step] for answer in chosen)))
            assert logits.argmax(axis=1).tolist() == [answer.tokens[step + 1] for answer in chosen]
        assert all(agrees(row, answer.last) for row, answer in zip(logits, chosen, strict=True))


@pytest.mark.parametrize(
    ("name", "graph", "kind"),
    [
        ("llama-int8", "model_quantized", CacheKind.COPIED),
        ("llama-fp16", "model_fp16", CacheKind.COPIED),
        ("llama-q4", "model_q4", CacheKind.COPIED),
    ],
)
def test_smaller_weights_answer_as_onnxruntime_alone_does(
    folders: dict[str, Path], name: str, graph: str, kind: CacheKind
) -> None:
    model = load_model(folders[name], name="m", version="1")
    assert model.generator is not None
    assert model.generator.spec.cache is kind
    plain = onnxruntime.InferenceSession(folders[name] / "onnx" / f"{graph}.onnx")
    for answer in answers("llama")[2:6]:
        with opened(folders[name]) as state:
            tokens, rows = greedy(state, answer.prompt, 6)
        past = {
            node.name: np.zeros((1, 2, 0, 16), np.float16 if "16" in node.type else np.float32)
            for node in plain.get_inputs()
            if node.name.startswith("past")
        }
        new, total = answer.prompt, 0
        for token, row in zip(tokens, rows, strict=True):
            total += len(new)
            logits, *present = plain.run(
                None,
                {
                    "input_ids": np.array([new]),
                    "attention_mask": np.ones((1, total), np.int64),
                    "position_ids": np.arange(total - len(new), total)[None],
                    **past,
                },
            )
            assert np.isfinite(row).all()
            assert np.allclose(row, logits[0, -1], atol=1e-5)
            past, new = dict(zip(past, present, strict=True)), [token]


@pytest.mark.parametrize(
    ("name", "of", "least"),
    [("llama-fp16", "llama", 0.99), ("llama-int8", "llama", 0.9), ("genai-int4", "llama", 0.7),
     ("llama-q4", "llama", 0.7)],
)  # fmt: skip
def test_smaller_weights_say_nearly_what_the_whole_ones_say(
    folders: dict[str, Path], name: str, of: str, least: float
) -> None:
    with opened(folders[name]) as state:
        for answer in answers(of):
            logits = state.prefill(0, ids(*answer.prompt))
            assert np.isfinite(logits).all()
            assert np.corrcoef(logits[::8], answer.first)[0, 1] > least
            state.clear(0)


def test_an_encoder_without_its_decoder_s_precision_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = unpacked("t5-fp16", tmp_path / "1")
    (folder / "onnx" / "encoder_model_fp16.onnx").unlink()
    plain = (folders["t5"] / "onnx" / "encoder_model.onnx").read_bytes()
    (folder / "onnx" / "encoder_model.onnx").write_bytes(plain)
    with pytest.raises(ServingError, match="one precision") as caught:
        open_decoder(folder)
    assert caught.value.reason is Reason.MODEL_INVALID


def test_a_step_that_fails_leaves_every_slot_as_it_was(folders: dict[str, Path]) -> None:
    first, second = answers("gpt2")[3:5]
    with opened(folders["gpt2"]) as state:
        state.prefill(0, ids(*first.prompt))
        state.prefill(1, ids(*second.prompt))
        with pytest.raises(ServingError):
            state.decode(ids(first.tokens[0], 999))
        assert [state.length(slot) for slot in (0, 1)] == [len(first.prompt), len(second.prompt)]
        logits = state.decode(ids(first.tokens[0], second.tokens[0]))
        assert logits.argmax(axis=1).tolist() == [first.tokens[1], second.tokens[1]]


def changed(folder: Path, graph: str, change: object) -> None:
    path = folder / graph
    model = onnx.load(path)
    change(model.graph)  # type: ignore[operator]
    onnx.save(model, path)


def test_only_as_many_logits_as_are_read_are_asked_for(tmp_path: Path) -> None:
    folder = unpacked("llama", tmp_path / "1")

    def trim(graph: onnx.GraphProto) -> None:
        """As newer exports: logits of the last `num_logits_to_keep` tokens, 0 for all."""
        graph.input.append(helper.make_tensor_value_info("num_logits_to_keep", TensorProto.INT64, []))
        for node in graph.node:
            node.output[:] = ["all_logits" if name == "logits" else name for name in node.output]
        for name, values in (("ends", [2**60]), ("axes", [1]), ("one", [1])):
            graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [1], values))
        graph.node.extend(
            [
                helper.make_node("Neg", ["num_logits_to_keep"], ["minus"]),
                helper.make_node("Reshape", ["minus", "one"], ["begins"]),
                helper.make_node("Slice", ["all_logits", "begins", "ends", "axes"], ["logits"]),
            ]
        )

    changed(folder, "onnx/model.onnx", trim)
    answer = answers("llama")[5]
    with opened(folder) as state:
        assert state.prefill(0, ids(*answer.prompt), all_rows=True).shape == (len(answer.prompt), 272)
        state.clear(0)
        tokens, rows = greedy(state, answer.prompt, 24)
    assert tokens == answer.tokens
    assert agrees(rows[0], answer.first)


def test_a_graph_without_position_ids_is_served(tmp_path: Path) -> None:
    folder = unpacked("gpt2", tmp_path / "1")

    def count_positions(graph: onnx.GraphProto) -> None:
        """position_ids from the mask, as exports of models without that input do inside."""
        kept = [value for value in graph.input if value.name != "position_ids"]
        del graph.input[:]
        graph.input.extend(kept)
        graph.initializer.append(helper.make_tensor("p.zero", TensorProto.INT64, [1], [0]))
        graph.initializer.append(helper.make_tensor("p.one", TensorProto.INT64, [1], [1]))
        graph.initializer.append(helper.make_tensor("p.most", TensorProto.INT64, [1], [2**60]))
        made = [
            helper.make_node("CumSum", ["attention_mask", "p.one"], ["p.count"]),
            helper.make_node("Sub", ["p.count", "p.one"], ["p.all"]),
            helper.make_node("Shape", ["input_ids"], ["p.width"], start=1, end=2),
            helper.make_node("Neg", ["p.width"], ["p.begin"]),
            helper.make_node("Slice", ["p.all", "p.begin", "p.most", "p.one"], ["position_ids"]),
        ]
        nodes = [*made, *graph.node]
        del graph.node[:]
        graph.node.extend(nodes)

    changed(folder, "model.onnx", count_positions)
    answer = answers("gpt2")[6]
    with opened(folder) as state:
        tokens, _ = greedy(state, answer.prompt, 24)
    assert tokens == answer.tokens


def problem(folder: Path) -> str:
    with pytest.raises(ServingError) as caught:
        load_model(folder, name="m", version="1")
    assert caught.value.reason is Reason.MODEL_INVALID
    return caught.value.message


def test_an_input_that_nobody_fills_is_named(tmp_path: Path) -> None:
    folder = unpacked("gpt2", tmp_path / "1")
    value = helper.make_tensor_value_info("token_type_ids", TensorProto.INT64, [None, None])
    changed(folder, "model.onnx", lambda graph: graph.input.append(value))
    assert "model.onnx: input token_type_ids int64[?,?] is none that a decoder fills" in problem(folder)


def test_a_pair_that_is_not_merged_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = unpacked("marian", tmp_path / "1")
    (folder / "decoder_model_merged.onnx").rename(folder / "decoder_with_past_model.onnx")

    def first_half(graph: onnx.GraphProto) -> None:
        kept = [value for value in graph.input if not value.name.startswith(("past", "use_cache"))]
        del graph.input[:]
        graph.input.extend(kept)

    model = onnx.load(folder / "decoder_with_past_model.onnx")
    first_half(model.graph)
    onnx.save(model, folder / "decoder_model.onnx")
    assert "decoder_model.onnx: takes no past" in problem(folder)
    assert "decoder_model_merged.onnx" in problem(folder)


def test_a_decoder_without_its_encoder_is_refused(tmp_path: Path) -> None:
    folder = unpacked("marian", tmp_path / "1")
    (folder / "encoder_model.onnx").unlink()
    assert "there is no encoder_model.onnx" in problem(folder)


def searched(state: DecodeState, answer: Answer, penalty: float) -> tuple[list[int], float]:
    request = SequenceRequest(
        prompt=ids(*answer.prompt), max_tokens=24, end_ids=frozenset({END}), num_beams=4, length_penalty=penalty
    )
    search = BeamSearch(request, 24)
    going = search.advance(state.prefill(0, request.prompt)[None])
    while going:
        length = state.length(0)
        saved = [state.save(row, length) for row, _ in going]
        for slot in range(4):
            state.clear(slot)
        for slot, kept in enumerate(saved):
            state.restore(kept, slot, length)
        going = search.advance(state.decode(ids(*(token for _, token in going))))
    for slot in range(4):
        state.clear(slot)
    best = search.best
    return [chosen.id for chosen in best.tokens], best.score


@pytest.mark.parametrize("name", ["t5", "marian"])
@pytest.mark.parametrize("penalty", [1.0, 0.0, 2.0])
def test_beams_are_those_of_transformers(folders: dict[str, Path], name: str, penalty: float) -> None:
    with opened(folders[name]) as state:
        for answer in answers(name):
            wanted = answer.beams[f"{penalty:g}"]
            tokens, score = searched(state, answer, penalty)
            assert tokens == [token for token in wanted["tokens"] if token != END]
            assert score == pytest.approx(wanted["score"], abs=1e-3)
