"""What every DecodeState keeps: both engines over real exports, and the state that the decoder's tests use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from decoder_folders import write_decoder
from exported_decoders import open_decoder, unpacked
from slot_state import SlotState

from headrace_server.engines.decode import DecodeState, Logits

SOURCES = [[3, 40, 7, 99, 12], [50, 5], [77] * 9, [20, 21, 22, 23, 24, 25, 26]]
Opened = Callable[[Path], DecodeState]
STATES: dict[str, Opened] = {
    "numbers": lambda _: SlotState(num_slots=8),
    "numbers, encoder–decoder": lambda _: SlotState(num_slots=8, encoder_decoder=True),
    "shared buffer by lengths": lambda folder: open_decoder(write_decoder(folder)),
    "shared buffer by mask": lambda folder: open_decoder(unpacked("genai", folder)),
    "copied": lambda folder: open_decoder(unpacked("llama", folder)),
    "copied, halves": lambda folder: open_decoder(unpacked("llama-fp16", folder)),
    "copied, branches": lambda folder: open_decoder(unpacked("gpt2-merged", folder)),
    "encoder–decoder": lambda folder: open_decoder(unpacked("t5", folder)),
}


@pytest.fixture(scope="module", params=STATES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DecodeState]:
    state = STATES[request.param](tmp_path_factory.mktemp("state") / "1")
    yield state
    state.close()


@pytest.fixture
def state(opened: DecodeState) -> Iterator[DecodeState]:
    yield opened
    for slot in range(opened.decode_info.num_slots):
        opened.clear(slot)
    if isinstance(opened, SlotState):
        assert opened.broken == []


def ids(*tokens: int) -> npt.NDArray[np.int64]:
    return np.array(tokens, np.int64)


def alone(state: DecodeState, source: list[int], *tokens: int) -> Logits:
    """Logits after source and tokens of a sequence that is by itself; all slots are empty before and after."""
    logits = state.prefill(0, ids(*source))
    for token in tokens:
        logits = state.decode(ids(token))[0]
    kept = logits.copy()
    state.clear(0)
    return kept


def same(left: Logits, right: Logits) -> bool:
    return np.allclose(left, right, atol=5e-3)


def test_slots_hold_what_was_read(state: DecodeState) -> None:
    info = state.decode_info
    logits = state.prefill(2, ids(*SOURCES[0]))
    assert logits.shape == (info.vocabulary_size,)
    assert logits.dtype == np.float32
    assert state.length(2) == (1 if info.encoder_decoder else 5)
    assert [state.length(slot) for slot in (0, 1, 3)] == [0, 0, 0]
    state.clear(2)
    assert state.length(2) == 0


def test_neighbours_do_not_change_an_answer(state: DecodeState) -> None:
    wanted = [alone(state, source, 30 + slot, 60) for slot, source in enumerate(SOURCES)]
    for slot, source in enumerate(SOURCES):
        state.prefill(slot, ids(*source))
    state.decode(ids(30, 31, 32, 33))
    logits = state.decode(ids(60, 60, 60, 60))
    assert logits.shape == (4, state.decode_info.vocabulary_size)
    assert all(same(row, each) for row, each in zip(logits, wanted, strict=True))


def test_slots_behind_the_running_ones_stay_as_they_are(state: DecodeState) -> None:
    wanted = alone(state, SOURCES[1], 8)
    state.prefill(0, ids(*SOURCES[0]))
    state.prefill(1, ids(*SOURCES[1]))
    length = state.length(1)
    state.decode(ids(9))
    assert state.length(1) == length
    assert same(state.decode(ids(9, 8))[1], wanted)


def test_a_copy_goes_on_by_itself(state: DecodeState) -> None:
    """As beams do: both know the source, each its own tokens."""
    wanted = [alone(state, SOURCES[2], 7, token) for token in (11, 12)]
    state.prefill(0, ids(*SOURCES[2]))
    state.decode(ids(7))
    state.copy(0, 1, state.length(0))
    assert state.length(1) == state.length(0)
    logits = state.decode(ids(11, 12))
    assert same(logits[0], wanted[0])
    assert same(logits[1], wanted[1])


def test_a_move_leaves_its_source_empty(state: DecodeState) -> None:
    wanted = alone(state, SOURCES[3], 7, 8)
    state.prefill(3, ids(*SOURCES[3]))
    length = state.length(3)
    state.move(3, 0)
    assert (state.length(0), state.length(3)) == (length, 0)
    state.prefill(3, ids(*SOURCES[0]))
    state.decode(ids(7))
    assert same(state.decode(ids(8))[0], wanted)


def test_what_was_saved_outlives_its_slot(state: DecodeState) -> None:
    if isinstance(state, SlotState) and state.decode_info.encoder_decoder:
        pytest.skip("its saved prefixes hold no source")
    wanted = alone(state, SOURCES[2], 7, 8)
    state.prefill(0, ids(*SOURCES[2]))
    state.decode(ids(7))
    length = state.length(0)
    saved = state.save(0, length)
    state.decode(ids(44))
    state.clear(0)
    state.prefill(0, ids(*SOURCES[0]))
    state.restore(saved, 1, length)
    state.restore(saved, 2, length)
    logits = state.decode(ids(3, 8, 8))
    assert same(logits[1], wanted)
    assert same(logits[2], wanted)


def test_a_beginning_is_the_text_cut_there(state: DecodeState) -> None:
    """The first tokens of a slot, copied and restored; the source of an encoder–decoder is whole in each."""
    encoder_decoder = state.decode_info.encoder_decoder
    if isinstance(state, SlotState) and encoder_decoder:
        pytest.skip("its saved prefixes hold no source")
    length = 3
    given = SOURCES[2] if encoder_decoder else SOURCES[2][:length]
    new = [7, 8] if encoder_decoder else []
    wanted = alone(state, given, *new, 30)
    state.prefill(0, ids(*SOURCES[2]))
    for token in (7, 8, 9):
        state.decode(ids(token))
    saved = state.save(0, length)
    state.copy(0, 1, length)
    state.restore(saved, 2, length)
    assert [state.length(slot) for slot in (1, 2)] == [length, length]
    logits = state.decode(ids(3, 30, 30))
    assert same(logits[1], wanted)
    assert same(logits[2], wanted)


def test_parts_that_were_saved_are_put_together_again(state: DecodeState) -> None:
    if not state.decode_info.chunked or state.decode_info.encoder_decoder:
        pytest.skip("nothing of a prompt is kept")
    wanted = alone(state, SOURCES[2], 7, 8, 30)
    state.prefill(0, ids(*SOURCES[2]))
    for token in (7, 8):
        state.decode(ids(token))
    length = state.length(0)
    parts = [(start, state.save(0, min(start + 2, length), start=start)) for start in range(0, length, 2)]
    beginning = state.save(0, length)
    state.decode(ids(9))
    for start, part in parts:
        state.restore(part, 1, min(start + 2, length), start=start)
    state.restore(beginning, 2, 3)  # a part of what was saved, and behind it a part of another
    state.restore(state.save(0, length, start=3), 2, length, start=3)
    assert [state.length(slot) for slot in (1, 2)] == [length, length]
    logits = state.decode(ids(3, 30, 30))
    assert same(logits[1], wanted)
    assert same(logits[2], wanted)


def test_parts_are_the_whole(state: DecodeState) -> None:
    if not state.decode_info.chunked:
        pytest.skip("prompts are read whole")
    wanted = alone(state, SOURCES[3])
    state.prefill(0, ids(*SOURCES[0]))
    for at in (0, 3, 6):
        logits = state.prefill(1, ids(*SOURCES[3][at : at + 3]))
    assert same(logits, wanted)


def test_warm_up_leaves_slots_empty(state: DecodeState) -> None:
    state.warm_up([1, 2])
    assert [state.length(slot) for slot in range(state.decode_info.num_slots)] == [0] * state.decode_info.num_slots
