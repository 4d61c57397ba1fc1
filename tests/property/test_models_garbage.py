"""Whatever a folder or a request holds, it is read, or refused with a ServingError: nothing else ever comes out."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from headrace_server.config import InputLimits
from headrace_server.errors import Reason, ServingError
from headrace_server.models.load import load_model
from headrace_server.models.manifest import parse_manifest
from headrace_server.models.onnx_header import OnnxHeader, parse_onnx_header
from headrace_server.models.picture import open_picture
from headrace_server.models.tokenizer import TextTokenizer
from headrace_server.models.wire import WireError

MODERATE = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
FEW = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)


def graph(*, inputs: list[str] | None = None) -> onnx.ModelProto:
    names = inputs or ["input_ids", "attention_mask"]
    specs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "s"]) for name in names]
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3])
    node = helper.make_node("Custom", names, ["logits"], domain="x")
    return helper.make_model(helper.make_graph([node], "g", specs, [output]))


def tokenizer(*, special: bool = True) -> Tokenizer:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "##a": 5, "é": 6, "##b": 7, "b": 8}
    built = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    built.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if special:
        built.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
        )
    return built


TEXT_FOLDER: dict[str, Any] = {
    "model.onnx": graph().SerializeToString(),
    "tokenizer.json": tokenizer().to_str(),
    "config.json": {"architectures": ["XForSequenceClassification"], "max_position_embeddings": 8},
}


def refusal(action: Callable[[], object]) -> ServingError | None:
    """The ServingError that the action raises, None when it raises none; anything else fails the test."""
    try:
        action()
    except ServingError as error:
        return error
    return None


def load_folder(files: dict[str, Any]) -> ServingError | None:
    """None when the folder loads, the error when it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            if not isinstance(content, bytes | str):
                content = json.dumps(content)
            path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        error = refusal(lambda: load_model(Path(folder), name="m", version="1"))
        if error is not None:
            assert error.reason is Reason.MODEL_INVALID, error
            assert folder not in error.message
        return error


def test_the_folder_that_is_damaged_below_loads_when_it_is_whole() -> None:
    assert load_folder(TEXT_FOLDER) is None


@MODERATE
@given(st.binary(max_size=200))
def test_random_bytes_are_no_onnx_file(content: bytes) -> None:
    with contextlib.suppress(WireError):
        assert isinstance(parse_onnx_header(content), OnnxHeader)


@MODERATE
@given(st.data())
def test_a_damaged_onnx_file_is_read_or_refused(data: st.DataObject) -> None:
    content = bytearray(TEXT_FOLDER["model.onnx"])
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    load_folder({**TEXT_FOLDER, "model.onnx": bytes(content)})


JSON_FILES = [
    *("config.json", "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "modules.json"),
    *("sentence_bert_config.json", "config_sentence_transformers.json", "preprocessor_config.json", "labels.json"),
]


@MODERATE
@given(st.sampled_from(JSON_FILES), json_values)
def test_random_json_in_any_file_is_read_or_refused(name: str, value: Any) -> None:
    load_folder({**TEXT_FOLDER, name: value})


KEYS = {
    "config.json": "architectures id2label num_labels problem_type max_position_embeddings pad_token_id model_type",
    "tokenizer_config.json": "model_max_length truncation_side pad_token",
    "1_Pooling/config.json": "pooling_mode pooling_mode_mean_tokens include_prompt",
    "sentence_bert_config.json": "max_seq_length do_lower_case",
    "config_sentence_transformers.json": "prompts default_prompt_name",
}


@MODERATE
@given(st.sampled_from([(name, key) for name, keys in KEYS.items() for key in keys.split()]), json_values)
def test_a_random_value_at_a_known_key_is_read_or_refused(place: tuple[str, str], value: Any) -> None:
    name, key = place
    modules = [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    files = {**TEXT_FOLDER, "modules.json": modules, "1_Pooling/config.json": {"pooling_mode": "mean"}}
    load_folder({**files, name: {**(files[name] if isinstance(files.get(name), dict) else {}), key: value}})


IMAGE_KEYS = [
    "size",
    "crop_size",
    "crop_pct",
    "do_resize",
    "do_center_crop",
    "do_rescale",
    "do_normalize",
    "image_mean",
    "image_std",
    "rescale_factor",
    "rescale_offset",
    "resample",
    "image_processor_type",
    "include_top",
]


@MODERATE
@given(st.dictionaries(st.sampled_from(IMAGE_KEYS), json_values | st.integers(1, 64) | st.just([0.5] * 3), max_size=5))
def test_random_image_settings_are_read_or_refused(settings_of_image: dict[str, Any]) -> None:
    value = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["b", 3, 16, 16])
    output = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["b", 3])
    node = helper.make_node("Custom", ["image"], ["logits"], domain="x")
    model = helper.make_model(helper.make_graph([node], "g", [value], [output]))
    load_folder({"model.onnx": model.SerializeToString(), "preprocessor_config.json": settings_of_image})


