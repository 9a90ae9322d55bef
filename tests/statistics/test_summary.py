import json
import textwrap
from pathlib import Path

import pytest
import torch
import yaml

from aucseg import AUCSegLoss
from aucseg.datasets import DatasetCard
from aucseg.loading.rare_classes import RepeatFactorSampler
from aucseg.losses.build import RECOMMENDED_OPTIONS, build_loss
from aucseg.statistics.class_statistics import ClassStatistics
from aucseg.statistics.summary import format_report, make_report, write_chart, write_csv
from aucseg.training.task import SegmentationTask
from tests.statistics.examples import long_tail


def test_report_as_text_json_csv_and_chart(tmp_path: Path) -> None:
    report = make_report(long_tail(tail_presence=0.05), batch_size=4)
    assert json.loads(json.dumps(report)) == report
    text = format_report(report)
    for word in ("road", "cone", "head", "tail", "tau", "imbalance ratio", "vacuous", "TailMemoryBank("):
        assert word in text
    write_csv(report, tmp_path / "classes.csv")
    rows = (tmp_path / "classes.csv").read_text().splitlines()
    assert rows[0].startswith("id,name,group,pixels,images,frequency,presence")
    assert len(rows) == 5
    write_chart(report, tmp_path / "classes.svg")
    chart = (tmp_path / "classes.svg").read_text()
    assert "<svg" in chart
    write_chart(report, tmp_path / "classes.png")
    assert (tmp_path / "classes.png").read_bytes().startswith(b"\x89PNG")


def test_printing_statistics_shows_the_table_of_the_report() -> None:
    statistics = long_tail()
    table, _, _ = format_report(make_report(statistics)).partition("\n(mean area")
    printed, _, remark = str(statistics).partition("\n(mean area")
    assert printed == table
    assert "groups by share of the labelled pixels" in remark
    nothing = str(ClassStatistics(2))  # of which a report has nothing to say
    assert nothing.startswith("0 images, 0 labelled pixels")
    assert "class 1" in nothing


def test_a_configuration_takes_the_suggested_settings() -> None:
    card = DatasetCard.load("freedoom_lt")
    report = make_report(ClassStatistics.load(Path(__file__).parent / "counts" / "freedoom_lt.json"), card)
    _, _, block = format_report(report).partition("in a configuration:\n")
    suggested = yaml.safe_load(textwrap.dedent(block))["model"]
    task = SegmentationTask("freedoom_lt", torch.nn.Conv2d(3, card.num_classes, 1), **suggested)
    settings = report["advice"]["settings"]
    assert task.bank is not None
    assert task.bank.presence_target == settings["presence_target"]
    assert list(task.bank.tail_classes) == settings["tail_classes"]
    assert len(settings["tail_classes"]) < len(card.tail_classes or ())  # not those in very few or in many images
    assert set(settings["protect_classes"]) <= set(task.bank.protect_classes)
    assert suggested["bank"]["resize_ratio"] == settings["resize_ratio"] == task.bank.resize_ratio


@pytest.mark.parametrize("presence", [0.05, 1.0])
def test_the_loss_that_is_advised_is_that_of_the_plan_in_python_and_in_a_configuration(presence: float) -> None:
    statistics = long_tail(tail_presence=presence)
    text = format_report(make_report(statistics))
    _, _, block = text.partition("in a configuration:\n")
    model = yaml.safe_load(textwrap.dedent(block.partition("\n\n")[0]))["model"]
    assert model["loss"] == "aucseg"
    assert model["loss_options"] == RECOMMENDED_OPTIONS
    assert ("bank" in model) == ("memory bank: use it" in text)
    data = yaml.safe_load(textwrap.dedent(block.partition("\n\n")[0])).get("data")
    sampler = "  RepeatFactorSampler(statistics, threshold=0.3, max_factor=5.0)"
    if presence < 0.3:
        assert data == {"sampler": "repeat_factor", "sampler_options": {"threshold": 0.3, "max_factor": 5.0}}
        assert RepeatFactorSampler(statistics, **data["sampler_options"]).factors.max() > 1
        assert list(RepeatFactorSampler(statistics, **data["sampler_options"])) == list(RepeatFactorSampler(statistics))
        assert sampler in text.splitlines()
    else:
        assert data is None
        assert sampler not in text.splitlines()
        assert "order: every image once an epoch" in text
    configured = build_loss("aucseg", statistics.pixel_counts.tolist(), **model["loss_options"])
    line = next(line for line in text.splitlines() if "AUCSegLoss(" in line)
    written = eval(line, {"AUCSegLoss": AUCSegLoss})
    torch.testing.assert_close(written.class_weight, configured.class_weight, rtol=5e-3, atol=0.0)
    assert written.auc_weight == configured.auc_weight
