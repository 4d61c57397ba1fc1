"""A user's own inputs: every form, what is refused and where, and a split that shares nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from unit.models.small_models import (
    WORDS,
    encoded,
    gradient,
    image_graph,
    load,
    make_model,
    tensor,
    write_classifier,
    write_embedder,
    write_folder,
)

from headrace_server.models.load import load_model
from headrace_server.models.model import Model, Task
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.quality.inputs import Inputs, read_inputs, with_items

SENTENCES = [f"{a} {b}" for a in WORDS[:8] for b in WORDS[8:13]]  # 40 that differ, two words each


@pytest.fixture
def classifier(tmp_path: Path) -> Model:
    return load(write_classifier(tmp_path / "classifier"))


@pytest.fixture
def table(tmp_path: Path) -> Model:
    """Columns age (float), plan (text); a classifier of two labels."""
    weights = {"matrix": np.array([[1.0, -1.0]], np.float32)}
    nodes = [
        helper.make_node("MatMul", ["age", "matrix"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    outputs = [tensor("label", TensorProto.INT64, "n"), tensor("scores", TensorProto.FLOAT, "n", 2)]
    graph = make_model(nodes, [tensor("age", TensorProto.FLOAT, "n", 1)], outputs, weights)
    folder = write_folder(tmp_path / "table", model__onnx=graph, headrace__toml='labels = ["stays", "leaves"]\n')
    return load(folder)


@pytest.fixture
def tensors(tmp_path: Path) -> Model:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    values = [tensor("x", TensorProto.FLOAT, "n", 4)], [tensor("y", TensorProto.FLOAT, "n", 2)]
    graph = make_model(nodes, *values, {"w": np.ones((4, 2), np.float32)})
    return load(write_folder(tmp_path / "tensors", model__onnx=graph))


def write(path: Path, lines: list[object]) -> Path:
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines) + "\n")
    return path


def rows_of(feeds: tuple[dict[str, np.ndarray], ...] | tuple[object, ...]) -> list[bytes]:
    """Each row's tokens without their padding."""
    found = []
    for each in feeds:
        for ids, mask in zip(each["input_ids"], each["attention_mask"], strict=True):  # type: ignore[index]
            found.append(ids[mask > 0].tobytes())
    return found


def refusal(path: Path, model: Model) -> str:
    with pytest.raises(PrepareError) as caught:
        read_inputs(path, model)
    assert caught.value.cure
    return caught.value.message


def test_texts_are_split_without_sharing_a_row_the_model_cannot_tell_apart(tmp_path: Path, classifier: Model) -> None:
    doubled = [*SENTENCES, *(sentence.upper() for sentence in SENTENCES), *(f" {each}  " for each in SENTENCES)]
    inputs = read_inputs(write(tmp_path / "a.txt", list(doubled)), classifier)
    held, fitted = rows_of(inputs.held_out), rows_of(inputs.calibration)
    assert len(held) + len(fitted) == len(doubled)
    assert not set(held) & set(fitted)
    assert len(set(held)) == 12
    assert (inputs.data.num_held_out, inputs.data.num_calibration) == (len(held), len(fitted))


def test_the_split_is_the_seeds_and_not_the_files_order(tmp_path: Path, classifier: Model) -> None:
    one = read_inputs(write(tmp_path / "a.txt", list(SENTENCES)), classifier)
    other = read_inputs(write(tmp_path / "b.txt", list(reversed(SENTENCES))), classifier)
    assert rows_of(one.held_out) == rows_of(other.held_out)
    assert rows_of(one.held_out) != rows_of(read_inputs(tmp_path / "a.txt", classifier, seed=1).held_out)
    assert one.data.sha256 != other.data.sha256


def test_labels_stay_with_their_rows(tmp_path: Path, classifier: Model) -> None:
    classes = {sentence: ("good", "bad", "neutral")[at % 3] for at, sentence in enumerate(SENTENCES)}
    lines: list[object] = [{"text": text, "label": label} for text, label in classes.items()]
    lines.append({"text": "a film without a label"})
    inputs = read_inputs(write(tmp_path / "a.jsonl", lines), classifier)
    assert inputs.task is Task.CLASSIFY
    assert classifier.tokenizer is not None
    by_tokens = {
        np.asarray(encoding.ids).tobytes(): ("good", "bad", "neutral").index(classes[text])
        for text, encoding in zip(SENTENCES, classifier.tokenizer.encode(SENTENCES), strict=True)
    }
    found = rows_of(inputs.held_out)
    assert [by_tokens.get(row, -1) for row in found] == inputs.labels.tolist()


