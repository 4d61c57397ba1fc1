"""Pip constraints that hold every dependency at the lower bound the projects state, one `name==version` a line.

python tests/contract/lower_bounds.py pyproject.toml protos/pyproject.toml --extra cpu
"""

from __future__ import annotations

import argparse
import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["lower_bounds", "requirements"]

REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?\s*>=\s*([0-9][0-9A-Za-z.]*)")


def requirements(project: Path, extras: Iterable[str] = ()) -> list[str]:
    """The runtime requirements of one project, and those of its extras."""
    table = tomllib.loads(project.read_text(encoding="utf-8"))["project"]
    optional = table.get("optional-dependencies", {})
    return [*table["dependencies"], *(text for extra in extras for text in optional.get(extra, []))]


def lower_bounds(texts: Iterable[str]) -> dict[str, str]:
    """Name → lowest version of each requirement; where two state one, the higher. ValueError: one states none."""
    bounds: dict[str, str] = {}
    for text in texts:
        match = REQUIREMENT.match(text)
        if match is None:
            raise ValueError(f"{text!r} states no lower bound")
        name, version = match.groups()
        bounds[name] = max(bounds.get(name, version), version, key=lambda v: [int(part) for part in v.split(".")])
    return bounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("projects", nargs="+", type=Path)
    parser.add_argument("--extra", action="append", default=[])
    arguments = parser.parse_args()
    texts = [text for project in arguments.projects for text in requirements(project, arguments.extra)]
    for name, version in sorted(lower_bounds(texts).items()):
        if not name.startswith("headrace"):
            print(f"{name}=={version}")


if __name__ == "__main__":
    main()
