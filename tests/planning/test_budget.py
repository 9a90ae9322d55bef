"""How many steps a plan has, when it validates, and what a given time allows."""

import math
import re
from typing import Any

import pytest

from aucseg.planning.rules import make_plan
from aucseg.runtime.durations import parse_duration
from tests.planning.data_sets import (
    CITYSCAPES,
    CPU,
    DATA_SETS,
    FAST,
    PHOTOGRAPHS,
    UNSPLIT,
)


def test_epochs_of_the_users_are_validated_in_a_tenth_of_the_time() -> None:
    plan = make_plan(UNSPLIT, CPU, {"trainer.max_epochs": 30}, speed=FAST)
    assert "trainer.max_steps" not in plan.settings
    assert "trainer.val_check_interval" not in plan.settings
    assert "30 epochs, about 2,700 steps" in plan.describe()  # 720 images
    every = plan.settings["trainer.check_val_every_n_epoch"]
    assert every == 5
    assert plan.seconds == pytest.approx(5 + 2700 * 0.25 + 6 * 180 * 0.05)


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({"trainer.max_epochs": 40, "data.batch_size": 7}, -(-40 * 720 // 7)),
        ({"trainer.max_epochs": 10, "trainer.limit_train_batches": 0.1}, 90),
        ({"trainer.max_epochs": 10, "trainer.limit_train_batches": 5, "trainer.accumulate_grad_batches": 2}, 25),
        ({"trainer.max_epochs": 10, "data.sampler_options": {"num_samples": 80}}, 100),
        ({"trainer.max_epochs": 10, "trainer.max_steps": 70}, 70),
    ],
)
def test_epochs_are_as_many_steps_as_training_counts(given: dict[str, Any], steps: int) -> None:
    plan = make_plan(UNSPLIT, CPU, given, speed=FAST)
    assert re.search(rf"\b{steps:,}( steps)?\b.*set by you", plan.describe())
    assert plan.settings["trainer.max_epochs"] == given["trainer.max_epochs"]


@pytest.mark.parametrize(
    ("given", "between"),
    [
        ({"trainer.val_check_interval": 200}, 200),
        ({"trainer.val_check_interval": 2.5}, 225),  # epochs of 720 images in batches of 8
        ({"trainer.check_val_every_n_epoch": 3}, 270),
        ({"trainer.val_check_interval": 200, "trainer.accumulate_grad_batches": 4}, 200),
    ],
)
def test_a_given_interval_is_part_of_the_time(given: dict[str, Any], between: int) -> None:
    plan = make_plan(UNSPLIT, CPU, given, speed=FAST, seconds=1200)
    assert {name: plan.settings[name] for name in given} == given
    batches = plan.settings["trainer.max_steps"] * given.get("trainer.accumulate_grad_batches", 1)
    number = math.ceil(batches / between)
    seconds = FAST.start + batches * FAST.step + number * 180 * FAST.image
    assert plan.seconds == pytest.approx(seconds)
    assert 1200 - 180 * FAST.image - 10 <= seconds <= 1200
    assert f"{number} times" in plan.describe()
    # Without a time the steps are those for so many images: 40 passes.
    per_step = 8 * given.get("trainer.accumulate_grad_batches", 1)
    untimed = make_plan(UNSPLIT, CPU, given, speed=FAST)
    assert untimed.settings["trainer.max_steps"] == max(600, 40 * 720 / per_step)


def test_an_interval_that_leaves_no_time_for_training_is_refused() -> None:
    with pytest.raises(ValueError, match=r"leave 10 % of the time for training: give a longer interval"):
        make_plan(UNSPLIT, CPU, {"trainer.val_check_interval": 4}, speed=FAST, seconds=1200)


@pytest.mark.parametrize("minutes", [1, 5, 20, 240])
@pytest.mark.parametrize("name", ["twelve", "unsplit", "cityscapes"])
def test_a_time_is_used_up_and_not_exceeded(name: str, minutes: int) -> None:
    data = DATA_SETS[name]
    plan = make_plan(data, CPU, speed=FAST, seconds=60 * minutes)
    number = plan.settings["trainer.max_steps"] // plan.settings["trainer.val_check_interval"]
    # A clock that runs as the speed says.
    clock = FAST.start
    for step in range(1, plan.settings["trainer.max_steps"] + 1):
        clock += FAST.step
        if step % plan.settings["trainer.val_check_interval"] == 0:
            clock += data.num_validation * FAST.image
    assert 0.95 * 60 * minutes <= clock <= 60 * minutes
    assert clock == pytest.approx(plan.seconds)
    assert number == 1 or number * data.num_validation * FAST.image <= 0.1 * 60 * minutes


@pytest.mark.parametrize("seconds", [1800, None])
def test_accumulated_batches_are_one_step(seconds: int | None) -> None:
    plain = make_plan(PHOTOGRAPHS, CPU, {"data.batch_size": 8}, speed=FAST, seconds=seconds)
    given = {"data.batch_size": 2, "trainer.accumulate_grad_batches": 4}
    speed = FAST._replace(step=FAST.step / 4)
    accumulated = make_plan(PHOTOGRAPHS, CPU, given, speed=speed, seconds=seconds)
    for name in ("trainer.max_steps", "model.learning_rate", "model.warmup_steps"):
        assert accumulated.settings[name] == plain.settings[name]
    # Lightning counts batches there.
    interval = "trainer.val_check_interval"
    assert accumulated.settings[interval] == 4 * plain.settings[interval]
    assert accumulated.seconds == plain.seconds


def test_a_time_that_is_too_short_is_refused_with_one_that_is_not() -> None:
    with pytest.raises(ValueError, match="30 seconds is too short: the start takes 5 seconds, a validation") as caught:
        make_plan(CITYSCAPES, CPU, speed=FAST, seconds=30)
    words = str(caught.value).split("give ")[1].split(" or more")[0].split()
    enough = parse_duration(words[0] + words[1][0])
    assert make_plan(CITYSCAPES, CPU, speed=FAST, seconds=enough).settings["trainer.max_steps"] >= 20
    # What is gone before is part of the time that was given, and of that which is enough.
    with pytest.raises(ValueError, match=r"1\.5 minutes is too short: reading and measuring took 60 s") as late:
        make_plan(CITYSCAPES, CPU, speed=FAST, seconds=30, spent=60)
    words = str(late.value).split("give ")[1].split(" or more")[0].split()
    assert parse_duration(words[0] + words[1][0]) == pytest.approx(enough + 60, rel=0.05)
