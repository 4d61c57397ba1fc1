"""The demo's bytes model tells made contents of 24 types apart, through the window of its manifest."""

from __future__ import annotations

import argparse
import bz2
import gzip
import inspect
import io
import json
import lzma
import sqlite3
import tarfile
import wave
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

from headrace_server.models.inputs import BytesInput
from headrace_server.models.load import load_model
from headrace_server.models.model import PrepareOptions, Task

_PYTHON = inspect.getsource(argparse).encode()


def _image(format_name: str) -> bytes:
    y, x = np.mgrid[0:64, 0:64]
    out = io.BytesIO()
    Image.fromarray(np.stack([x * 4, y * 4, x * y // 16], -1).astype(np.uint8)).save(out, format_name)
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("notes.txt", "a few words\n" * 50)
        archive.writestr("more.bin", bytes(range(256)))
    return out.getvalue()


def _tar() -> bytes:
    out, content = io.BytesIO(), b"a few words\n" * 50
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo("notes.txt")
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def _sqlite() -> bytes:
    database = sqlite3.connect(":memory:")
    database.execute("create table rivers (name, km)")
    database.execute("insert into rivers values ('Isar', 295)")
    database.commit()
    return database.serialize()


def _wav() -> bytes:
    out = io.BytesIO()
    with wave.open(out, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes((np.sin(np.arange(8000) / 9) * 9000).astype("<i2").tobytes())
    return out.getvalue()


CONTENTS = {
    "python": _PYTHON,
    "json": json.dumps([{"id": row, "name": f"row {row}", "ok": row % 2 == 0} for row in range(40)], indent=2).encode(),
    "png": _image("PNG"),
    "jpeg": _image("JPEG"),
    "webp": _image("WEBP"),
    "gif": _image("GIF"),
    "bmp": _image("BMP"),
    "tiff": _image("TIFF"),
    "pdf": _image("PDF"),
    "zip": _zip(),
    "tar": _tar(),
    "gzip": gzip.compress(_PYTHON, mtime=0),
    "bzip": bz2.compress(_PYTHON),
    "xz": lzma.compress(_PYTHON),
    "sqlite": _sqlite(),
    "wav": _wav(),
    "html": b"<!DOCTYPE html>\n<html><head><title>Weir</title></head>\n<body><h1>Weir</h1>"
    b"<p>Water over a <b>weir</b>.</p></body></html>\n",
    "xml": b'<?xml version="1.0" encoding="UTF-8"?>\n<rivers><river name="Isar" km="295"/>'
    b'<river name="Inn" km="518"/></rivers>\n',
    "c": b"#include <stdio.h>\n\nint main(int argc, char **argv) {\n"
    b'    for (int i = 0; i < argc; i++) printf("%s\\n", argv[i]);\n    return 0;\n}\n',
    "shell": b'#!/bin/sh\nset -e\nfor file in "$@"; do\n  if [ -f "$file" ]; then\n    wc -l "$file"\n  fi\ndone\n',
    "csv": b"river,country,length_km\n" + b"".join(b"river %d,country %d,%d\n" % (i, i % 7, 9 * i) for i in range(60)),
    "javascript": b"'use strict';\nconst levels = [3, 1, 2];\nfunction highest(values) {\n"
    b"  return values.reduce((a, b) => Math.max(a, b));\n}\nconsole.log(highest(levels));\n"
    b"module.exports = { highest };\n",
    "sql": b"CREATE TABLE rivers (name TEXT PRIMARY KEY, km INTEGER NOT NULL);\n"
    b"INSERT INTO rivers VALUES ('Isar', 295), ('Inn', 518);\n"
    b"SELECT name FROM rivers WHERE km > 300 ORDER BY km DESC;\n",
    "dockerfile": b"FROM python:3.12-slim\nWORKDIR /srv\nCOPY . .\nRUN pip install --no-cache-dir .\nEXPOSE 50051\n"
    b'CMD ["headrace", "serve", "models"]\n',
}


def test_magika_tells_24_made_contents_apart(demo_models: Path) -> None:
    model = load_model(demo_models / "magika" / "1", name="magika", version="1")
    pipeline = model.pipelines[Task.CLASSIFY]
    rows = pipeline.prepare([BytesInput(content) for content in CONTENTS.values()], PrepareOptions())
    feeds = pipeline.collate(rows)
    session = onnxruntime.InferenceSession(model.graph, providers=["CPUExecutionProvider"])
    names = list(pipeline.graph_outputs)
    scores = pipeline.reduce(dict(zip(names, session.run(names, feeds), strict=True)), feeds)["scores"]
    assert len(CONTENTS) == 24
    assert [model.labels[index] for index in scores.argmax(1)] == list(CONTENTS)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-4)


def test_magika_window_is_the_packages_own(demo_models: Path) -> None:
    """The rule of its package: strip white space, 1024 bytes from each end, 256 where there is no byte."""
    model = load_model(demo_models / "magika" / "1", name="magika", version="1")
    (row,) = model.pipelines[Task.CLASSIFY].prepare([BytesInput(b"\n  print('hi')  \n\n")], PrepareOptions())
    (window,) = row.arrays.values()
    text = list(b"print('hi')  \n\n"), list(b"\n  print('hi')")
    assert window.tolist() == text[0] + [256] * (1024 - len(text[0])) + [256] * (1024 - len(text[1])) + text[1]
