"""Compiles every Triton kernel for a kind of GPU that need not be there: `python -m ... CAPABILITY`; runs nothing.

The interpreter, in which the other tests run the kernels, takes more than the compiler does.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from aucseg.losses.auc import triton_launches, triton_passes
from aucseg.losses.auc.options import LossFormula, PassOptions
from aucseg.metrics import triton_counts

NUM_CLASSES = 19
# Form, scores, margin.
OPTIONS = [
    ("square", "sigmoid", 1.0),
    ("square", "softmax", 1.0),
    ("square", "identity", 1.0),
    ("exponential", "identity", 1.5),
    ("chebyshev", "softmax", 1.0),
]


class NoDevice:
    """In the place of Triton's driver."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


def main() -> None:
    driver.set_active(NoDevice(int(sys.argv[1])))
    launch, compiled = JITFunction.run, set()

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = launch(self, *args, grid=grid, warmup=True, **options)
        assert kernel.asm["cubin"]
        compiled.add(self.__name__)
        return kernel

    JITFunction.run = compile_only
    torch._assert_async = lambda *_: None  # what was counted is not there
    every = torch.ones(NUM_CLASSES, dtype=torch.bool)
    weight = torch.zeros(NUM_CLASSES + 1, dtype=torch.float64)
    for dtype, height in ((torch.float32, 8), (torch.bfloat16, 16)):
        logits, target = torch.zeros(2, NUM_CLASSES, 8, 8, dtype=dtype), torch.zeros(2, height, 8, dtype=torch.int64)
        for form, scores, margin in OPTIONS:
            options = PassOptions(form, margin, 7 if form == "chebyshev" else 0, scores, 255, True, 0.1)
            for pixel_weight in (weight, None):
                if triton_passes.offered(logits, target, options, by_pair=pixel_weight is None):
                    sums = triton_passes.sums(logits, target, every, pixel_weight, None, options)
                    triton_passes.gradient(*sums, logits, target, every, pixel_weight, None, options)
            coefficients = tuple((0.0,) * (options.degree + 1) for _ in range(options.degree + 1))
            for few in (1 << 14, 0):
                triton_launches.FEW_SUMS = few
                formula = LossFormula(coefficients, one_vs_all=form == "exponential")
                triton_passes.fused_loss(logits, target, None, options, formula)
        state, num_invalid = torch.zeros(NUM_CLASSES, NUM_CLASSES, 64, dtype=torch.int64), torch.tensor(0)
        for scores, by_label in (("softmax", True), ("sigmoid", False), ("identity", False)):
            triton_counts.count_scores(
                logits, target, state, num_invalid, 255, scores, by_label, center=0.0, bin_scale=0.125, max_logit=26.0
            )
        triton_counts.count_confusion(
            logits, target, torch.zeros(NUM_CLASSES, NUM_CLASSES, dtype=torch.int64), num_invalid, 255
        )
    print(*sorted(compiled))


if __name__ == "__main__":
    main()
