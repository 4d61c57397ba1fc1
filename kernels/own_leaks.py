"""Findings of a sanitized run that are the kernels' own: every error, and leaks whose malloc stands in their code.

    python kernels/own_leaks.py REPORT...

LeakSanitizer lists what Python and NumPy keep until the process ends: it is counted and left out. Exits with 1 when
there is a finding.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ALLOCATORS = re.compile(
    r"^    #\d+ \S+ in (?:__interceptor_)?(?:malloc|calloc|realloc|posix_memalign|aligned_alloc|mmap)\b"
)
FRAME = re.compile(r"^    #\d+ \S+ in ")
OWN = re.compile(r"headrace_kernels/_native/(?:simd/|[a-z_]+\.(?:pyx|c))")


def own_findings(report: str) -> tuple[list[str], int]:
    """Paragraphs that count, and how many leaks do not."""
    counted, others = [], 0
    for paragraph in report.split("\n\n"):
        if "ERROR: AddressSanitizer" in paragraph or "runtime error:" in paragraph:
            counted.append(paragraph)
        elif "leak of" in paragraph:
            callers = [line for line in paragraph.splitlines() if FRAME.match(line) and not ALLOCATORS.match(line)]
            if callers and OWN.search(callers[0]):
                counted.append(paragraph)
            else:
                others += 1
    return counted, others


def main(paths: list[str]) -> int:
    """Prints what counts; 1 if anything does."""
    counted, others = [], 0
    for path in paths:
        own, rest = own_findings(Path(path).read_text(errors="replace"))
        counted += own
        others += rest
    print(f"sanitize: {len(counted)} findings; {others} leaks of Python and its other libraries left out")
    for paragraph in counted:
        print(paragraph, file=sys.stderr)
    return 1 if counted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
