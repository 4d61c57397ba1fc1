"""Exports small decoders with random weights as users' tools export them, and records what PyTorch makes of them.

It runs apart from everything else, in two environments of its own, because the two exporters ask for different
versions of transformers (build/venvs/reference is that of make_reference.py and lends both its PyTorch):

    python3 -m venv build/venvs/exporters
    build/venvs/exporters/bin/pip install torch optimum-onnx==0.1.0 'transformers==4.57.*' onnxruntime
    build/venvs/exporters/bin/python tests/data/generation/make_exports.py optimum

    python3 -m venv build/venvs/exporters-genai
    build/venvs/exporters-genai/bin/pip install torch 'transformers>=5' onnxruntime-genai==0.18.0 onnx-ir onnxruntime
    build/venvs/exporters-genai/bin/python tests/data/generation/make_exports.py genai

Written are one exports/NAME.tar.xz a folder, as the exporter left it but for the tokenizer (tests add their own), and
exports/NAME.json, what transformers makes of the same weights: greedy continuations, logits, beams. The weights are
random numbers of a fixed seed, of eight bits of mantissa so that they take little room.

    gpt2             optimum, one graph: past, attention_mask, position_ids; multi-head, learned positions
    gpt2-merged      optimum, decoder_model_merged.onnx with use_cache_branch, beside the pair that it was merged from
    llama            optimum, grouped-query and rotary; onnx/ with the variants of transformers.js beside it
    t5, marian       optimum, encoder and merged decoder; t5 with the variants of transformers.js
    genai, genai-int4    onnxruntime-genai's model builder, for the CPU, from the weights of llama
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

OUT = Path(__file__).resolve().parent / "exports"
VOCABULARY, END = 272, 1  # some more than tests/byte_tokenizer.py has
NEW = 24
SHOWN = slice(None, None, 8)  # of all logits, those that are kept
_VARIANTS = {"": ".onnx", "-int8": "_quantized.onnx", "-fp16": "_fp16.onnx", "-q4": "_q4.onnx"}
PROMPTS = tuple(
    np.random.default_rng(size).integers(3, 267, size).tolist() for size in (1, 2, 3, 5, 8, 13, 17, 21, 30, 34, 39, 40)
)


def main() -> None:
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        {"optimum": _optimum, "genai": _genai}[sys.argv[1]](Path(scratch))


def _optimum(scratch: Path) -> None:
    gpt2 = _saved(scratch / "gpt2", _gpt2())
    out = scratch / "out" / "gpt2"
    _export(gpt2, out, "text-generation-with-past")
    _pack("gpt2", out)
    _record("gpt2", gpt2, _decoder_answers)
    _export_merged(gpt2, scratch / "out" / "gpt2-merged", scratch)
    _pack("gpt2-merged", scratch / "out" / "gpt2-merged")

    llama = _saved(scratch / "llama", _llama())
    out = scratch / "out" / "llama"
    _export(llama, out, "text-generation-with-past")
    _into_variants(out, ["model"])
    for variant, ending in _VARIANTS.items():
        _pack(f"llama{variant}", out, ["onnx/model" + ending])
    _record("llama", llama, _decoder_answers)

    for name, model in (("t5", _t5()), ("marian", _marian())):
        saved, out = _saved(scratch / name, model), scratch / "out" / name
        _export(saved, out, "text2text-generation-with-past")
        if name == "t5":
            _into_variants(out, ["encoder_model", "decoder_model_merged"])
            for variant in ("", "-int8", "-fp16"):
                ending = _VARIANTS[variant]
                _pack(name + variant, out, ["onnx/encoder_model" + ending, "onnx/decoder_model_merged" + ending])
        else:
            _pack(name, out, ["encoder_model.onnx", "decoder_model_merged.onnx"])
        _record(name, saved, _encoder_decoder_answers)


def _genai(scratch: Path) -> None:
    from onnxruntime_genai.models.builder import create_model, parse_extra_options

    sys.path.insert(0, str(OUT.parents[2]))
    from byte_tokenizer import definition

    llama = _saved(scratch / "llama", _llama())
    (llama / "tokenizer.json").write_text(definition())
    (llama / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    for name, precision in (("genai", "fp32"), ("genai-int4", "int4")):
        where = (None, str(llama), str(scratch / "out" / name), precision, "cpu", str(scratch / "cache"))
        wanted = ["int4_accuracy_level=4", "int4_block_size=32"] if precision == "int4" else []
        create_model(*where, **parse_extra_options(*where, wanted))
        _pack(name, scratch / "out" / name)


def _gpt2() -> Any:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=96, n_embd=32, n_layer=2, n_head=4, n_inner=64,
            bos_token_id=0, eos_token_id=END, initializer_range=0.3, attn_implementation="eager",
        )
    )  # fmt: skip


def _llama() -> Any:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, head_dim=16, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96, bos_token_id=0, eos_token_id=END,
            initializer_range=0.3, tie_word_embeddings=False, attn_implementation="eager",
        )
    )  # fmt: skip


def _t5() -> Any:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_decoder_layers=2, num_heads=4,
            n_positions=48, pad_token_id=2, eos_token_id=END, decoder_start_token_id=2, initializer_factor=2.0,
            tie_word_embeddings=False, feed_forward_proj="gated-gelu",
        )
    )  # fmt: skip


def _marian() -> Any:
    return MarianMTModel(
        MarianConfig(
            vocab_size=VOCABULARY, d_model=32, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=64,
            decoder_ffn_dim=64, encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=48,
            pad_token_id=2, eos_token_id=END, decoder_start_token_id=2, forced_eos_token_id=None, init_std=0.4,
            scale_embedding=True,
        )
    )  # fmt: skip


def _saved(folder: Path, model: Any) -> Path:
    """The model with weights of a fixed seed; the same whatever version of transformers made it."""
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            random = np.random.default_rng(list(name.encode()))
            drawn = torch.tensor(random.standard_normal(tuple(weight.shape)), dtype=torch.float32)
            if weight.dim() == 1:
                drawn = (
                    (1.0 if "norm" in name or "ln_" in name else 0.0) + 0.1 * drawn
                    if "bias" not in name
                    else 0.1 * drawn
                )
            elif "embed_positions" in name:
                continue
            else:
                drawn *= 0.8 if _is_embedding(name) else 1.6 / np.sqrt(min(weight.shape))
            weight.copy_(drawn.bfloat16().float())
    model.eval()
    model.generation_config = GenerationConfig.from_model_config(model.config)
    model.save_pretrained(folder)
    return folder


def _is_embedding(name: str) -> bool:
    return any(part in name for part in ("wte", "wpe", "embed", "shared", "relative_attention_bias"))


def _export(model: Path, out: Path, task: str, *, merge: bool = True) -> None:
    from optimum.exporters.onnx import main_export

    main_export(str(model), out, task=task, do_validation=False, no_post_process=not merge)


def _export_merged(model: Path, out: Path, scratch: Path) -> None:
    """As optimum did for all decoders before it made one graph of them: without and with a past, merged into one."""
    from optimum.exporters.onnx.convert import export
    from optimum.exporters.onnx.model_configs import GPT2OnnxConfig
    from optimum.onnx import merge_decoders

    out.mkdir(parents=True)
    graphs = []
    for has_past in (False, True):
        loaded = GPT2LMHeadModel.from_pretrained(model, attn_implementation="eager").eval()
        config = GPT2OnnxConfig(loaded.config, task="text-generation", use_past=True, use_past_in_inputs=has_past)
        graphs.append(scratch / f"{has_past}.onnx")
        export(loaded, config, graphs[-1])
    merge_decoders(*graphs, save_path=out / "decoder_model_merged.onnx")
    for name in ("config.json", "generation_config.json"):
        (out / name).write_bytes((model / name).read_bytes())


def _into_variants(out: Path, graphs: list[str]) -> None:
    """Graphs into onnx/, with int8, fp16 and 4-bit variants, made as scripts/quantize.py of transformers.js does."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.transformers.float16 import convert_float_to_float16

    inner = out / "onnx"
    inner.mkdir()
    for name in graphs:
        whole = inner / f"{name}.onnx"
        (out / f"{name}.onnx").rename(whole)
        options = {"EnableSubgraph": True, "MatMulConstBOnly": True}
        quantize_dynamic(whole, inner / f"{name}_quantized.onnx", weight_type=QuantType.QInt8, extra_options=options)
        half = convert_float_to_float16(onnx.load(whole), keep_io_types=False, disable_shape_infer=True)
        onnx.save(half, inner / f"{name}_fp16.onnx")
        four = MatMulNBitsQuantizer(onnx.load(whole), block_size=32, is_symmetric=True, accuracy_level=None)
        four.process()
        four.model.save_model_to_file(str(inner / f"{name}_q4.onnx"))


