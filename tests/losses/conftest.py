"""Both ways through the pixels: operations of torch, and the Triton kernels in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def kernels_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss takes the kernels on the CPU."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("the kernels are built for the GPU here, see tests/test_gpu.py")
    from aucseg.losses.auc import triton_passes

    monkeypatch.setattr("aucseg.losses.auc.operators.triton_passes_on", lambda device: triton_passes)


@pytest.fixture(params=["torch", "kernels"])
def either_path(request: pytest.FixtureRequest) -> None:
    """The loss takes the operations of torch in one run of the test and the kernels in the other."""
    if request.param == "kernels":
        request.getfixturevalue("kernels_in_place")
