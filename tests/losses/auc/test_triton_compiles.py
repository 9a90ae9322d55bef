"""The Triton kernels compile for GPUs that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

KERNELS = {
    "confusion_kernel", "count_kernel", "fold_kernel", "gradient_kernel", "histogram_kernel", "pair_sums_kernel",
    "risk_kernel", "sums_kernel",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("capability", [90])
def test_every_kernel_compiles(capability: int, tmp_path: Path) -> None:
    pytest.importorskip("triton")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-m", "tests.losses.auc.compile_kernels", str(capability)],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert set(result.stdout.split()) == KERNELS
