"""What each target runs in which mode, on what a result is checked, and why the rest is refused."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

from headrace_server.prepare.fault import PrepareError

__all__ = ["MODES", "TARGETS", "Combination", "Mode", "Target", "choose_combination"]

Mode = Literal["dynamic", "static", "fp16", "bf16", "fp8", "w8", "w4"]
Target = Literal["cpu", "openvino", "tensorrt"]
MODES: tuple[Mode, ...] = get_args(Mode)
TARGETS: tuple[Target, ...] = get_args(Target)

_TENSORRT_NOTE = "checked on the CPU: what TensorRT itself answers has to be measured on the machine that will run it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """A target and a mode that fit each other.

    device      where quality, invariance and latency are measured
    calibrates  ranges of activations are measured on the user's inputs
    symmetric   integers around 0 at inputs alone, as TensorRT wants them
    emulated    nothing here computes it: the check rounds as the target would, and latency is not measured
    """

    target: Target
    mode: Mode
    device: str = "cpu"
    calibrates: bool = False
    symmetric: bool = False
    emulated: bool = False
    notes: tuple[str, ...] = ()


_FITTING = MappingProxyType(
    {
        (each.target, each.mode): each
        for each in (
            Combination(target="cpu", mode="dynamic"),
            Combination(target="cpu", mode="static", calibrates=True),
            Combination(
                target="cpu", mode="fp16", notes=("the CPU computes fp16 weights in fp32: smaller, and no faster",)
            ),
            Combination(target="cpu", mode="w8"),
            Combination(target="cpu", mode="w4"),
            Combination(target="openvino", mode="static", device="openvino", calibrates=True),
            Combination(target="openvino", mode="fp16", device="openvino"),
            Combination(target="tensorrt", mode="static", calibrates=True, symmetric=True, notes=(_TENSORRT_NOTE,)),
            Combination(target="tensorrt", mode="fp16", notes=(_TENSORRT_NOTE,)),
            Combination(target="tensorrt", mode="bf16", emulated=True, notes=(_TENSORRT_NOTE,)),
            Combination(
                target="tensorrt", mode="fp8", calibrates=True, symmetric=True, emulated=True, notes=(_TENSORRT_NOTE,)
            ),
        )
    }
)
_WHY_NOT = MappingProxyType(
    {
        ("cpu", "bf16"): (
            "ONNX Runtime's CPU provider has no bf16 kernels",
            'serve the fp32 graph with device = "openvino" and precision = "bf16" under [engine]',
        ),
        ("cpu", "fp8"): ("no CPU computes in fp8", "take static or dynamic"),
        ("openvino", "dynamic"): (
            "activation scales of each row are written with an operator of ONNX Runtime's own",
            "take static, or the target cpu",
        ),
        ("openvino", "bf16"): (
            "OpenVINO computes an fp32 graph in bf16 by itself",
            'serve the fp32 graph with device = "openvino" and precision = "bf16" under [engine]',
        ),
        ("openvino", "fp8"): ("no CPU computes in fp8", "take static"),
        ("tensorrt", "dynamic"): ("TensorRT has no operator that scales activations by rows", "take static or fp8"),
    }
)
_BLOCKS = ("its weights are written with an operator of ONNX Runtime's own (MatMulNBits)", "take the target cpu")


def choose_combination(target: str, mode: str) -> Combination:
    """The combination, or PrepareError: which names there are, or why these two do not fit and what does."""
    if target not in TARGETS:
        raise PrepareError(f"--target {target}: unknown", cure=f"one of {', '.join(TARGETS)}")
    if mode not in MODES:
        raise PrepareError(f"--mode {mode}: unknown", cure=f"one of {', '.join(MODES)}")
    found = _FITTING.get((target, mode))
    if found is None:
        reason, cure = _WHY_NOT.get((target, mode), _BLOCKS)
        raise PrepareError(f"--mode {mode} does not fit --target {target}: {reason}", cure=cure)
    return found
