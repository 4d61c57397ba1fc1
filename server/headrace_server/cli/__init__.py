"""The `headrace` command: arguments and environment in, configuration out. The only reader of the environment.

    headrace serve DIR          serve a model repository, or one model's folder
    headrace inspect DIR        say what DIR holds, how it is read, and what would be done
    headrace demo build|run     make the demo models; serve them and show their answers
    headrace recommend train FILE   fit a recommender to interactions, test it, write it into catalogs
    headrace tour ADDRESS       ask a running server one question of each job
    headrace version

Exit status: 0 done; 1 it failed, said in one line on standard error; 2 the command line is wrong.
"""

from __future__ import annotations

import os

__all__ = ["main"]


def main() -> None:
    """The console script."""
    # The core of gRPC writes remarks of its own ("Got goaway") to standard error, between our lines of JSON. It reads
    # this when it is first imported; who wants the remarks sets it.
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    from headrace_server.cli.app import app

    app()
