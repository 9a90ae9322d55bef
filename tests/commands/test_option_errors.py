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
