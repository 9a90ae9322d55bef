import dataclasses
from typing import Any

import pytest
import yaml

from aucseg.planning.given import check_given
from aucseg.planning.machine import Machine
from aucseg.planning.rules import make_plan
from aucseg.statistics.advice import USE, advise_bank
from tests.planning.data_sets import (
    BARE_CPU,
    CITYSCAPES,
    CPU,
    DATA_SETS,
    FAST,
    LARGE_GPU,
    LESIONS,
    MACHINES,
    MANY,
    PHOTOGRAPHS,
    SLICES,
    SMALL_GPU,
    TWELVE,
    UNSPLIT,
    data_set,
)

# Of these no rule decides: a seed, and what the screen shows.
PLAIN = {"seed_everything", "trainer.enable_model_summary"}


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
@pytest.mark.parametrize("name", DATA_SETS)
def test_a_plan_for_any_data_and_machine_keeps_its_bounds(name: str, machine: Machine) -> None:
    data = DATA_SETS[name]
    plan = make_plan(data, machine, speed=FAST)
    settings = plan.settings
    decided = {setting for choice in plan.choices for setting in choice.settings}
    assert settings.keys() - PLAIN <= decided
    assert all(choice.reason for choice in plan.choices)
    height, width = settings["data.crop_size"]
    assert height % 32 == width % 32 == 0
    assert 32 <= min(height, width) <= max(height, width) <= (128 if machine.device == "cpu" else 512)
    scaled = settings["data.base_size"] or sorted(data.size, reverse=True)
    factor = min(1.0, max(scaled) / max(data.size))
    assert height < factor * data.size[0] + 32
    assert width < factor * data.size[1] + 32
    low, high = (600, 4000) if machine.device == "cpu" else (2000, 20000)
    assert low - 5 <= settings["trainer.max_steps"] <= high + 5
    assert settings["trainer.max_steps"] % settings["trainer.val_check_interval"] == 0
    assert 1 <= settings["model.warmup_steps"] <= settings["trainer.max_steps"] / 10
    assert 0 < settings["model.learning_rate"] <= 4e-3
    assert settings["model.learning_rate"] != 6e-5  # the paper's
    assert settings["model.model_options"]["encoder_weights"] in ("package:efficientnet_lite0", "imagenet")
    assert 0 <= settings["data.num_workers"] < machine.num_cores
    number = settings["trainer.max_steps"] // settings["trainer.val_check_interval"]
    assert 1 <= number <= 10
    cost = data.num_validation * FAST.image
    if number > 1:  # the one at the end is made in any case
        assert number * cost <= 0.101 * (settings["trainer.max_steps"] * FAST.step + number * cost)
    assert plan.seconds == pytest.approx(5.0 + 0.25 * settings["trainer.max_steps"] + number * cost)
    lines = plan.describe().splitlines()
    assert 10 <= len(lines) <= 26
    assert max(map(len, lines)) <= 120
    assert yaml.safe_load(plan.to_yaml()) == plan.configuration


def test_the_images_of_a_small_object_are_not_scaled_until_it_is_gone() -> None:
    plan = make_plan(PHOTOGRAPHS, CPU)
    base = plan.settings["data.base_size"]
    factor = base[0] / 4000
    assert 100 * factor**2 == pytest.approx(32, rel=0.01)  # of 100 pixels 32 are left
    assert base[1] / 3000 == pytest.approx(factor, rel=0.01)
    assert "a tenth of the tail's objects has 100 pixels or fewer, of which 32 must be left" in " ".join(
        plan.describe().split()
    )
    assert plan.settings["data.scale"] == [0.75, 1.5]  # nor halved by the augmentation
    large = make_plan(dataclasses.replace(PHOTOGRAPHS, tail_share=0.01), CPU).settings
    assert large["data.base_size"] == [256, 192]
    assert large["data.scale"] == [0.5, 2.0]
    assert make_plan(dataclasses.replace(PHOTOGRAPHS, tail_share=None), LARGE_GPU).settings["data.base_size"] == [
        683,
        512,
    ]
    assert make_plan(dataclasses.replace(PHOTOGRAPHS, tail_share=0.0), CPU).settings["data.base_size"] is None


def test_large_images_at_their_own_size_are_validated_in_windows() -> None:
    own_size = make_plan(PHOTOGRAPHS, CPU, {"data.base_size": None, "data.eval_base_size": None}).settings
    assert own_size["model.evaluation"] == {"window": [1024, 1024], "stride": [768, 768]}
    assert own_size["data.cache"] is None  # 19 GB
    assert "model.evaluation" not in make_plan(CITYSCAPES, LARGE_GPU).settings


