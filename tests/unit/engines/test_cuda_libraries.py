"""Which of a library's needs is missing, asked of the real dynamic linker."""

from __future__ import annotations

import subprocess
from pathlib import Path

from headrace_server.engines.machine.cuda_libraries import library_fault


def compiled(folder: Path, name: str, code: str, *flags: str) -> Path:
    source, library = folder / f"{name}.c", folder / f"lib{name}.so.3"
    source.write_text(code)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, *flags], check=True, timeout=60)
    return library


def test_a_library_that_needs_another_names_it(tmp_path: Path) -> None:
    needed = compiled(tmp_path, "headraceneeded", "int f(void) { return 1; }", "-Wl,-soname,libheadraceneeded.so.3")
    user = compiled(tmp_path, "headraceuser", "int f(void); int g(void) { return f(); }", str(needed))
    needed.unlink()
    assert library_fault(str(user)) == "libheadraceneeded.so.3 is not found"


def test_a_library_that_is_not_there_is_named_without_its_folder(tmp_path: Path) -> None:
    assert library_fault(str(tmp_path / "libheadracenone.so.9")) == "libheadracenone.so.9 is not found"


def test_a_function_that_no_library_has_is_named(tmp_path: Path) -> None:
    user = compiled(tmp_path, "headraceold", "int cuNewest(void); int g(void) { return cuNewest(); }", "-Wl,-z,now")
    assert library_fault(str(user)) == "the driver or a library is too old (it has no cuNewest)"


def test_a_file_that_is_no_library_does_not_load(tmp_path: Path) -> None:
    path = tmp_path / "libheadracejunk.so"
    path.write_bytes(b"junk")
    assert library_fault(str(path)) == "libheadracejunk.so does not load"


def test_a_library_that_loads_has_no_fault(tmp_path: Path) -> None:
    assert library_fault(str(compiled(tmp_path, "headracefine", "int f(void) { return 1; }"))) == ""
