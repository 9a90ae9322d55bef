import math
from typing import Any

import pytest

from aucseg.models.recipes import recipe_of

LITE = {"encoder": "tu-tf_efficientnet_lite0"}


@pytest.mark.parametrize(
    ("model", "options", "rate", "factor"),
    [
        ("smp/fpn", LITE, 4e-3, 3.0),
        ("smp/segformer", {"encoder": "tf_efficientnet_lite0"}, 4e-3, 3.0),
        ("smp/unet", LITE, 1e-3, 3.0),
        ("torchvision/deeplabv3_resnet50", None, 1e-3, 3.0),
        ("smp/unet", {"encoder": "mit_b0"}, 1e-4, 10.0),
        ("smp/fpn", {"encoder": "tu-convnext_tiny"}, 1e-4, 10.0),
        ("hf/nvidia/mit-b0", {}, 1e-4, 10.0),
        ("segnext/tiny", {}, 1e-4, 10.0),
        # What nobody knows gets what does no harm.
        ("mine:resnet", {}, 1e-4, 10.0),
        (None, None, 1e-4, 10.0),
    ],
)
def test_a_family_has_its_rate(model: str | None, options: dict[str, Any] | None, rate: float, factor: float) -> None:
    recipe = recipe_of(model, options)
    assert (recipe.learning_rate, recipe.head_rate_factor) == (rate, factor)
    assert recipe_of(model, options, batch_size=64).learning_rate == rate
    assert recipe_of(model, options, batch_size=2).learning_rate == pytest.approx(rate / 2)


def test_the_warm_up_is_a_tenth_and_bounded() -> None:
    recipe = recipe_of("smp/fpn", LITE)
    assert [recipe.warmup_steps(steps) for steps in (3, 100, 1500, 160_000, math.inf)] == [1, 10, 150, 200, 200]
