"""headrace.toml: what a folder's own files leave unsaid, or should be read otherwise. Every key is optional.

    tasks  = ["classify", "embed"]         # what to offer; found out from the graph when left out
    graph  = "model.onnx"                  # of several .onnx files, the one to serve
    labels = ["ham", "spam"]               # or a file: "labels.txt" (a line each), "labels.json"
    multi_label = false                    # scores are independent (sigmoid)

    [input]   kind = "text" | "image" | "bytes" | "features" | "tensors"
    [window]  of bytes models: head, tail, block, padding_value, strip
    [image]   width, height, resize, crop, mean, std, rescale, layout, colour, interpolation
    [features.NAME]  a column: type, input, default    (columns of one matrix input stand in file order)
    [output]  logits, embedding, relevance: graph outputs by name; activation = "softmax" | "sigmoid" | "none"
    [tokenizer]  max_length, truncation_side
    [pooling]    mode = "mean" | "cls" | "max" | "last_token" | "none", normalize
    [prompts]    NAME = "text put before the input";  default_prompt = "NAME" at the top
    [engine]     as config.EngineOptions, with [engine.cuda] and [engine.tensorrt]
    [batching]   as config.BatchPolicy
    [decoder]    of text generators, as config.DecoderPolicy
    [encoder_decoder]  what graphs are called that no exporter named: see EncoderDecoderSection

An unknown key is an error that names it and the nearest valid one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import msgspec

from headrace_server.config import BatchPolicy, CudaOptions, DecoderPolicy, EngineOptions, ShapeProfile, TensorRtOptions
from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.models.struct_types import resolve_types
from headrace_server.models.toml_keys import read_toml

__all__ = [
    "MANIFEST_NAME",
    "Activation",
    "BatchingSection",
    "CudaSection",
    "DecoderSection",
    "EncoderDecoderSection",
    "EngineSection",
    "FeatureSection",
    "ImageSection",
    "InputSection",
    "Manifest",
    "OutputSection",
    "PoolingMode",
    "PoolingSection",
    "ProfileSection",
    "TensorRtSection",
    "TokenizerSection",
    "WindowSection",
    "parse_manifest",
]

MANIFEST_NAME = "headrace.toml"

Activation = Literal["softmax", "sigmoid", "none"]
PoolingMode = Literal["mean", "cls", "max", "last_token", "none"]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the manifest."""


class InputSection(_Section, frozen=True):
    """What the caller gives, and which graph input takes it (for images and bytes)."""

    kind: Literal["text", "image", "bytes", "features", "tensors"] | None = None
    name: str | None = None


class WindowSection(_Section, frozen=True):
    """Which bytes of an input are read: `head` of its first, `tail` of its last, `padding_value` where they run out.

    `strip` drops white space from the start and the end before the window is taken, looking only at the first and the
    last `block` bytes (0: at head or tail bytes).
    """

    head: int = 0
    tail: int = 0
    block: int = 0
    padding_value: int = 0
    strip: bool = False


class ImageSection(_Section, frozen=True):
    """How a decoded image becomes the graph's tensor: resize, centre crop, then (pixel × rescale - mean) / std."""

    width: int | None = None
    height: int | None = None
    resize: int | tuple[int, int] | None = None  # shorter side, or [height, width]
    crop_fraction: float | None = None  # resize so that the crop is this part of the shorter side
    crop: bool | None = None  # centre crop to height × width after resizing
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    rescale: float | None = None
    layout: Literal["nchw", "nhwc"] | None = None
    colour: Literal["rgb", "bgr", "grey"] | None = None
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] | None = None


class FeatureSection(_Section, frozen=True):
    """One column. Without `default` the caller must give a value; `default = nan` lets a float column be missing."""

    type: Literal["string", "float", "int", "bool"] | None = None
    input: str | None = None
    default: str | float | int | bool | None = None


