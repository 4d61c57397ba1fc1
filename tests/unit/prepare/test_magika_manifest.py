"""Magika's own configuration becomes a manifest that the server reads."""

from __future__ import annotations

import json

import pytest

from headrace_server.models.manifest import parse_manifest
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.magika import manifest

CONFIG = {
    "beg_size": 1024, "mid_size": 0, "end_size": 512, "use_inputs_at_offsets": False, "block_size": 4096,
    "padding_token": 256,
}  # fmt: skip


def test_the_window_is_written_as_the_manifest_says_it() -> None:
    window = parse_manifest(manifest(json.dumps(CONFIG).encode()).encode()).window
    assert window is not None
    assert (window.head, window.tail, window.block, window.padding_value, window.strip) == (1024, 512, 4096, 256, True)


@pytest.mark.parametrize("change", [{"mid_size": 512}, {"use_inputs_at_offsets": True}])
def test_a_window_that_the_manifest_cannot_say_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(PrepareError, match="more than the first and the last"):
        manifest(json.dumps(CONFIG | change).encode())
