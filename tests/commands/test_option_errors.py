from pathlib import Path
from typing import Any

import pytest

from aucseg import cli
from tests.two_processes import arguments


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--model.learning_rate", "fast"), "--model.learning_rate must be float or null, got 'fast'"),
        (("--data.crop_size", "[1, 2, 3]"), "--data.crop_size must be tuple with 2 elements, got '[1, 2, 3]'"),
        (("--model.bank", "capacity"), "--model.bank must be dict or null, got 'capacity'"),
        (("--trainer.precision", "fp8"), "'bf16-true', 'bf16-mixed'"),
        (("--trainer.callbacks", '[{"class_path": "no.such"}]'), "'no.such' cannot be used: No module named 'no'"),
        (("--data.bach_size", "3"), "there is no option --data.bach_size; did you mean data.batch_size"),
        (("--data.bach_size=3",), "there is no option --data.bach_size; did you mean data.batch_size"),
        (("run.yaml",), "'run.yaml' is not an option: options begin with '--'"),
    ],
)
def test_a_wrong_option_is_one_sentence(tmp_path: Path, capsys: Any, option: tuple[str, ...], sentence: str) -> None:
    assert cli.main(["fit", *arguments(Path("card.yaml"), tmp_path), *option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("aucseg fit: error: ")
    assert sentence in line


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "data:\n  card: a.yaml\n  bach_size: 3\n",
            "there is no setting 'data.bach_size'; did you mean data.batch_size",
        ),
        ("data:\n  batch_size: three\n", "--data.batch_size must be int, got 'three'"),
        ("data:\n  root: .\n", "--data.card is missing: give it (str)"),
        ("data: [3\n", "wrong.yaml is not a YAML file: while parsing a flow sequence"),
        ("- data\n", "wrong.yaml holds no settings: a configuration has sections such as data and model"),
        ("", "wrong.yaml holds no settings"),
    ],
)
@pytest.mark.parametrize("separator", [" ", "="])
def test_a_wrong_configuration_is_one_sentence(
    tmp_path: Path, capsys: Any, text: str, sentence: str, separator: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert cli.main(["validate", *f"--config{separator}{path}".split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("aucseg validate: error: ")
    assert sentence in line


@pytest.mark.parametrize(
    "line",
    [
        "validate RUN --out FILE",
        "evaluate PREDICTIONS --card camvid --out FILE",
        "adjust RUN --out FILE/run",
        "masks notes.json --out FILE",
        "predict RUN images --out FILE",
        "compare DATA --out FILE/a/b",
        "demo --out FILE",
        "fit DATA --out FILE",
        "fit DATA --out FILE/run --resume auto",
        "fit --config freedoom_lt_fpn_ce --out FILE",
        "stats DATA --csv FILE/classes.csv",
    ],
)
def test_a_file_in_the_place_of_an_output_folder_is_told_before_work_begins(
    tmp_path: Path, capsys: Any, line: str
) -> None:
    file, data = tmp_path / "file", tmp_path / "data"
    file.touch()
    data.mkdir()
    status = _status(line.replace("FILE", str(file)).replace("DATA", str(data)).split())
    assert status == 2
    assert f"{file} is a file, not a folder: give another folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "report RUN --out FOLDER",
        "report RUN --figure FOLDER",
        *(f"stats DATA --{name} FOLDER" for name in ("json", "csv", "save", "chart", "write-card", "write-config")),
    ],
)
def test_a_folder_in_the_place_of_an_output_file_is_told_before_work_begins(
    tmp_path: Path, capsys: Any, line: str
) -> None:
    assert _status(line.replace("FOLDER", str(tmp_path)).split()) == 2
    assert f"{tmp_path} is a folder: give the name of a file" in capsys.readouterr().err


@pytest.mark.parametrize("line", ["report RUN --figure result.xyz", "stats DATA --chart classes.xyz"])
def test_an_ending_that_no_figure_has_is_told_before_work_begins(capsys: Any, line: str) -> None:
    assert _status(line.split()) == 2
    assert "a figure is written as one of" in capsys.readouterr().err


def _status(line: list[str]) -> int:
    try:
        return cli.main(line)
    except SystemExit as end:  # of argparse
        return int(end.code or 0)
