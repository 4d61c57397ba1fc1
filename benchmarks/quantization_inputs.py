"""Inputs that `headrace quantize` is shown on: sentences, mails, a table, photographs; from packages, never committed.

sentences.txt     lines of the SpamAssassin corpus' mails that are not spam, 4 to 40 words each
mails.jsonl       mails of the third that the spam model was not trained on, with labels
subscribers.csv   rows of the synthetic table's held-out third, with labels
photos/           parts of the photographs in scikit-image and scikit-learn, without labels; parts of one photograph
                  may lie on both sides of the split
models/churn-net  a neural net on the synthetic table: the demo's own model is of trees, which hold no matrices
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from headrace_server.prepare.churn import NUMBERS, WORDS, synthetic_subscribers
from headrace_server.prepare.decoder_quality import quality_texts
from headrace_server.prepare.fetch import fetch
from headrace_server.prepare.smollm2 import GOLDEN
from headrace_server.prepare.sources import PHOTOS
from headrace_server.prepare.spam_corpus import fetch_corpus, read_corpus, without_copies
from headrace_server.prepare.spam_training import is_held_out

__all__ = ["make_inputs"]

_SEED = 7
_NUM_SENTENCES = 1000
_NUM_MAILS = 1000
_NUM_ROWS = 2000
_PARTS = 16  # of each photograph
# What the other files in the wheel hold is drawn, written, or a single colour.
_PHOTOS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "ihc.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "retina.jpg",
    "rocket.jpg",
)  # fmt: skip


def make_inputs(folder: Path, cache: Path) -> None:
    """Writes what is not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = [{"text": text} for text in quality_texts().values()]
    rows += [{"prompt": prompt, "expected": expected} for prompt, expected in GOLDEN]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if not (folder / "mails.jsonl").is_file():
        _texts(folder, cache)
    if not (folder / "photos").is_dir():
        _photos(folder / "photos", cache)
    if not (folder / "models" / "churn-net" / "1").is_dir():
        _table(folder)


def _texts(folder: Path, cache: Path) -> None:
    mails = without_copies(read_corpus(fetch_corpus(cache, print)))
    rng = np.random.default_rng(_SEED)
    lines = {line.strip() for mail in mails if not mail.is_spam for line in mail.text.splitlines()}
    fitting = sorted(line for line in lines if 4 <= len(line.split()) <= 40 and line[0].isalpha() and line.isascii())
    chosen = rng.choice(fitting, _NUM_SENTENCES, replace=False)
    (folder / "sentences.txt").write_text("\n".join(map(str, chosen)) + "\n", encoding="utf-8")
    held = [mail for mail in mails if is_held_out(mail)]
    picked = rng.choice(len(held), min(_NUM_MAILS, len(held)), replace=False)
    rows = [{"text": held[at].text, "label": "spam" if held[at].is_spam else "ham"} for at in picked]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "mails.jsonl").write_text(content, encoding="utf-8", errors="replace")


def _photos(folder: Path, cache: Path) -> None:
    with zipfile.ZipFile(fetch(PHOTOS, cache, print).path) as archive:
        pictures = {name: archive.read(f"skimage/data/{name}") for name in _PHOTOS}
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None, "the demo extra holds scikit-learn"
    for name in ("china.jpg", "flower.jpg"):
        pictures[name] = (Path(str(spec.origin)).parent / "datasets" / "images" / name).read_bytes()
    rng = np.random.default_rng(_SEED)
    folder.mkdir()
    for name, content in sorted(pictures.items()):
        picture = Image.open(io.BytesIO(content)).convert("RGB")
        for number in range(_PARTS):
            side = int(min(picture.size) * rng.uniform(0.4, 1.0))
            left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
            part = picture.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC)
            part.save(folder / f"{Path(name).stem}-{number}.png")


def _table(folder: Path) -> None:
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    table, held = synthetic_subscribers().thirds()
    rows = held.part(slice(_NUM_ROWS))
    with (folder / "subscribers.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*rows.columns, "label"])
        for at, leaves in enumerate(rows.leaves):
            writer.writerow([*(column[at] for column in rows.columns.values()), "leaves" if leaves else "stays"])
    columns = list(table.columns)
    transformer = ColumnTransformer(
        [
            ("words", OneHotEncoder(handle_unknown="ignore"), [columns.index(name) for name in WORDS]),
            ("numbers", StandardScaler(), [columns.index(name) for name in NUMBERS]),
        ],
        sparse_threshold=0.0,
    )
    net = MLPClassifier((128, 64), random_state=_SEED, max_iter=60, early_stopping=True)
    frame: Any = np.column_stack([column.astype(object) for column in table.columns.values()])
    pipeline = Pipeline([("columns", transformer), ("net", net)])
    pipeline.fit(frame, np.where(table.leaves, "leaves", "stays"))
    inputs = [(name, StringTensorType([None, 1])) for name in WORDS]
    inputs += [(name, FloatTensorType([None, 1])) for name in NUMBERS]
    model: Any = convert_sklearn(
        pipeline,
        name="churn-net",
        initial_types=inputs,
        options={id(pipeline): {"zipmap": False}},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    target = folder / "models" / "churn-net" / "1"
    target.mkdir(parents=True)
    (target / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))


if __name__ == "__main__":
    make_inputs(Path(sys.argv[1]), Path(sys.argv[2]))
