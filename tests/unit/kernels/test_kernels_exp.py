"""The exponential under softmax and sigmoid: its stated bound, on every variant."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import headrace_kernels

SIMD = Path(headrace_kernels.__file__).parent / "_native" / "simd"
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
# Variants without vectors of their own run another variant's exponential.
VARIANTS = [isa for isa in headrace_kernels.variants() if (SIMD / f"vector_{isa}.h").exists()]
WORST_ULP = 1.01
"""docs/kernels.md states it."""


def sweep(isa: str, step: int, folder: Path) -> tuple[int, float, float, int]:
    """inputs, worst error in ulp of normal and of denormal answers, neighbours out of order."""
    assert COMPILER is not None
    program = folder / "exp_sweep"
    source = Path(__file__).with_name("exp_sweep.c")
    options = ["-O2", "-ffp-contract=off", f"-I{SIMD}", f'-DVECTOR="vector_{isa}.h"']
    if isa == "portable":
        options.append("-DPORTABLE")
    subprocess.run([COMPILER, *options, str(source), "-o", str(program), "-lm"], check=True, timeout=60)
    ran = subprocess.run([str(program), str(step)], check=True, capture_output=True, text=True, timeout=900)
    inputs, normal, denormal, inversions = ran.stdout.split()
    return int(inputs), float(normal), float(denormal), int(inversions)


@pytest.mark.skipif(COMPILER is None, reason="no C compiler")
@pytest.mark.parametrize("isa", VARIANTS)
@pytest.mark.parametrize("step", [997, pytest.param(1, marks=pytest.mark.full)])
def test_exponential_stays_within_its_bound_and_in_order(isa: str, step: int, tmp_path: Path) -> None:
    inputs, normal, denormal, inversions = sweep(isa, step, tmp_path)
    assert inputs >= 1_121_000_000 // step
    assert normal <= WORST_ULP
    assert denormal <= WORST_ULP
    assert inversions == 0