def test_few_images() -> None:
    plan = make_plan(TWELVE, CPU, speed=FAST)
    assert plan.settings["trainer.max_steps"] == 600
    assert plan.settings["data.held_out_share"] == 0.2
    assert plan.settings["data.cache"] == "memory"
    assert plan.settings["model.bank"] is None
    text = plan.describe()
    assert "600: the least, however few the images" in text
    assert "on the 20 % of the training images that are held out: there is no validation split" in text


@pytest.mark.parametrize(("share", "cache"), [(0.24, "memory"), (0.26, None)])
def test_images_stay_in_memory_if_they_take_less_than_a_quarter_of_it(share: float, cache: str | None) -> None:
    needed = TWELVE.num_training * TWELVE.mean_pixels * 4  # three channels and a mask
    machine = dataclasses.replace(CPU, free_memory=round(needed / share))
    assert make_plan(TWELVE, machine).settings["data.cache"] == cache


def test_without_a_measured_speed_a_validated_pixel_counts_as_half_a_trained_one() -> None:
    plan = make_plan(MANY, CPU)
    steps, every = (plan.settings[f"trainer.{name}"] for name in ("max_steps", "val_check_interval"))
    (height, width), crop = plan.settings["data.eval_base_size"], plan.settings["data.crop_size"]
    batch = plan.settings["data.batch_size"]
    pixels = steps // every * 9000 * height * width * 0.5 / (batch * crop[0] * crop[1])
    share = pixels / (steps + pixels)
    assert f"{100 * share:.2g} % of the time" in " ".join(plan.describe().split())


def test_no_validation_split_and_a_costly_one() -> None:
    assert make_plan(UNSPLIT, CPU).settings["data.held_out_share"] == 0.2
    costly = make_plan(MANY, CPU, speed=FAST)
    assert costly.settings["trainer.val_check_interval"] == costly.settings["trainer.max_steps"] == 4000
    text = " ".join(costly.describe().split())
    # 9,000 images of 0.05 s beside 4,000 steps of 0.25 s.
    assert "once, at the end, on all 9,000 images of 'val': 31 % of the time (10 % is the aim" in text
    assert "--trainer.limit_val_batches 0.2 takes the first fifth" in text