toml_sections = st.sampled_from(["image", "features.a", "window", "batching"])
toml_keys = st.builds("[{}]\n{} = 1".format, toml_sections, st.text(max_size=20))


@MODERATE
@given(st.text(max_size=80) | toml_keys)
def test_random_toml_is_read_or_refused(text: str) -> None:
    error = refusal(lambda: parse_manifest(text.encode("utf-8", "surrogatepass")))
    assert error is None or error.reason is Reason.MODEL_INVALID


SECTIONS = [
    "tasks",
    "graph",
    "labels",
    "multi_label",
    "input",
    "window",
    "image",
    "features",
    "output",
    "tokenizer",
    "pooling",
    "prompts",
    "engine",
    "batching",
    "default_prompt",
]
MANIFEST_KEYS = [
    "head",
    "mode",
    "kind",
    "width",
    "resize",
    "std",
    "max_length",
    "device",
    "logits",
    "length_bucket",
    "padding_value",
    "crop",
]
toml_texts = st.sampled_from(["text", "none", "x", ""])
toml_scalars = st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | toml_texts


@MODERATE
@given(st.sampled_from(SECTIONS), st.sampled_from(MANIFEST_KEYS), toml_scalars)
def test_a_random_manifest_over_a_good_folder_is_read_or_refused(section: str, key: str, value: Any) -> None:
    written = json.dumps(value) if isinstance(value, str | bool) else repr(value)
    load_folder({**TEXT_FOLDER, "headrace.toml": f"{section} = {written}"})
    load_folder({**TEXT_FOLDER, "headrace.toml": f"[{section}]\n{key} = {written}"})
    load_folder({**TEXT_FOLDER, "headrace.toml": f"[{section}]\n{key} = [{written}, {written}]"})


PICTURES = []
for kind in ("PNG", "JPEG", "WEBP"):
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray((np.arange(600).reshape(10, 20, 3) % 251).astype(np.uint8)).save(stream, kind, exif=exif)
    PICTURES.append(stream.getvalue())


@MODERATE
@given(st.sampled_from(PICTURES), st.data())
def test_a_damaged_picture_is_read_or_refused(picture: bytes, data: st.DataObject) -> None:
    content = bytearray(picture)
    for _ in range(data.draw(st.integers(1, 8))):
        position = data.draw(st.integers(0, len(content) - 1))
        content[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    error = refusal(lambda: open_picture(bytes(content), InputLimits(max_image_pixels=1_000_000), "image"))
    assert error is None or error.reason is Reason.INVALID_INPUT
    assert error is None or error.violations[0].field == "image"


@MODERATE
@given(st.text(max_size=60), st.integers(3, 12), st.sampled_from(["left", "right"]))
def test_a_cut_text_is_never_longer_than_the_limit_and_offsets_lie_inside(text: str, limit: int, side: str) -> None:
    cutter = TextTokenizer(tokenizer().to_str(), max_length=limit)
    (encoded,) = cutter.encode([text], side=side)
    assert len(encoded.ids) == min(limit, encoded.num_tokens)
    assert encoded.truncated == (encoded.num_tokens > limit)
    found = cutter.tokenize(text)
    assert len(found.ids) == encoded.num_tokens
    size = len(text.encode())
    for (start, end), (first, last) in zip(found.byte_offsets, found.char_offsets, strict=True):
        assert 0 <= start <= end <= size
        assert text.encode()[start:end].decode() == text[first:last]


@MODERATE
@given(st.text("ab ", max_size=40), st.text("ab ", max_size=40), st.integers(4, 12), st.sampled_from(["left", "right"]))
def test_a_cut_pair_fills_the_limit_and_cuts_the_longer_first(first: str, second: str, limit: int, side: str) -> None:
    cutter = TextTokenizer(tokenizer().to_str(), max_length=limit)
    (pair,) = cutter.encode([(first, second)], side=side)
    assert len(pair.ids) == min(limit, pair.num_tokens)
    counts = [len(cutter.tokenize(text, add_special_tokens=False).ids) for text in (first, second)]
    kept_second = int(pair.type_ids.sum()) - 1
    kept = [len(pair.ids) - 3 - kept_second, kept_second]
    for own, other in ((0, 1), (1, 0)):
        assert kept[own] == counts[own] or kept[own] + 1 >= kept[other]


@FEW
@given(st.text(max_size=200))
def test_a_random_tokenizer_definition_is_refused(definition: str) -> None:
    with pytest.raises(ServingError) as caught:
        TextTokenizer(definition)
    assert caught.value.reason is Reason.MODEL_INVALID