class OutputSection(_Section, frozen=True):
    """Which graph outputs mean what."""

    logits: str | None = None
    embedding: str | None = None
    relevance: str | None = None
    activation: Activation | None = None


class TokenizerSection(_Section, frozen=True):
    """Overrides of the tokenizer's own settings."""

    max_length: int | None = None
    truncation_side: Literal["right", "left"] | None = None


class PoolingSection(_Section, frozen=True):
    """How token vectors become one vector."""

    mode: PoolingMode | None = None
    normalize: bool | None = None


class ProfileSection(_Section, frozen=True):
    """As `config.ShapeProfile`: by input name, shapes."""

    min: dict[str, tuple[int, ...]]
    opt: dict[str, tuple[int, ...]]
    max: dict[str, tuple[int, ...]]


class TensorRtSection(_Section, frozen=True):
    """Overrides of `config.TensorRtOptions` for this model; where plans are kept is the server's alone."""

    library: Literal["auto", "tensorrt", "tensorrt_rtx"] | None = None
    profiles: tuple[ProfileSection, ...] | None = None
    workspace_mb: int | None = None
    tf32: bool | None = None
    cuda_graphs: bool | None = None
    version_compatible: bool | None = None

    def over(self, defaults: TensorRtOptions) -> TensorRtOptions:
        chosen = _over(self, defaults)
        if self.profiles is not None:
            chosen["profiles"] = tuple(ShapeProfile(min=each.min, opt=each.opt, max=each.max) for each in self.profiles)
        return replace(defaults, **chosen)


class CudaSection(_Section, frozen=True):
    """Overrides of `config.CudaOptions` for this model."""

    arena_mb: int | None = None
    cuda_graphs: bool | None = None
    max_graphs: int | None = None
    tf32: bool | None = None
    conv_search: Literal["exhaustive", "heuristic", "default"] | None = None

    def over(self, defaults: CudaOptions) -> CudaOptions:
        return CudaOptions(**_over(self, defaults))


class EngineSection(_Section, frozen=True):
    """Overrides of `config.EngineOptions` for this model; where choices are kept is the server's alone."""

    device: str | None = None
    precision: str | None = None
    num_workers: int | None = None
    intra_op_threads: int | None = None
    cuda: CudaSection = CudaSection()
    tensorrt: TensorRtSection = TensorRtSection()

    def over(self, defaults: EngineOptions) -> EngineOptions:
        nested = {"cuda": self.cuda.over(defaults.cuda), "tensorrt": self.tensorrt.over(defaults.tensorrt)}
        return replace(defaults, **_over(self, defaults) | nested)


class BatchingSection(_Section, frozen=True):
    """Overrides of `config.BatchPolicy` for this model."""

    max_batch_size: int | None = None
    max_queue_rows: int | None = None
    max_delay_ms: float | None = None
    max_padding_ratio: float | None = None
    length_bucket: int | None = None
    inline: bool | None = None

    def over(self, defaults: BatchPolicy) -> BatchPolicy:
        return BatchPolicy(**_over(self, defaults))


class DecoderSection(_Section, frozen=True):
    """Overrides of `config.DecoderPolicy` for this model."""

    max_slots: int | None = None
    max_length: int | None = None
    max_waiting: int | None = None
    prefill_chunk: int | None = None
    prefix_cache_mb: int | None = None
    default_max_tokens: int | None = None
    max_chat_bytes: int | None = None

    def over(self, defaults: DecoderPolicy) -> DecoderPolicy:
        return DecoderPolicy(**_over(self, defaults))


class EncoderDecoderSection(_Section, frozen=True):
    """An encoder's and a decoder's graph by their own names; `graph` at the top of the manifest is the decoder's.

    states  decoder input = decoder output that is its value in the next step
    first   decoder input = encoder output that is its first value
    memory  decoder input = encoder output, the same in every step
    """

    encoder: str
    start_id: int
    end_ids: tuple[int, ...]
    max_length: int
    tokens: str = "input_ids"
    logits: str = "logits"
    source: str = "input_ids"
    source_mask: str = "attention_mask"
    mask_marks: Literal["tokens", "padding"] = "tokens"
    states: dict[str, str] = {}
    first: dict[str, str] = {}
    memory: dict[str, str] = {}
    num_beams: int = 1
    length_penalty: float = 1.0