@pytest.mark.parametrize(("limit", "images"), [(0.1, 896), (5, 40), (2000, 9000), (1.0, 9000)])
def test_a_part_of_the_validation_costs_less(limit: float, images: int) -> None:
    # Eight images of 192 x 192 after scaling make a batch.
    plan = make_plan(MANY, CPU, {"trainer.limit_val_batches": limit}, speed=FAST)
    assert plan.settings["data.eval_batch_size"] == 8
    steps, every = (plan.settings[f"trainer.{name}"] for name in ("max_steps", "val_check_interval"))
    assert plan.seconds == pytest.approx(FAST.start + steps * FAST.step + steps // every * images * FAST.image)
    part = "all" if images == 9000 else f"{images:,} of the"
    assert f"on {part} 9,000 images of 'val'" in " ".join(plan.describe().split())
    assert "is the aim" not in plan.describe()
    # With a time the rest is for training.
    timed = make_plan(MANY, CPU, {"trainer.limit_val_batches": limit}, speed=FAST, seconds=1800)
    assert timed.seconds == pytest.approx(1800, rel=0.03)


def test_the_loss_weights_classes_mildly_unless_it_is_set() -> None:
    settings = make_plan(CITYSCAPES, CPU).settings
    assert settings["model.loss_options"] == {"auc_weight": 1.0, "class_weight": {"rule": "inverse", "power": 0.25}}
    set_by_user = make_plan(CITYSCAPES, CPU, {"model.loss_options": {"auc_weight": 2.0}})
    assert set_by_user.settings["model.loss_options"] == {"auc_weight": 2.0}
    assert "cross-entropy + 2 x AUC" in set_by_user.describe()
    assert "mildly" not in set_by_user.describe()


def test_images_of_rare_classes_come_more_often_where_there_are_any() -> None:
    plan = make_plan(CITYSCAPES, CPU)
    assert plan.settings["data.sampler"] == "repeat_factor"
    assert plan.settings["data.sampler_options"] == {"threshold": 0.3, "max_factor": 5.0}
    assert "a class that is in less than 30 % of them more often" in " ".join(plan.describe().split())
    for data, given in (
        (LESIONS, {}),
        (CITYSCAPES, {"data.sampler": "random"}),
        (CITYSCAPES, {"data.shards": "x"}),
        (CITYSCAPES, {"data.on_error": "skip"}),
    ):
        plan = make_plan(data, CPU, given)
        assert plan.settings["data.sampler"] == "random"
        assert "data.sampler_options" not in plan.settings
        assert "every image once a pass" in " ".join(plan.describe().split())
    milder = make_plan(CITYSCAPES, CPU, {"data.sampler_options.threshold": 0.1})
    assert milder.settings["data.sampler_options"] == {"threshold": 0.1, "max_factor": 5.0}
    assert "less than 10 %" in " ".join(milder.describe().split())
    other = make_plan(CITYSCAPES, CPU, {"data.sampler": "rare_class"})
    assert "data.sampler_options" not in other.settings


@pytest.mark.parametrize(
    ("bank", "text"),
    [
        ({}, "the tail class into 10 % of the images, at most 5 times as often as now"),
        ({"max_factor": 3.0}, "the tail class into 10 % of the images, at most 3 times as often as now"),
        ({"presence_target": 0.2}, "the tail class into 20 % of the images"),
        ({"as_in_paper": "ade20k"}, "yes"),
    ],
)
def test_what_a_bank_of_the_users_does_is_told(bank: dict[str, Any], text: str) -> None:
    plan = make_plan(TWELVE, CPU, {"model.bank": bank})
    assert next(choice.text for choice in plan.choices if choice.topic == "bank") == text


def test_one_tail_class_in_all_images_asks_for_no_bank() -> None:
    plan = make_plan(LESIONS, CPU)
    assert plan.settings["model.bank"] is None
    assert "mostly about 800 x 600" in plan.title


@pytest.mark.parametrize("presence", [0.01, 0.04, 0.07, 0.095, 0.2, 0.6])
def test_a_bank_is_planned_only_where_the_counts_ask_for_one(presence: float) -> None:
    data = data_set(400, (240, 320), (1.0, 0.6, presence), num_validation=40)
    plan = make_plan(data, CPU)
    advice = advise_bank(data.statistics, [2], [1], batch_size=8)
    bank = plan.settings["model.bank"]
    assert (bank is not None) == (advice.answer == USE)
    if bank is not None:
        assert bank["presence_target"] <= 5 * data.statistics.presence[2]
        assert bank["protect_classes"] == "middle"
    if plan.bank_to_try:  # for a comparison, whatever the answer
        assert plan.with_bank_to_try().settings["model.bank"]["presence_target"] <= 5 * data.statistics.presence[2]
    assert make_plan(data, CPU, {"model.bank": None}).settings["model.bank"] is None


def test_grey_slices_of_16_bits() -> None:
    settings = make_plan(SLICES, CPU).settings
    assert (settings["model.mean"], settings["model.std"], settings["data.fill"]) == ([21.3], [30.5], [21.3])
    assert settings["data.base_size"] == [192, 192]
    assert make_plan(SLICES, CPU).settings["data.crop_size"] == [128, 128]
    scaled = dataclasses.replace(SLICES, value_range=((0, 23100.0),))
    text = " ".join(make_plan(scaled, CPU).describe().split())
    assert "bands 1 band, 0 to 23,100 scaled to 0 to 255 (value_range in the card): normalized by" in text
    proposed = make_plan(dataclasses.replace(scaled, proposes_range=True), CPU)
    assert "it holds 99 % of the pixels of each class, and what is beyond is cut off" in " ".join(
        proposed.describe().split()
    )


def test_the_model_goes_by_the_machine() -> None:
    def model(machine: Machine, **options: Any) -> dict[str, Any]:
        found: dict[str, Any] = make_plan(CITYSCAPES, machine, **options).settings["model.model_options"]
        return found

    assert model(CPU)["encoder_weights"] == "package:efficientnet_lite0"
    assert model(BARE_CPU) == {**model(CPU), "encoder_weights": "imagenet"}
    assert model(SMALL_GPU) == model(CPU)
    assert model(LARGE_GPU) == {"encoder": "tu-convnext_tiny", "encoder_weights": "imagenet"}
    assert model(dataclasses.replace(LARGE_GPU, can_download=False)) == model(CPU)
    for gigabytes, expected in ((11.9, CPU), (12.1, LARGE_GPU)):  # as docs/plan.md says
        free = round(gigabytes * 1e9)
        assert model(dataclasses.replace(LARGE_GPU, free_device_memory=free)) == model(expected)
    assert model(LARGE_GPU, random_weights=True)["encoder_weights"] is None
    assert make_plan(CITYSCAPES, LARGE_GPU).settings["trainer.precision"] == "bf16-mixed"
    assert make_plan(CITYSCAPES, SMALL_GPU).settings["trainer.precision"] == "32-true"
    small = make_plan(CITYSCAPES, SMALL_GPU, max_batch_size=4)
    assert small.settings["data.batch_size"] == 4
    assert "the most that the free memory holds" in small.describe()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        ({"model.model_options.encoder": "resnet18"}, {"encoder": "resnet18", "encoder_weights": "imagenet"}),
        ({"model.model_options": {"encoder": "resnet18"}}, {"encoder": "resnet18", "encoder_weights": "imagenet"}),
        (
            {"model.model_options": {"encoder": "resnet18", "encoder_weights": None}},
            {"encoder": "resnet18", "encoder_weights": None},
        ),
        (
            {"model.model": "smp/unet"},
            {"encoder": "tu-tf_efficientnet_lite0", "encoder_weights": "package:efficientnet_lite0"},
        ),
        ({"model.model": "torchvision/deeplabv3_resnet50"}, {"encoder_weights": "imagenet"}),
        ({"model.model": "mine:Network"}, {}),
    ],
)
def test_a_model_of_the_users_has_pretrained_weights_too(given: dict[str, Any], options: dict[str, Any]) -> None:
    assert make_plan(UNSPLIT, CPU, given).settings["model.model_options"] == options


