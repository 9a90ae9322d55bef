import csv
import io
import math

import pytest

from aucseg.compare.tables import Table, Tuned, csv_text, latex_text, make_tables, markdown_text, terminal_text

CE = {0: 0.30, 1: 0.31, 2: 0.29}
OURS = {0: 0.40, 1: 0.412, 2: 0.388}


def _tables() -> list[Table]:
    values = {
        ("smp/fpn", method, seed): {"miou": miou, "tail": math.nan, "seconds_per_step": 0.5, "peak_memory": 3e8}
        for method, by_seed in (("ce", CE), ("a_b|c", OURS))
        for seed, miou in by_seed.items()
    }
    return make_tables(values, ["smp/fpn", "segnext/tiny"], ["ce", "a_b|c", "not run"], "ce")


def test_columns_and_rows_that_nothing_is_known_of_are_left_out() -> None:
    (table,) = _tables()
    assert [column.key for column in table.columns] == ["miou", "seconds_per_step", "peak_memory"]
    assert table.seeds == {"ce": 3, "a_b|c": 3}


def test_terminal_text() -> None:
    lines = terminal_text(_tables()).splitlines()
    assert lines[0] == "smp/fpn"
    assert lines[1].split() == ["method", "seeds", "mIoU", "s/step", "MB"]
    assert lines[2].split() == ["ce", "3", "30.0", "±", "2.5", "0.500", "300"]
    assert lines[3].split() == ["a_b|c", "3", "40.0", "±", "3.0**", "0.500", "300"]
    # The differences are 10, 10.2 and 9.8 points: 0.2 / sqrt(3) times 4.303 is 0.50.
    assert lines[7].split() == ["a_b|c", "+10.0", "[9.5,", "10.5]!"]


def test_markdown_text() -> None:
    text = markdown_text(_tables())
    assert "| method | seeds | mIoU | s/step | MB |\n| --- | ---: | ---: | ---: | ---: |\n" in text
    assert r"| a_b\|c | 3 | **40.0 ± 3.0** | 0.500 | 300 |" in text
    assert r"| a_b\|c | +10.0 [9.5, 10.5]† |" in text


def test_latex_text() -> None:
    text = latex_text(_tables())
    assert r"a\_b|c & 3 & \textbf{40.0 $\pm$ 3.0} & 0.500 & 300 \\" in text
    assert text.count(r"\begin{tabular}{lrrrr}") == 1
    assert text.count(r"\begin{tabular}{lr}") == 1
    assert all(line.startswith("%") for line in text.splitlines() if "Means in" in line)


def test_csv_text_has_every_number() -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(_tables()))))
    row = next(row for row in rows if (row["method"], row["metric"]) == ("a_b|c", "miou"))
    assert (row["model"], row["unit"], row["seeds"], row["baseline"], row["mark"]) == (
        "smp/fpn",
        "%",
        "3",
        "ce",
        "best",
    )
    assert float(row["mean"]) == pytest.approx(40.0)
    assert float(row["difference"]) == pytest.approx(10.0)
    assert float(row["difference_ci_high"]) == pytest.approx(10.497, abs=1e-3)
    assert float(row["p"]) == float(row["p_holm"]) < 0.001
    baseline = next(row for row in rows if (row["method"], row["metric"]) == ("ce", "miou"))
    assert (baseline["difference"], baseline["p_holm"]) == ("", "")


def test_folds_take_the_place_of_seeds() -> None:
    values = {("m", method, n): {"miou": value} for method, by in (("ce", CE), ("la", OURS)) for n, value in by.items()}
    tables = make_tables(values, ["m"], ["ce", "la"], "ce", folds=3)
    text = terminal_text(tables)
    assert text.splitlines()[1].split() == ["method", "folds", "mIoU"]
    # 1 / 3 + 1 / 2 instead of 1 / 3: the root of 2.5 times as wide.
    assert text.splitlines()[2].split() == ["ce", "3", "30.0", "±", "3.9"]
    assert "Folds share training images" in text
    assert "seed" not in text
    assert next(csv.DictReader(io.StringIO(csv_text(tables))))["folds"] == "3"


def test_single_runs_have_no_interval_and_no_mark() -> None:
    values = {("m", method, 0): {"miou": miou} for method, miou in (("ce", 0.3), ("la", 0.4))}
    text = terminal_text(make_tables(values, ["m"], ["ce", "la"], "ce"))
    assert "±" not in text
    assert "40.0\n" in text
    assert "+10.0\n" in text


def test_a_cell_of_fewer_runs_than_its_row_says_so() -> None:
    tails = {"ce": (0.1, 0.2, 0.3), "la": (0.2, math.nan, 0.5)}
    values = {
        ("m", method, n): {"miou": 0.3, "tail": tail} for method, by in tails.items() for n, tail in enumerate(by)
    }
    text = terminal_text(make_tables(values, ["m"], ["ce", "la"], "ce"))
    lines = text.splitlines()
    assert lines[2].endswith("20.0 ± 24.8")
    assert lines[3].endswith("35.0 ± 190.6 (2)")
    assert lines[7].endswith("+15.0 [-48.5, 78.5] (2)")
    assert "(n): over n seeds alone" in text
    assert "(n)" not in terminal_text(_tables())


def test_the_tables_say_what_was_tuned() -> None:
    values = {("fpn", method, seed): {"miou": 0.3} for method in ("ce", "a_b", "la") for seed in (0, 1)}
    tuned = {
        ("fpn", "ce"): [Tuned("learning_rate", (0.1, 0.2), (0.1, 0.2, 0.4), True)],  # of two folds
        ("fpn", "a_b"): [Tuned("tau", (0.5,), (0.25, 0.5, 1.0), False), Tuned("gamma", (0.1,), (0.1,), False)],
    }
    tables = make_tables(values, ["fpn"], ["ce", "a_b", "la"], "ce", tuned=tuned)
    lines = terminal_text(tables).splitlines()
    assert lines[1].split()[-1] == "tuned"
    assert lines[2].endswith("learning_rate 0.1/0.2^ of 0.1, 0.2, 0.4")
    assert lines[3].endswith("tau 0.5 of 0.25, 0.5, 1.0; gamma 0.1 not tuned")
    assert lines[4].split() == ["la", "2", "30.0", "±", "0.0"]
    assert "^ the best one lies at the edge" in terminal_text(tables)
    assert "| --- | ---: | ---: | --- |" in markdown_text(tables)
    assert "| learning_rate 0.1/0.2‡ of 0.1, 0.2, 0.4 |" in markdown_text(tables)
    assert r"\begin{tabular}{lrrl}" in latex_text(tables)
    assert r"learning\_rate 0.1/0.2$^\ddagger$ of 0.1, 0.2, 0.4 \\" in latex_text(tables)
    rows = list(csv.DictReader(io.StringIO(csv_text(tables))))
    assert [row["tuned"] for row in rows][0::2] == ["learning_rate 0.1/0.2^ of 0.1, 0.2, 0.4", ""]
