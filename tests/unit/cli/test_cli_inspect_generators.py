"""`headrace inspect` of text generators: cache, slots, context, ends, template, defaults."""

from __future__ import annotations

import json
from pathlib import Path

from decoder_folders import CONTEXT, write_decoder
from exported_decoders import unpacked
from typer.testing import CliRunner

from headrace_server.cli.app import app


def inspected(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_decoder_s_memory_and_manners_are_shown(tmp_path: Path) -> None:
    folder = write_decoder(tmp_path / "1", do_sample=True, temperature=0.7, top_p=0.9)
    (folder / "headrace.toml").write_text("[decoder]\nmax_slots = 3\nmax_length = 99\n")
    lines = inspected(str(folder)).splitlines()
    for shown in (
        "  cache       shared_buffer, 3 slots of 99 tokens",
        f"  context     {CONTEXT} tokens",
        "  ends        1",
        "  chat        by its own template",
        "  defaults    temperature 0.7, top-k 50, top-p 0.9, min-p 0",
    ):
        assert shown in lines


def test_programs_are_told_the_same(tmp_path: Path) -> None:
    folder = unpacked("marian", tmp_path / "1")
    settings = {"eos_token_id": 1, "decoder_start_token_id": 2, "num_beams": 4, "bad_words_ids": [[2], [5, 6]]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    text = inspected(str(folder))
    assert "the likeliest token, 4 beams" in text
    assert "bad_words_ids: [[2], [5, 6]] is not applied" in text
    generator = json.loads(inspected(str(folder), "--json"))["models"][0]["generator"]
    assert (generator["cache"], generator["context_length"], generator["end_ids"]) == ("copied", 48, [1])
    assert generator["encoder_decoder"]
    assert not generator["chat_template"]
    assert (generator["defaults"]["num_beams"], generator["defaults"]["forbidden"]) == (4, [2])
