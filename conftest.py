"""What holds for all tests: Triton interprets kernels where there is no GPU; modules that need more wait for it."""

import os
from importlib.util import find_spec

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when it is imported

_NEEDS = {
    "mmseg": ["src/aucseg/integrations/mmseg/*.py", "tests/integrations/mmseg/*.py"],  # ``make test-mmseg``
    "triton": [
        "src/aucseg/losses/auc/triton_features.py",
        "src/aucseg/losses/auc/triton_kernels.py",
        "src/aucseg/losses/auc/triton_launches.py",
        "src/aucseg/losses/auc/triton_limits.py",
        "src/aucseg/losses/auc/triton_risk.py",
        "src/aucseg/metrics/triton_counts.py",
        "src/aucseg/tensors/triton_pixels.py",
    ],
}
collect_ignore_glob = [path for package, paths in _NEEDS.items() if not find_spec(package) for path in paths]