def test_without_pretrained_weights_there_is_no_plan() -> None:
    with pytest.raises(ValueError, match="would start from random weights: give"):
        make_plan(UNSPLIT, CPU, {"model.model": "segnext/tiny"})
    plan = make_plan(UNSPLIT, CPU, {"model.model": "segnext/tiny"}, random_weights=True)
    assert plan.settings["model.model_options"] == {"encoder_weights": None}
    assert "random weights, as asked for" in plan.describe()
    initial = make_plan(UNSPLIT, CPU, {"model.model": "segnext/tiny", "model.init_from": "runs/a"})
    assert "the weights of runs/a" in initial.describe()


def test_what_the_user_sets_stands_and_is_marked() -> None:
    given = {
        "data.batch_size": 2,
        "model.loss": "ce",
        "trainer.max_steps": 77,
        "model.bank.capacity": 3,
        "data.flip": 0.0,
        "model.learning_rate": 0.01,
    }
    plan = make_plan(UNSPLIT, CPU, given, speed=FAST)
    configuration = plan.configuration
    assert configuration["data"]["batch_size"] == 2
    assert configuration["data"]["flip"] == 0.0
    assert configuration["trainer"]["max_steps"] == 77
    assert configuration["model"]["loss"] == "ce"
    assert "loss_options" not in configuration["model"]
    assert configuration["model"]["bank"]["capacity"] == 3
    assert configuration["model"]["learning_rate"] == 0.01
    text = plan.describe()
    for name in given:
        assert text.count(name) == 1
    assert text.count("set by you") == 6
    assert "other       set by you: data.flip" in text
    assert yaml.safe_load(plan.to_yaml()) == configuration
    # The rate that is planned goes with the batch: its noise is that of a quarter.
    assert make_plan(UNSPLIT, CPU, {"data.batch_size": 2}).settings["model.learning_rate"] == 2e-3


def test_a_fold_is_validated_on_in_the_place_of_images_held_out() -> None:
    plan = make_plan(dataclasses.replace(UNSPLIT, fold=(1, 5)), CPU)
    assert plan.settings["data.fold"] == [1, 5]
    assert "data.held_out_share" not in plan.settings
    assert "180 images of the fold" in plan.describe()


def test_images_read_by_windows_are_neither_scaled_nor_kept() -> None:
    settings = make_plan(UNSPLIT, CPU).settings
    assert (settings["data.base_size"], settings["data.cache"]) == ([256, 192], "memory")
    plan = make_plan(UNSPLIT, CPU, {"data.tile": 256})
    assert (plan.settings["data.base_size"], plan.settings["data.eval_base_size"]) == (None, None)
    assert plan.settings["data.cache"] is None
    assert "above a quarter of the free memory" not in plan.describe()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"data.eval_batch_size": 0}, "--data.eval_batch_size must be a whole number of at least 1, got 0"),
        ({"data.crop_size": 64}, "--data.crop_size must be two whole numbers"),
        ({"data.scale": 1}, "--data.scale must be two numbers"),
        ({"data.sampler_options": 3}, "--data.sampler_options must be a mapping"),
        ({"data.sampler_options": {"threshold": "rare"}}, "--data.sampler_options.threshold must be a number"),
        ({"data.fold": [5, 5]}, "--data.fold must be"),
        ({"trainer.max_steps": 0}, "--trainer.max_steps must be"),
        ({"trainer.val_check_interval": 0}, "--trainer.val_check_interval must be"),
        ({"model.loss_options": {"auc_weight": "big"}}, "--model.loss_options.auc_weight must be a number, got 'big'"),
        ({"model.bank": {"presence_target": "all"}}, "--model.bank.presence_target must be a number or null"),
        ({"model.learning_rate": None}, "--model.learning_rate must be a number, got None"),
    ],
)
def test_what_no_plan_can_be_made_with_is_told(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_given(given)


def test_what_a_run_takes_a_plan_takes() -> None:
    given = {"data.scale": [1, 1.5], "data.num_workers": 0, "data.base_size": None, "model.bank": None}
    given |= {"trainer.max_epochs": -1, "trainer.val_check_interval": 0.5, "data.fold": [0, 5], "data.flip": 0}
    check_given(given)
