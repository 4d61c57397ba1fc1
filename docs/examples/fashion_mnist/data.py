"""Fashion-MNIST as Debian packages it: 60,000 pictures of clothes to learn from and 10,000 to test with, 28×28 grey.

The package (MIT licence, Zalando SE) is fetched by apt-get into a cache folder, checked by digest and read there;
nothing of it is installed or committed.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["LABELS", "Pictures", "fetch_package", "read_pictures"]

LABELS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

_PACKAGE = "dataset-fashion-mnist=0.0~git20200523.55506a9-1"
_ARCHIVE = "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb"
_SHA256 = "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0"
_FOLDER = "./usr/share/datasets/fashion-mnist/"
_SIDE = 28
_VALIDATION = 10_000


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pixels u8[n, 28, 28] and the index of what each shows, u8[n]."""

    pixels: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]

    def values(self) -> npt.NDArray[np.float32]:
        """What the networks read: f32[n, 28, 28, 1], each pixel ÷ 255."""
        return (self.pixels[..., np.newaxis] / np.float32(255)).astype(np.float32)


def fetch_package(cache: Path) -> Path:
    """The package in `cache`, fetched unless it is there whole. Raises RuntimeError where it cannot be had."""
    path = cache / _ARCHIVE
    if path.is_file() and _sha256(path) == _SHA256:
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as temporary:
        try:
            done = subprocess.run(
                ["apt-get", "download", _PACKAGE],
                cwd=temporary,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as error:
            raise RuntimeError(f"{_PACKAGE}: apt-get could not fetch it ({error})") from error
        arrived = sorted(Path(temporary).glob("*.deb"))
        if not arrived:
            said = done.stderr.strip().splitlines()
            raise RuntimeError(f"{_PACKAGE}: apt-get brought nothing ({said[0] if said else 'no word'})")
        if _sha256(arrived[0]) != _SHA256:
            raise RuntimeError(f"{_PACKAGE}: what came is not the pinned archive")
        os.replace(arrived[0], path)
    return path


def read_pictures(package: Path) -> tuple[Pictures, Pictures, Pictures]:
    """(train, validation, test): 50,000, 10,000 and 10,000.

    Whatever is chosen or calibrated looks at validation, the last 10,000 of the package's training pictures; test is
    for the figures at the end.
    """
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(tar)) as files:

        def read(name: str, header: int) -> npt.NDArray[np.uint8]:
            file = files.extractfile(f"{_FOLDER}{name}.gz")
            assert file is not None
            return np.frombuffer(gzip.decompress(file.read()), np.uint8, offset=header)

        known = Pictures(
            pixels=read("train-images-idx3-ubyte", 16).reshape(-1, _SIDE, _SIDE),
            labels=read("train-labels-idx1-ubyte", 8),
        )
        test = Pictures(
            pixels=read("t10k-images-idx3-ubyte", 16).reshape(-1, _SIDE, _SIDE),
            labels=read("t10k-labels-idx1-ubyte", 8),
        )
    train = Pictures(pixels=known.pixels[:-_VALIDATION], labels=known.labels[:-_VALIDATION])
    validation = Pictures(pixels=known.pixels[-_VALIDATION:], labels=known.labels[-_VALIDATION:])
    return train, validation, test


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