class Manifest(_Section, frozen=True):
    """The whole file; `Manifest()` is that of a folder without one."""

    tasks: tuple[Literal["classify", "embed", "rerank", "generate", "infer"], ...] | None = None
    graph: str | None = None
    labels: tuple[str, ...] | str | None = None
    multi_label: bool | None = None
    default_prompt: str | None = None
    input: InputSection = InputSection()
    window: WindowSection | None = None
    image: ImageSection = ImageSection()
    features: dict[str, FeatureSection] = {}
    output: OutputSection = OutputSection()
    tokenizer: TokenizerSection = TokenizerSection()
    pooling: PoolingSection = PoolingSection()
    prompts: dict[str, str] | None = None
    engine: EngineSection = EngineSection()
    batching: BatchingSection = BatchingSection()
    decoder: DecoderSection = DecoderSection()
    encoder_decoder: EncoderDecoderSection | None = None


resolve_types(Manifest)


def parse_manifest(text: bytes) -> Manifest:
    """The manifest in `text` (TOML, UTF-8). Raises ServingError MODEL_INVALID naming key, value and what is valid."""
    manifest = read_toml(text, Manifest, _invalid)
    try:
        # Values out of range are told here, by the file that holds them, rather than when the engine starts.
        manifest.engine.over(EngineOptions())
        manifest.batching.over(BatchPolicy())
        manifest.decoder.over(DecoderPolicy())
    except ServingError as error:
        raise ServingError(
            Reason.MODEL_INVALID, f"{MANIFEST_NAME}: {error.message}", violations=error.violations
        ) from None
    _check_ranges(manifest)
    return manifest


def _check_ranges(manifest: Manifest) -> None:
    window, image, tokenizer = manifest.window, manifest.image, manifest.tokenizer
    if window is not None:
        for name in ("head", "tail", "block"):
            _in_range(f"window.{name}", getattr(window, name), 0, 16_777_216)
        if window.head + window.tail == 0:
            raise _invalid("window", "head and tail are both 0, one must be more")
    for name in ("width", "height"):
        _in_range(f"image.{name}", getattr(image, name), 1, 16_384)
    for side in image.resize if isinstance(image.resize, tuple) else (image.resize,):
        _in_range("image.resize", side, 1, 16_384)
    if image.crop_fraction is not None and not 0.01 <= image.crop_fraction <= 1:
        raise _invalid("image.crop_fraction", f"{image.crop_fraction}, from 0.01 to 1")
    for name in ("mean", "std"):
        values = getattr(image, name)
        if values is not None and len(values) not in (1, 3):
            raise _invalid(f"image.{name}", f"{len(values)} values, 1 or 3")
    if image.std is not None and not all(value > 0 for value in image.std):
        raise _invalid("image.std", f"{list(image.std)}, each more than 0")
    _in_range("tokenizer.max_length", tokenizer.max_length, 1, 1_048_576)


def _in_range(key: str, value: int | None, low: int, high: int) -> None:
    if value is not None and not low <= value <= high:
        raise _invalid(key, f"{value}, from {low} to {high}")


def _over(section: msgspec.Struct, defaults: Any) -> dict[str, Any]:
    chosen = msgspec.structs.asdict(section)
    return {name: getattr(defaults, name) if value is None else value for name, value in chosen.items()}


def _invalid(key: str, description: str) -> ServingError:
    where = f"{MANIFEST_NAME}: {key}: " if key else f"{MANIFEST_NAME}: "
    return ServingError(
        Reason.MODEL_INVALID, where + description, violations=[Violation(f"{MANIFEST_NAME}:{key}", description)]
    )