def _pack(name: str, folder: Path, graphs: list[str] | None = None) -> None:
    """exports/NAME.tar.xz with the folder's settings and these graphs; None: all it has."""
    with tarfile.open(OUT / f"{name}.tar.xz", "w:xz", preset=9) as packed:
        for file in sorted(folder.rglob("*")):
            relative = file.relative_to(folder).as_posix()
            ours = relative.startswith(("tokenizer", "special_tokens", "chat_template"))
            unwanted = graphs is not None and file.suffix == ".onnx" and relative not in graphs
            if file.is_file() and not ours and not unwanted:
                entry = tarfile.TarInfo(relative)
                entry.size = file.stat().st_size
                packed.addfile(entry, io.BytesIO(file.read_bytes()))
                print(f"{name}/{relative}: {entry.size:,}")
    print(f"{name}.tar.xz: {(OUT / f'{name}.tar.xz').stat().st_size:,}")


def _record(name: str, folder: Path, answers: Callable[[Path], Any]) -> None:
    text = json.dumps(answers(folder), separators=(",", ":"))
    (OUT / f"{name}.json").write_text(text.replace('{"prompt"', '\n{"prompt"') + "\n")


def _decoder_answers(folder: Path) -> list[dict[str, Any]]:
    """Of each prompt the likeliest continuation, an end as likely as any other, and logits of its first and last."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    return [_greedy(model, prompt, lambda ids: model(input_ids=ids).logits, []) for prompt in PROMPTS]


def _encoder_decoder_answers(folder: Path) -> list[dict[str, Any]]:
    """As of decoders; "beams" is what generate(num_beams=4) says, which minds the end."""
    from transformers import AutoModelForSeq2SeqLM

    model = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    start = model.config.decoder_start_token_id
    found = []
    for prompt in PROMPTS:
        source = torch.tensor([prompt])
        answer = _greedy(
            model, prompt, lambda ids, source=source: model(input_ids=source, decoder_input_ids=ids).logits, [start]
        )
        answer["beams"] = {}
        for penalty in (1.0, 0.0, 2.0):
            beams = model.generate(
                source, num_beams=4, do_sample=False, max_new_tokens=NEW, length_penalty=penalty, early_stopping=False,
                bad_words_ids=None, forced_eos_token_id=None, return_dict_in_generate=True, output_scores=True,
            )  # fmt: skip
            answer["beams"][f"{penalty:g}"] = {
                "tokens": beams.sequences[0, 1:].tolist(), "score": round(float(beams.sequences_scores[0]), 6)
            }  # fmt: skip
        found.append(answer)
    return found


def _greedy(model: Any, prompt: list[int], logits_of: Callable[[Any], Any], start: list[int]) -> dict[str, Any]:
    given = start or prompt
    ids, rows = list(given), []
    with torch.no_grad():
        for _ in range(NEW):
            rows.append(logits_of(torch.tensor([ids]))[0, -1])
            ids.append(int(rows[-1].argmax()))
    margins = [float(top.values[0] - top.values[1]) for top in (row.topk(2) for row in rows)]
    return {
        "prompt": prompt,
        "tokens": ids[len(given) :],
        "margin": round(min(margins), 5),
        "first": [round(float(value), 5) for value in rows[0][SHOWN]],
        "last": [round(float(value), 5) for value in rows[-1][SHOWN]],
    }


if __name__ == "__main__":
    main()
