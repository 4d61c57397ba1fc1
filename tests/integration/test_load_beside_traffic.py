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
        limit = time.monotonic() + 20
        while len(seconds) < 50 and not failures:
            assert time.monotonic() < limit, "nothing is answered"
            time.sleep(0.01)
        alone = _quantile(seconds, 0.99)
        caplog.set_level("INFO", "headrace_server.serving.loader")
        # Read in one call of the library, the tokenizer alone would stall everybody for as long as it takes, at every
        # load; what else the machine does stalls some of them.
        for version in ("1", "2", "3"):
            model_folders.text_encoder(tmp_path / "large" / version, num_embeddings=_NUM_MERGES + 200)
            (tmp_path / "large" / version / "tokenizer.json").write_text(definition)
            begin = len(seconds)
            status = server._repository.load("large", version).result(60)
            assert status.state is ModelState.READY, status.reason
            beside = _quantile(seconds[begin:], 0.99)
            stall_s = int(re.findall(rf"model large/{version}: ready .* at most (\d+) ms", caplog.text)[-1]) / 1000
            if stall_s < 0.75 * read_whole_s and beside < alone + 1.0:
                break
        stopping.set()
        asker.join(20)
    assert not failures
    assert stall_s < 0.75 * read_whole_s, f"{stall_s:.2f} s, read whole {read_whole_s:.2f} s"
    assert beside < alone + 1.0
