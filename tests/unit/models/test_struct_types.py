"""Files that several threads read first at the same moment, as models that are loaded side by side do."""

from __future__ import annotations

import subprocess
import sys

import pytest

_PROGRAM = """
import sys, threading
from headrace_server.jobs.recorded_request import RecordedRequest
from headrace_server.models.manifest import parse_manifest
from headrace_server.serving.versions_file import parse_versions_file
import msgspec

reads = {
    "manifest": lambda: parse_manifest(b"[batching]\\nmax_batch_size = 4\\n"),
    "versions": lambda: parse_versions_file(b'[labels]\\nstable = "1"\\n'),
    "recorded": lambda: msgspec.convert({"task": "classify"}, RecordedRequest),
}
read = reads[sys.argv[1]]
sys.setswitchinterval(1e-6)
together = threading.Barrier(4)

def go():
    together.wait()
    read()

threads = [threading.Thread(target=go) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.parametrize("what", ["manifest", "versions", "recorded"])
def test_threads_may_read_a_kind_of_file_for_the_first_time_together(what: str) -> None:
    """Unresolved, three of four such processes end by a segmentation fault."""
    for _ in range(4):
        ended = subprocess.run([sys.executable, "-c", _PROGRAM, what], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
