"""SharedBufferDecode: slots of a real graph, beside the same llama worked out in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from decoder_folders import VOCABULARY, SmallLlama, write_decoder

from headrace_server.engines.onnx.decode import SharedBufferDecode
from headrace_server.errors import Reason, ServingError
from headrace_server.models.load import load_model

LLAMA = SmallLlama()
TEXTS = [[3, 40, 7, 99, 12], [200, 5], [77] * 9, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("decoder") / "1")


@pytest.fixture
def state(folder: Path) -> Iterator[SharedBufferDecode]:
    generator = load_model(folder, name="m", version="1").generator
    assert generator is not None
    opened = SharedBufferDecode(generator.spec, num_slots=5, num_threads=1, spin=False)
    yield opened
    opened.close()


def ids(tokens: list[int]) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.asarray(tokens, np.int64)


def close(logits: object, tokens: list[int]) -> bool:
    return np.allclose(logits, LLAMA.logits(tokens)[-1], atol=2e-4)  # type: ignore[arg-type]


def test_logits_are_those_of_the_reference_token_by_token(state: SharedBufferDecode) -> None:
    text = list(TEXTS[0])
    logits = state.prefill(0, ids(text))
    for _ in range(6):
        assert close(logits, text)
        text.append(int(np.argmax(logits)))
        logits = state.decode(ids(text[-1:]))[0]
    assert state.length(0) == len(text)


def test_every_row_of_a_prompt_has_its_logits(state: SharedBufferDecode) -> None:
    logits = state.prefill(0, ids(TEXTS[3]), all_rows=True)
    assert np.allclose(logits, LLAMA.logits(TEXTS[3]), atol=2e-4)


def test_a_prompt_in_parts_is_the_prompt_whole(state: SharedBufferDecode) -> None:
    for slot, size in enumerate((11, 4, 1)):
        for at in range(0, 11, size):
            logits = state.prefill(slot, ids(TEXTS[3][at : at + size]))
        assert close(logits, TEXTS[3])


def test_slots_of_different_lengths_advance_together_and_do_not_touch_each_other(state: SharedBufferDecode) -> None:
    texts = [list(text) for text in TEXTS]
    for slot, text in enumerate(texts):
        state.prefill(slot, ids(text))
    for step in range(4):
        for slot, text in enumerate(texts):
            text.append(20 + 7 * step + slot)
        logits = state.decode(ids([text[-1] for text in texts]))
        assert all(close(logits[slot], text) for slot, text in enumerate(texts))


def test_moved_copied_and_restored_slots_go_on_as_their_source_would(state: SharedBufferDecode) -> None:
    text = TEXTS[3]
    state.prefill(4, ids(text))
    saved = state.save(4, 8)
    state.copy(4, 0, len(text))
    state.copy(4, 1, 6)
    state.move(4, 2)
    state.restore(saved, 3, 7)
    assert [state.length(slot) for slot in range(5)] == [11, 6, 11, 7, 0]
    logits = state.decode(ids([50, 51, 52, 53]))
    for row, (length, token) in enumerate(((11, 50), (6, 51), (11, 52), (7, 53))):
        assert close(logits[row], [*text[:length], token])


def test_what_an_earlier_sequence_left_in_a_slot_is_not_read(state: SharedBufferDecode) -> None:
    state.prefill(0, ids(TEXTS[2]))
    state.clear(0)
    assert close(state.prefill(0, ids(TEXTS[1])), TEXTS[1])


def test_warm_up_leaves_nothing_behind(state: SharedBufferDecode) -> None:
    state.warm_up([1, 5])
    assert [state.length(slot) for slot in range(5)] == [0] * 5
    assert close(state.prefill(0, ids(TEXTS[0])), TEXTS[0])


def test_it_says_what_it_holds(state: SharedBufferDecode) -> None:
    info = state.decode_info
    assert (info.num_slots, info.max_length, info.vocabulary_size) == (5, 256, VOCABULARY)
    assert info.bytes_per_token == 2 * 2 * 2 * 16 * 4
    assert state.info.provider == "CPUExecutionProvider"


def test_a_failing_run_is_an_error_and_the_slot_can_be_used_again(state: SharedBufferDecode) -> None:
    with pytest.raises(ServingError) as caught:
        state.prefill(0, ids([VOCABULARY + 5]))
    assert caught.value.reason is Reason.INTERNAL
    state.clear(0)
    assert close(state.prefill(0, ids(TEXTS[1])), TEXTS[1])


def test_a_graph_of_other_layers_than_its_folder_says_is_refused(folder: Path) -> None:
    generator = load_model(folder, name="m", version="1").generator
    assert generator is not None
    with pytest.raises(ServingError, match="4 past inputs for 3 layers") as caught:
        SharedBufferDecode(replace(generator.spec, num_layers=3), num_slots=1, num_threads=1)
    assert caught.value.reason is Reason.MODEL_INVALID
