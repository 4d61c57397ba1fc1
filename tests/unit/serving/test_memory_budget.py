"""What versions hold of the memory: estimates, measurements, and what is made of both."""

from __future__ import annotations

import gc
import mmap
import sys
from pathlib import Path

import model_folders
import pytest
from decoder_folders import write_decoder

from headrace_server.config import DecoderPolicy, EngineOptions, ThreadBudget
from headrace_server.engines.factory import create_decode_state
from headrace_server.errors import Reason
from headrace_server.models.load import LoadDefaults, load_model
from headrace_server.serving.memory import MemoryBudget, MemoryEstimate, estimate_memory, resident_bytes
from headrace_server.serving.short_turns import short_turns

_MB = 1 << 20


def test_keys_and_values_are_estimated_exactly(tmp_path: Path) -> None:
    policy = DecoderPolicy(max_slots=3, max_length=100, prefix_cache_mb=7)
    folder = write_decoder(tmp_path / "talker")
    model = load_model(folder, name="talker", version="1", defaults=LoadDefaults(decoder=policy))
    state = create_decode_state(model, EngineOptions(), ThreadBudget(num_cores=1))
    info = state.decode_info
    state.close()
    expected = info.bytes_per_token * info.max_length * info.num_slots + 7 * _MB
    assert info.max_length == 100
    assert estimate_memory(model).growing_bytes == expected


def test_weights_are_estimated_from_their_file(tmp_path: Path) -> None:
    model = load_model(model_folders.heavy(tmp_path / "m", size_mb=30), name="m", version="1")
    estimate = estimate_memory(model)
    assert 30 * _MB < estimate.floor_bytes < 31 * _MB
    assert estimate.floor_bytes < estimate.loaded_bytes < 60 * _MB
    assert estimate.growing_bytes == estimate.kept_bytes == 0


def test_a_measurement_takes_the_place_of_the_estimate_where_it_can_be_believed() -> None:
    """Memory is taken from the system itself: the heap would give what other tests have left in it."""
    assert resident_bytes() is not None, "this system does not say"
    size = 40 * _MB
    estimate = MemoryEstimate(loaded_bytes=50 * _MB, growing_bytes=5 * _MB, floor_bytes=size)
    for _ in range(5):
        gc.collect()
        budget = MemoryBudget(200 * _MB)
        assert budget.take("a", "a", "1", estimate)
        with budget.measured("a"):
            memory = mmap.mmap(-1, size)
            memory.write(b"\1" * size)
        memory.close()  # before the next round's: else that one would grow by nothing
        (holding,) = budget.holdings()
        measured = holding.measured_bytes
        if measured is not None and abs(measured - size) < 8 * _MB:
            assert holding.bytes == measured + 5 * _MB
            return
    pytest.fail(f"{measured} bytes were measured, {size} taken")


def test_a_measurement_is_not_believed_where_nothing_grew_or_somebody_else_came() -> None:
    estimate = MemoryEstimate(loaded_bytes=50 * _MB, floor_bytes=40 * _MB)
    budget = MemoryBudget(200 * _MB)
    assert budget.take("a", "a", "1", estimate)
    with budget.measured("a"):
        pass
    assert budget.held_bytes == 50 * _MB
    with budget.measured("a"):
        memory = bytearray(b"\1") * (40 * _MB)
        budget.give_back("another")
    assert budget.held_bytes == 50 * _MB
    del memory


def test_what_rests_holds_its_description_alone() -> None:
    budget = MemoryBudget(100 * _MB)
    estimate = MemoryEstimate(loaded_bytes=60 * _MB, kept_bytes=3 * _MB)
    assert budget.take("a", "a", "1", estimate)
    assert not budget.take("b", "b", "1", estimate)
    refusal = budget.refusal("b", "b", "1", estimate)
    assert refusal.reason is Reason.MEMORY_EXHAUSTED
    assert refusal.message.endswith("needs about 60 MB, the budget is 100 MB: 60 of 100 MB are used by a/1 60")
    budget.rest("a")
    assert budget.held_bytes == 3 * _MB
    assert budget.take("b", "b", "1", estimate)
    budget.give_back("a")
    assert budget.held_bytes == 60 * _MB


def test_short_turns_end_with_the_last_load() -> None:
    before = sys.getswitchinterval()
    with short_turns():
        with short_turns():
            assert sys.getswitchinterval() < 0.001
        assert sys.getswitchinterval() < 0.001
    assert sys.getswitchinterval() == before
