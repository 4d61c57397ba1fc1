"""Every Python example of the README and the docs runs as it is printed, against the served demo models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").glob("*.md"))]
_EXAMPLE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
_EXAMPLES = [
    pytest.param(example, id=f"{page.name}-{number}")
    for page in _PAGES
    for number, example in enumerate(_EXAMPLE.findall(page.read_text(encoding="utf-8")))
]


@pytest.mark.parametrize("example", _EXAMPLES)
def test_example_runs_as_printed(
    example: str,
    demo_address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "build").symlink_to(_ROOT / "build")
    monkeypatch.chdir(tmp_path)
    exec(compile(example.replace("127.0.0.1:50051", demo_address), "<example>", "exec"), {"__name__": "example"})
    for expected in re.findall(r"^ *print\(.*\) +# (\(.*\))$", example, re.MULTILINE):
        assert expected in capsys.readouterr().out


def test_readme_shows_a_working_example_in_its_first_thirty_lines() -> None:
    head = "\n".join((_ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:30])
    assert _EXAMPLE.search(head), "no whole Python example in the first 30 lines"
    assert "make demo" in head
    assert "make test" in head


def test_documented_manifest_is_one() -> None:
    from headrace_server.models.manifest import parse_manifest

    (manifest,) = re.findall(
        r"```toml\n(.*?)```", (_ROOT / "docs" / "models.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert parse_manifest(manifest.encode()).features["age"].type == "float"