def test_a_limit_takes_fewer_rows(tmp_path: Path, classifier: Model) -> None:
    inputs = read_inputs(write(tmp_path / "a.txt", list(SENTENCES)), classifier, limit=30)
    assert inputs.data.num_held_out + inputs.data.num_calibration == 30


def test_batches_hold_rows_of_like_lengths(tmp_path: Path) -> None:
    model = load(write_embedder(tmp_path / "m"))
    lines: list[object] = [*SENTENCES, *(f"{each} " + "river bank " * 9 for each in SENTENCES)]
    inputs = read_inputs(write(tmp_path / "a.txt", lines), model)
    assert {feeds["input_ids"].shape[1] for feeds in inputs.held_out} == {16, 32}
    assert max(len(feeds["input_ids"]) for feeds in inputs.held_out) == 8


def test_too_few_rows_are_refused_with_the_number_needed(tmp_path: Path, classifier: Model) -> None:
    said = refusal(write(tmp_path / "a.txt", [*SENTENCES[:20], *SENTENCES[:20]]), classifier)
    assert said == "a.txt: 20 different rows, at least 27 are needed"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ([1], "holds a list"),
        ({"label": "good"}, "holds nothing as its input"),
        ({"text": "a", "features": {}}, "holds text and features"),
        ({"text": 3}, "text: int, a text is expected"),
        ({"text": "a", "lable": "good"}, "lable: unknown, beside text there may be label, pair"),
        ({"text": "a", "label": "goood"}, "label: 'goood' is no class of this model, the nearest is 'good'"),
        ({"text": "a", "label": 3}, "label: '3' is no class"),
        ({"text": "a", "label": 0.5}, "label: float"),
        ({"features": {"age": 3}}, "features, this model reads tensors or text"),
        ({"image": "../../secret.png"}, "image: '../../secret.png' lies outside"),
        ({"image": "none.png"}, "image: 'none.png': No such file"),
        ({"prompt": "a", "expected": "b"}, "prompt: this model does not generate text"),
        ({"prompt": "a"}, "expected: missing"),
    ],
)
def test_a_bad_line_is_named_with_its_field(tmp_path: Path, classifier: Model, line: object, said: str) -> None:
    lines: list[object] = [{"text": text} for text in SENTENCES]
    lines.insert(6, line)
    message = refusal(write(tmp_path / "a.jsonl", lines), classifier)
    assert message.startswith("a.jsonl: line 7: ")
    assert said in message


def test_other_files_are_refused_by_their_form(tmp_path: Path, classifier: Model) -> None:
    assert "no form of inputs" in refusal(write(tmp_path / "a.xlsx", []), classifier)
    assert "no such file" in refusal(tmp_path / "a.txt", classifier)
    (tmp_path / "a.txt").write_bytes(b"fine\n\xff\xfe\n")
    assert "not UTF-8" in refusal(tmp_path / "a.txt", classifier)


def test_columns_of_csv_are_read_as_the_models(tmp_path: Path, table: Model) -> None:
    assert Task.CLASSIFY in table.pipelines
    rows = [f"{age},{'stays' if age % 2 else 'leaves'}" for age in range(40)]
    inputs = read_inputs(write(tmp_path / "a.csv", ["age,label", *rows]), table)
    ages = np.concatenate([feeds["age"] for feeds in inputs.held_out]).reshape(-1)
    assert inputs.labels.tolist() == [0 if age % 2 else 1 for age in ages.tolist()]
    assert "line 3: age: 'old', a float is expected" in refusal(
        write(tmp_path / "b.csv", ["age,label", "3,stays", "old,stays"]), table
    )
    assert "line 2: agee: no column of this model, the nearest is 'age'" in refusal(
        write(tmp_path / "c.csv", ["agee", "3"]), table
    )
    (tmp_path / "e.csv").write_bytes(b"age,label\n3,stays\n\xff,stays\n")
    assert "not UTF-8" in refusal(tmp_path / "e.csv", table)
    assert "no CSV" in refusal(write(tmp_path / "f.csv", ["age,label", '"3"4,stays']), table)
    assert "line 3: not 2 fields" in refusal(write(tmp_path / "d.csv", ["age,label", "3,stays", "3"]), table)


