"""Which tests run here: the long ones only with --full, those for a GPU only where one answers."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache

import pytest

NUM_LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="run the tests marked `full` too")


@cache
def missing_gpu() -> str:
    """Why a GPU test cannot run here; empty where it can. Asks the driver, in a process of its own.

    HEADRACE_GPU_REHEARSAL has the tests in tests/gpu/test_cuda_*.py run on the CPU: see tests/gpu/conftest.py.
    """
    if os.environ.get("HEADRACE_GPU_REHEARSAL"):
        return ""
    code = "from headrace_server.engines.machine.cuda_devices import find_cuda; print(find_cuda().fault)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    if answer.returncode != 0:
        return f"the NVIDIA driver ends the process that asks it (status {answer.returncode})"
    return answer.stdout.strip()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--full"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        config.stash[NUM_LEFT_OUT] = len(left_out)
        if left_out:
            config.hook.pytest_deselected(items=left_out)
            items[:] = [item for item in items if not item.get_closest_marker("full")]
    for item in items:
        if item.get_closest_marker("gpu") and (reason := missing_gpu()):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if num_left_out := terminalreporter.config.stash.get(NUM_LEFT_OUT, 0):
        terminalreporter.write_line(f"left out: {num_left_out} long tests, run by `make test-full`")
