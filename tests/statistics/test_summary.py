import json
import textwrap
from pathlib import Path

import torch
import yaml

from aucseg.datasets import DatasetCard
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
