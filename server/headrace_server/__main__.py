"""`python -m headrace_server` is the `headrace` command."""

from __future__ import annotations

from headrace_server.cli import main

main()
