"""Which Debian packages of Python modules need which packages: a real, small table of interactions, facts alone.

`make package-graph` derives it anew from the apt metadata of a Debian machine; the derived table is kept in the project
(names and dependencies, nothing that anybody wrote), so that the demo needs neither Debian nor a download.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from headrace_server.prepare.fault import PrepareError

__all__ = ["GRAPH_PATH", "PackageGraph", "derive_package_graph", "graph_of_metadata"]

GRAPH_PATH = Path(__file__).parent / "data" / "package_graph.tsv"

_PREFIX = "python3-"
_INTERPRETER = "python3"  # every package needs it: it says nothing
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_FIELD = re.compile(r"^(Package|Depends): (.*)$", re.MULTILINE)
_RELEASE_FIELD = re.compile(r"^(Origin|Codename|Version|Date): (.*)$", re.MULTILINE)
_TIMEOUT_S = 120


@dataclass(frozen=True, kw_only=True)
class PackageGraph:
    """Python packages with what they need, both in order of name.

    needs     of each package that needs at least one: the packages it needs, the interpreter left out
    snapshot  which metadata it was derived from, one line
    """

    needs: Mapping[str, tuple[str, ...]]
    snapshot: str

    @property
    def num_edges(self) -> int:
        return sum(map(len, self.needs.values()))

    @cached_property
    def num_needed_by(self) -> Mapping[str, int]:
        """Of each package that is needed: by how many."""
        return Counter(name for needed in self.needs.values() for name in needed)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Package and what it needs, edge by edge."""
        for name, needed in self.needs.items():
            for other in needed:
                yield name, other

    @classmethod
    def read(cls, path: Path = GRAPH_PATH) -> PackageGraph:
        """The graph in a file that `write` made."""
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        split = (line.split("\t") for line in lines)
        return cls(
            needs={name: tuple(needed.split(" ")) for name, needed in split},
            snapshot=first.removeprefix("# "),
        )

    def write(self, path: Path = GRAPH_PATH) -> None:
        """One line a package, so that a new snapshot is a small difference to look at."""
        lines = [f"# {self.snapshot}", *(f"{name}\t{' '.join(needed)}" for name, needed in self.needs.items())]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def derive_package_graph(lists: Path = Path("/var/lib/apt/lists")) -> PackageGraph:
    """The graph of this machine's apt metadata. Raises PrepareError where there is none."""
    cure = "run it on Debian, after `apt-get update`"
    try:
        done = subprocess.run(
            ["apt-cache", "dumpavail"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        )
        architecture = subprocess.run(
            ["dpkg", "--print-architecture"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=True
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        raise PrepareError(f"apt's metadata cannot be read ({error})", cure=cure) from error
    releases = [dict(_RELEASE_FIELD.findall(path.read_text("utf-8", "replace"))) for path in lists.glob("*InRelease")]
    said = {f"{each.get('Codename')} {each.get('Version', '')} of {each.get('Date')}" for each in releases}
    graph = graph_of_metadata(done.stdout, snapshot=f"Debian {architecture}: {', '.join(sorted(said))}")
    if not graph.needs:
        raise PrepareError(f"apt's metadata holds no package {_PREFIX}…", cure=cure)
    return graph


def graph_of_metadata(text: str, *, snapshot: str) -> PackageGraph:
    """The graph of package stanzas as apt prints them.

    Of alternatives (`a | b`) the first counts, which is what apt installs. Names that no package has (virtual ones)
    are left out, and so is what one package alone needs: it tells nothing about another.
    """
    depends: dict[str, str] = {}
    for stanza in text.split("\n\n"):
        fields = dict(_FIELD.findall(stanza))
        if "Package" in fields:
            depends.setdefault(fields["Package"], fields.get("Depends", ""))
    needs = {
        name: set(_first_names(depends[name])) & depends.keys() - {name, _INTERPRETER}
        for name in sorted(depends)
        if name.startswith(_PREFIX)
    }
    count = Counter(other for needed in needs.values() for other in needed)
    kept = {name: tuple(sorted(other for other in needed if count[other] > 1)) for name, needed in needs.items()}
    return PackageGraph(needs={name: needed for name, needed in kept.items() if needed}, snapshot=snapshot)


def _first_names(depends: str) -> Iterator[str]:
    for alternatives in depends.split(","):
        found = _NAME.match(alternatives.strip())
        if found:
            yield found.group()
