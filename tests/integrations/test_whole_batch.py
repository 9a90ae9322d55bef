"""Parts of a batch, in one process or two, train as the whole batch does, in every framework of the documentation."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integrations.whole_batch import (
    FRAMEWORKS,
    PARTS,
    Network,
    batch,
    differences,
    expected_update,
    make_loss,
    results_in_two_processes,
    update_by,
)

# Losses and weights are float64; Lightning and the Trainer keep what they log in float32 or five digits.
TOLERANCE = 1e-9
LOGGED = {"Lightning": 1e-6, "Hugging Face": 1e-4}


def check(name: str, found: Any) -> None:
    value, weights = expected_update()
    assert found[0] == pytest.approx(value, abs=LOGGED.get(name, TOLERANCE)), name
    assert differences((value, found[1]), (value, weights)) < TOLERANCE, name


@pytest.mark.parametrize("parts", [2, 4])
def test_the_mean_over_parts_is_not_the_whole(parts: int) -> None:
    """Or else the tests below could not fail."""
    network, (images, target) = Network(), batch()
    losses = [make_loss()(network(i), t) for i, t in zip(images.chunk(parts), target.chunk(parts), strict=True)]
    torch.stack(losses).mean().backward()
    torch.optim.SGD(network.parameters(), 1.0).step()
    found = torch.stack(losses).mean().item(), network.state_dict()
    assert differences(found, expected_update()) > 0.01


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("parts", [1, 4])
def test_parts_in_one_process(name: str, parts: int, tmp_path: Path) -> None:
    check(name, update_by(FRAMEWORKS[name], parts, tmp_path))


@pytest.mark.slow
def test_parts_in_two_processes(tmp_path: Path) -> None:
    for results in results_in_two_processes("tests.integrations.whole_batch", tmp_path):
        assert set(results) == {(name, parts) for name in FRAMEWORKS for parts in PARTS}
        for (name, _), found in results.items():
            check(name, found)