def test_parquet_is_read_as_csv_is(tmp_path: Path, table: Model) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    ages = [float(age) for age in range(40)]
    labels = ["stays" if age % 2 else "leaves" for age in range(40)]
    parquet.write_table(pyarrow.table({"age": ages, "label": labels}), tmp_path / "a.parquet")
    write(tmp_path / "a.csv", ["age,label", *(f"{age},{label}" for age, label in zip(ages, labels, strict=True))])
    one, other = (read_inputs(tmp_path / name, table) for name in ("a.parquet", "a.csv"))
    assert one.labels.tolist() == other.labels.tolist()
    for mine, its in zip(one.held_out, other.held_out, strict=True):
        assert np.array_equal(mine["age"], its["age"])


def test_a_folder_of_pictures_names_labels_by_its_folders(tmp_path: Path) -> None:
    model = load(
        write_folder(tmp_path / "m", model__onnx=image_graph(), headrace__toml='labels = ["a", "b", "c", "d"]')
    )
    for at in range(32):
        file = tmp_path / "pictures" / "abcd"[at % 4] / f"{at}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(gradient(20 + at, 30)))
    inputs = read_inputs(tmp_path / "pictures", model)
    assert inputs.held_out[0]["image"].shape == (8, 3, 32, 32)
    assert set(inputs.labels.tolist()) <= {0, 1, 2, 3}
    assert len(inputs.labels) == inputs.data.num_held_out == 10
    (tmp_path / "pictures" / "a" / "notes.txt").write_text("x")
    assert "a/notes.txt: no image" in refusal(tmp_path / "pictures", model)


def test_tensors_come_row_by_row(tmp_path: Path, tensors: Model) -> None:
    assert tensors.pipelines == {}
    x = np.arange(160, dtype=np.float32).reshape(40, 4)
    np.savez(tmp_path / "a.npz", x=x)
    inputs = read_inputs(tmp_path / "a.npz", tensors)
    assert inputs.task is Task.INFER
    assert inputs.held_out[0]["x"].shape == (8, 4)
    np.savez(tmp_path / "b.npz", x=x, z=x[:3])
    assert "axis 0 must be as many rows" in refusal(tmp_path / "b.npz", tensors)
    np.savez(tmp_path / "c.npz", x=x.astype(np.float64))
    assert "row 0" in refusal(tmp_path / "c.npz", tensors)
    assert "float64, float32 is expected" in refusal(tmp_path / "c.npz", tensors)


def test_item_vectors_are_checked(tmp_path: Path, tensors: Model) -> None:
    inputs = Inputs(task=Task.INFER, data=read_data(tmp_path, tensors))
    np.save(tmp_path / "items.npy", np.eye(3))
    found = with_items(inputs, tmp_path / "items.npy").items
    assert found is not None
    assert found.dtype == np.float32
    np.save(tmp_path / "items.npy", np.full((3, 3), np.nan))
    with pytest.raises(PrepareError, match="finite vectors"):
        with_items(inputs, tmp_path / "items.npy")


def read_data(folder: Path, model: Model):  # type: ignore[no-untyped-def]
    np.savez(folder / "some.npz", x=np.arange(160, dtype=np.float32).reshape(40, 4))
    return read_inputs(folder / "some.npz", model).data


def test_graphs_whose_runs_are_not_rows_are_fed_run_by_run(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "x"], ["y"])]
    graph = make_model(nodes, [tensor("x", TensorProto.FLOAT, 3, 2)], [tensor("y", TensorProto.FLOAT, 3, 2)])
    folder = write_folder(tmp_path / "m", model__onnx=graph)
    model = load_model(folder, name="m", version="1")
    assert isinstance(graph, onnx.ModelProto)
    np.savez(tmp_path / "a.npz", x=np.arange(240, dtype=np.float32).reshape(40, 3, 2))
    inputs = read_inputs(tmp_path / "a.npz", model)
    assert {feeds["x"].shape for feeds in inputs.held_out} == {(3, 2)}
    assert len(inputs.held_out) == inputs.data.num_held_out
