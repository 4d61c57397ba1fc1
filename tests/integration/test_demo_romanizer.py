"""The romanizer: a real encoder and decoder, beam for beam as a plain search over the same graphs finds."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from headrace_client import Client
from headrace_server.server import Server

ort = pytest.importorskip("onnxruntime")

START, END = 1, 2
LETTERS = "ابتثجحخدذرزسشصضطظعغفقكلمنهوي"


@pytest.fixture(scope="module")
def folder(demo_models: Path) -> Path:
    return demo_models / "romanizer" / "1"


@pytest.fixture(scope="module")
def client(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    repository = tmp_path_factory.mktemp("models")
    (repository / "romanizer").symlink_to(folder.parent)
    with Server(repository=repository, listen="127.0.0.1:0") as server, Client(server.addresses.grpc[0]) as client:
        yield client


class PlainSearch:
    """Beams over the two graphs, each beam with its whole prefix, in double precision."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._encoder, self._decoder = (ort.InferenceSession(folder / f"{name}coder.onnx") for name in ("en", "de"))

    def best(self, name: str, beams: int, limit: int = 32) -> tuple[str, float]:
        source = np.array([self.tokenizer.encode(name).ids])
        memory, mask, hidden = self._encoder.run(None, {"src": source, "src_mask": np.zeros(source.shape, bool)})
        running: list[tuple[float, list[int], Any]] = [(0.0, [START], hidden)]
        ended: list[tuple[float, list[int]]] = []
        for _ in range(limit):
            found = []
            for score, prefix, state in running:
                feeds = {"prefix": np.array([prefix]), "memory": memory, "src_mask": mask, "hidden": state}
                logprobs, after = self._decoder.run(None, feeds)
                wide = logprobs[0].astype(np.float64)
                wide -= np.log(np.exp(wide).sum())
                found += [
                    (score + wide[token], [*prefix, int(token)], after) for token in np.argsort(-wide)[: 2 * beams]
                ]
            found.sort(key=lambda beam: -beam[0])
            running = []
            for rank, (score, prefix, state) in enumerate(found[: 2 * beams]):
                if prefix[-1] != END:
                    running.append((score, prefix, state))
                elif rank < beams:
                    ended.append((score / (len(prefix) - 1), prefix))
            running = running[:beams]
            ended = sorted(ended, key=lambda beam: -beam[0])[:beams]
            if len(ended) == beams and running[0][0] / len(running[0][1]) <= ended[-1][0]:
                break
        score, prefix = max(ended, key=lambda beam: beam[0])
        return self.tokenizer.decode(prefix), score


@pytest.fixture(scope="module")
def search(folder: Path) -> PlainSearch:
    return PlainSearch(folder)


@functools.cache
def names(count: int) -> list[str]:
    chance = np.random.default_rng(3)
    return ["".join(chance.choice(list(LETTERS), chance.integers(3, 8))) for _ in range(count)]


@pytest.mark.parametrize(("name", "romanized"), [("محمد", "Mohamed"), ("فاطمة", "Fatima"), ("خالد", "Khaled")])
def test_names_are_written_as_their_bearers_write_them(client: Client, name: str, romanized: str) -> None:
    assert client.generate_text("romanizer", name).text == romanized
    assert "".join(delta.text for delta in client.generate("romanizer", name)) == romanized


def test_beams_are_those_of_a_plain_search(client: Client, search: PlainSearch) -> None:
    for name in names(25):
        for beams in (2, 4):
            assert client.generate_text("romanizer", name, num_beams=beams).text == search.best(name, beams)[0], name


@pytest.mark.full
def test_beams_of_200_names_are_those_of_a_plain_search(client: Client, search: PlainSearch) -> None:
    for name in names(200):
        assert client.generate_text("romanizer", name, num_beams=2).text == search.best(name, 2)[0], name


def test_one_beam_is_the_greedy_text(client: Client, search: PlainSearch) -> None:
    for name in names(10):
        assert client.generate_text("romanizer", name, num_beams=1).text == search.best(name, 1)[0], name


def test_the_prompt_is_no_part_of_the_new_text(client: Client) -> None:
    answer = client.generate_text("romanizer", "محمد", max_tokens=3)
    assert (answer.text, answer.choices[0].finish_reason) == ("Moh", "length")
    assert answer.summary.num_prompt_tokens == 7
