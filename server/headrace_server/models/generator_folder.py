"""Folders of text generators: the decoder's graph, its cache, its ends and defaults, read from the files it came with.

config.json + a graph with past_key_values.*     exports of optimum and transformers.js, and those made here
genai_config.json                                folders of onnxruntime-genai
encoder_model.onnx + decoder_model*.onnx         encoder–decoder models, as optimum exports them
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace_server.models.folder import model_invalid
from headrace_server.models.generation import CacheKind, GenerationDefaults, GenerationSpec, GraphNames
from headrace_server.models.generator_settings import (
    chat_template,
    end_ids,
    generation_defaults,
    generation_settings,
    not_applied,
    special_tokens,
)
from headrace_server.models.manifest import MANIFEST_NAME, EncoderDecoderSection
from headrace_server.models.onnx_header import read_onnx_header
from headrace_server.models.signature import TensorSpec
from headrace_server.models.source import Source, integer

__all__ = ["is_generator", "read_generator"]

_CONTEXT_KEYS = (
    *("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "context_length", "seq_length"),
    *("max_seq_len", "max_decoder_position_embeddings", "max_target_positions"),
)
_HEADS = ("num_key_value_heads", "decoder_attention_heads", "num_attention_heads", "n_head", "num_heads")
_HEAD_DIM = ("head_dim", "head_size", "d_kv")
_ATTENDS_IN_PLACE = frozenset({"GroupQueryAttention", "CachedAttention"})  # the runtime's, and our kernels'
_UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30
# What engines fill in beside keys and values.
_FILLED = {
    *("input_ids", "attention_mask", "position_ids", "seqlens_k", "total_sequence_length", "logit_rows"),
    *("num_logits_to_keep", "use_cache_branch", "encoder_hidden_states", "encoder_attention_mask"),
}


def is_generator(source: Source) -> bool:
    """Whether the graph keeps keys and values, or the manifest says what it keeps."""
    if source.manifest.encoder_decoder is not None or any(spec.name.startswith("past") for spec in source.inputs):
        return True
    given = {spec.name for spec in source.inputs}
    return "input_ids" in given and any(spec.name.startswith("present.") for spec in source.outputs)


def read_generator(source: Source) -> GenerationSpec:
    """What the folder says of its decoder. Raises MODEL_INVALID where it is no decoder that can be served."""
    if source.manifest.encoder_decoder is not None:
        return _named_by_manifest(source, source.manifest.encoder_decoder)
    past = [spec for spec in source.inputs if spec.name.startswith("past")]
    _check_whole(source, past)
    if not all(len(spec.shape) == 4 for spec in past) or len(past) % 2:
        raise model_invalid(
            f"{source.graph}: {past[0]}: keys and values are [batch, heads, past, head_dim], two a layer"
        )
    _require_tokenizer(source)
    config, file = _model_config(source)
    settings = generation_settings(source)
    cache = _cache(source)
    encoder = _encoder(source)
    _check_inputs(source, past, cache)
    spec = GenerationSpec(
        decoder=source.files.path(source.graph),
        encoder=None if encoder is None else source.files.path(encoder),
        cache=cache,
        names=_names(source, past, encoder),
        num_layers=sum(".encoder." not in spec.name for spec in past) // 2,
        num_kv_heads=_dimension(past[0], 1, config, _HEADS, file),
        head_dim=_dimension(past[0], 3, config, _HEAD_DIM, file),
        vocabulary_size=_vocabulary_size(source, config, file),
        context_length=_context_length(source, config, file),
        end_ids=end_ids(settings, "generation_config.json") or end_ids(config, file),
        decoder_start_id=_start_id(settings, config, file),
        chat_template=chat_template(source),
        special_tokens=special_tokens(source),
        defaults=generation_defaults(settings),
        policy=source.decoder,
    )
    longest = spec.policy.max_length
    if longest > spec.context_length:
        raise model_invalid(f"{MANIFEST_NAME}: decoder.max_length: {longest}, limit {spec.context_length} of {file}")
    _take_notes(source, spec)
    source.notes.extend(f"generation_config.json: {setting} is not applied" for setting in not_applied(settings))
    return spec


def _require_tokenizer(source: Source) -> None:
    if "tokenizer.json" not in source.files:
        raise model_invalid("a text generator without tokenizer.json; save the model's fast tokenizer there")


def _check_whole(source: Source, past: list[TensorSpec]) -> None:
    """One half of a pair keeps its cache for the other half: only merged graphs are served."""
    names = {spec.name for spec in source.inputs}
    first_only = not past
    later_only = any(".encoder." in spec.name for spec in past) and "encoder_hidden_states" not in names
    if first_only or later_only:
        lacking = "takes no past" if first_only else "cannot begin without a past"
        raise model_invalid(
            f"{source.graph}: {lacking}, it is one of a pair (decoder_model.onnx, decoder_with_past_model.onnx); export"
            " the two merged, as decoder_model_merged.onnx, which optimum-cli does unless told --no-post-process"
        )


def _check_inputs(source: Source, past: list[TensorSpec], cache: CacheKind) -> None:
    for spec in source.inputs:
        if spec not in past and spec.name not in _FILLED:
            raise model_invalid(f"{source.graph}: input {spec} is none that a decoder fills; export the graph without")
    for spec in past:
        if spec.dtype not in ("float32", "float16"):
            raise model_invalid(f"{source.graph}: {spec}: keys and values are float32 or float16")
    if cache is CacheKind.SHARED_BUFFER and any(spec.name == "use_cache_branch" for spec in source.inputs):
        raise model_invalid(f"{source.graph}: use_cache_branch beside GroupQueryAttention; export it without")


def _model_config(source: Source) -> tuple[Mapping[str, Any], str]:
    """The model's settings under Hugging Face's names, and the file they stand in."""
    if "genai_config.json" not in source.files:
        return source.config, "config.json"
    model = source.files.read_json("genai_config.json").get("model")
    decoder = model.get("decoder") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(decoder, dict):
        raise model_invalid("genai_config.json: model.decoder is missing; copy the whole export")
    return {**source.config, **decoder, **model}, "genai_config.json"


def _cache(source: Source) -> CacheKind:
    said = source.config.get("headrace")
    said = said.get("cache") if isinstance(said, dict) else None
    attends_in_place = any(node.op_type in _ATTENDS_IN_PLACE for node in source.header.nodes)
    if said is None:
        return CacheKind.SHARED_BUFFER if attends_in_place else CacheKind.COPIED
    try:
        cache = CacheKind(said)
    except ValueError:
        known = " or ".join(kind.value for kind in CacheKind)
        raise model_invalid(f"config.json: headrace.cache: {said!r}, {known}") from None
    if cache is CacheKind.SHARED_BUFFER and not attends_in_place:
        raise model_invalid("config.json: headrace.cache: shared_buffer, but the graph has no GroupQueryAttention")
    return cache


def _dimension(spec: TensorSpec, axis: int, config: Mapping[str, Any], keys: tuple[str, ...], file: str) -> int:
    """A size of the cache: the graph's own where it is fixed, else the configuration's."""
    if spec.shape[axis] > 0:
        return spec.shape[axis]
    for key in keys:
        value = integer(config, key, file)
        if value:
            return value
    hidden, heads = integer(config, "hidden_size", file), integer(config, "num_attention_heads", file)
    if axis == 3 and hidden and heads:
        return hidden // heads
    raise model_invalid(f"{file}: {keys[0]}: missing, and the graph leaves it open")


def _encoder(source: Source) -> str | None:
    """The encoder's graph beside the decoder's: of its kind (_quantized, _fp16), else plain; None: a decoder alone."""
    if not any(spec.name == "encoder_hidden_states" for spec in source.inputs):
        return None
    folder, slash, name = source.graph.rpartition("/")
    alike = name.replace("decoder_model_merged", "encoder_model").replace("decoder_model", "encoder_model")
    names = [f"{folder}{slash}{each}" for each in (alike, "encoder_model.onnx") if each != name]
    found = next((each for each in names if each in source.files), None)
    if found is None:
        raise model_invalid(
            f"{source.graph} reads encoder_hidden_states, but there is no {' or '.join(dict.fromkeys(names))};"
            " copy the whole export"
        )
    _check_external(source, found)
    return found


def _check_external(source: Source, graph: str) -> None:
    source.files.check_external(graph, read_onnx_header(source.files.path(graph)).external_files)


def _names(source: Source, past: list[TensorSpec], encoder: str | None) -> GraphNames:
    states = {spec.name: _present(spec.name) for spec in past}
    if encoder is None:
        return GraphNames(states=states)
    return GraphNames(
        states=states,
        memory={"encoder_hidden_states": "last_hidden_state"},
        fixed_after_first=frozenset(name for name in states if ".encoder." in name),
    )


def _start_id(settings: Mapping[str, Any], config: Mapping[str, Any], file: str) -> int | None:
    found = integer(settings, "decoder_start_token_id", "generation_config.json")
    return integer(config, "decoder_start_token_id", file) if found is None else found


def _named_by_manifest(source: Source, section: EncoderDecoderSection) -> GenerationSpec:
    logits = source.output(section.logits, "encoder_decoder.logits")
    if not logits.shape or logits.shape[-1] < 1:
        raise model_invalid(f"{MANIFEST_NAME}: encoder_decoder.logits: {logits}, its last size must be the vocabulary")
    _require_tokenizer(source)
    _check_external(source, section.encoder)
    spec = GenerationSpec(
        decoder=source.files.path(source.graph),
        encoder=source.files.path(section.encoder),
        cache=CacheKind.COPIED,
        names=GraphNames(
            tokens=section.tokens,
            logits=section.logits,
            states=section.states,
            first=section.first,
            memory=section.memory,
            source=section.source,
            source_mask=section.source_mask,
            mask_of_tokens=int(section.mask_marks == "tokens"),
        ),
        num_layers=0,
        num_kv_heads=0,
        head_dim=0,
        vocabulary_size=logits.shape[-1],
        context_length=section.max_length,
        end_ids=frozenset(section.end_ids),
        decoder_start_id=section.start_id,
        defaults=GenerationDefaults(num_beams=section.num_beams, length_penalty=section.length_penalty),
        policy=source.decoder,
    )
    _take_notes(source, spec)
    return spec


def _present(past: str) -> str:
    """past_key_values.0.key ─▶ present.0.key"""
    return past.replace("past_key_values", "present").replace("past", "present")


def _vocabulary_size(source: Source, config: Mapping[str, Any], file: str) -> int:
    logits = next((spec for spec in source.outputs if spec.name == "logits"), None)
    if logits is None:
        raise model_invalid(f"{source.graph}: a decoder without an output named logits")
    size = logits.shape[-1] if logits.shape and logits.shape[-1] > 0 else integer(config, "vocab_size", file)
    if not size:
        raise model_invalid(f"{file}: vocab_size: missing, and the graph leaves it open")
    return size


def _context_length(source: Source, config: Mapping[str, Any], file: str) -> int:
    """Positions the model has; of one with relative positions (T5) what its tokenizer or the manifest says."""
    for key in _CONTEXT_KEYS:
        value = integer(config, key, file)
        if value:
            return value
    if file == "config.json":
        said = source.files.read_optional_json("tokenizer_config.json").get("model_max_length")
        if isinstance(said, int) and not isinstance(said, bool) and 0 < said < _UNLIMITED:
            return said
        if source.decoder.max_length:
            return source.decoder.max_length
    raise model_invalid(
        f"{file}: max_position_embeddings: missing; it says how long a text may be (a model without a limit:"
        f" set decoder.max_length in {MANIFEST_NAME})"
    )


def _take_notes(source: Source, spec: GenerationSpec) -> None:
    if spec.encoder is not None:
        source.notes.append(
            f"an encoder–decoder: {spec.encoder.name} reads the text, {spec.decoder.name} writes the new one"
        )
    source.notes.append(
        "keys and values stay in one memory that attention writes in place"
        if spec.cache is CacheKind.SHARED_BUFFER
        else "the graph copies its past in every step, and sequences run one by one: slower than an export with"
        " GroupQueryAttention"
    )
    source.notes.append(
        f"up to {spec.max_length} tokens a sequence, of the {spec.context_length} the model was made for"
    )
    if not spec.end_ids:
        source.notes.append("no eos_token_id: texts end only at max_tokens or a stop text")
    source.notes.append("chats go through the model's own template" if spec.chat_template else "no chat template")
