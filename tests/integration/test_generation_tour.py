"""The tour's questions to text generators, as a running demo answers them."""

from __future__ import annotations

import json
import subprocess
import sys

from headrace_client import Client
from headrace_server.cli.tour_generation import chat, finish, form, romanize


def test_generators_answer_the_tour(demo_address: str) -> None:
    with Client(demo_address) as client:
        assert " Paris" in finish(client, "smollm2")[0]
        _, first, figures, _, second, later = chat(client, "smollm2")
        assert "Paris" in first
        assert "Paris" in second
        assert "ms" in figures
        assert " 0 of" not in later
        (answer,) = form(client, "smollm2")
        assert json.loads(answer).keys() == {"city", "country", "is_capital"}
        assert romanize(client, "romanizer") == ["محمد  →  Mohamed"]


def test_the_whole_tour_is_answered(demo_address: str) -> None:
    command = [sys.executable, "-m", "headrace_server", "tour", demo_address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "18 of 18 questions answered" in done.stdout
    assert "The capital of France is … Paris" in done.stdout
    assert "Mohamed" in done.stdout
