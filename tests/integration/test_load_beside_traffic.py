"""While a model is loaded, the others go on answering."""

from __future__ import annotations

import json
import re
import threading
import time
from pathlib import Path

import pytest
from merged_tokenizer import merged_tokenizer
from tokenizers import Tokenizer
from unit.serving import model_folders

from headrace_client import Client
from headrace_server.config import AdminOptions, ServerConfig, ThreadBudget, TransportOptions
from headrace_server.server import Server
from headrace_server.serving.version import ModelState

_NUM_MERGES = 150_000  # a vocabulary as of today's larger models


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def test_a_load_holds_no_other_models_requests_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    definition = json.dumps(merged_tokenizer(_NUM_MERGES))
    began = time.perf_counter()
    Tokenizer.from_str(definition)
    read_whole_s = time.perf_counter() - began
    model_folders.text_encoder(tmp_path / "small" / "1")
    config = ServerConfig(
        repository=tmp_path,
        threads=ThreadBudget(num_cores=2),
        transport=TransportOptions(listen=("127.0.0.1:0",)),
        admin=AdminOptions(listen=None),
    )
    seconds: list[float] = []
    failures: list[BaseException] = []
    stopping = threading.Event()
    with Server(config) as server, Client(server.addresses.grpc[0]) as client:

        def ask() -> None:
            try:
                while not stopping.wait(0.005):
                    began = time.perf_counter()
                    client.embed("small", ["w1 w2"])
                    seconds.append(time.perf_counter() - began)
            except BaseException as error:
                failures.append(error)

        asker = threading.Thread(target=ask)
        asker.start()
        time.sleep(0.5)
        alone, before = _quantile(seconds, 0.99), len(seconds)
        model_folders.text_encoder(tmp_path / "large" / "1", num_embeddings=_NUM_MERGES + 200)
        (tmp_path / "large" / "1" / "tokenizer.json").write_text(definition)
        caplog.set_level("INFO", "headrace_server.serving.loader")
        begin = len(seconds)
        status = server._repository.load("large").result(60)
        beside = seconds[begin:]
        stopping.set()
        asker.join(20)
    assert status.state is ModelState.READY, status.reason
    assert not failures
    assert before > 10
    stall_s = int(re.findall(r"model large/1: ready .* at most (\d+) ms", caplog.text)[-1]) / 1000
    # Read in one call of the library, the tokenizer alone would stall everybody for as long as it takes.
    assert stall_s < 0.75 * read_whole_s, f"{stall_s:.2f} s, read whole {read_whole_s:.2f} s"
    assert _quantile(beside, 0.99) < alone + 1.0
