import re
from typing import Any

import pytest
import yaml

from aucseg import cli
from aucseg.commands import fit, fit_help
from aucseg.commands.option_parser import OptionParser


class StopError(Exception):
    pass


@pytest.fixture(scope="module")
def options() -> dict[str, Any]:
    """Every option of the parser behind `aucseg fit`, and its default."""
    found = {}

    class Command(fit.AUCSegCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            for action in self._subcommand_parsers["fit"]._actions:
                found.update(dict.fromkeys(action.option_strings, action.default))
            raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "AUCSegCLI", Command)
        with pytest.raises(StopError):
            fit.run_lightning("fit", [])
    return found


def test_the_help_is_short_and_true(options: dict[str, Any]) -> None:
    lines = fit_help.help_text().splitlines()
    assert len(lines) <= 80
    assert max(map(len, lines)) <= 120
    defaults = {}
    for _, group in fit_help.GROUPS:
        for option, text in group:
            name = option.split()[0]
            assert name in options or name in fit_help.PLAN_OPTIONS
            default = re.search(r"\(default: (.*)\)", text)
            if default is not None:
                defaults[name] = yaml.safe_load(default[1])
    assert len(defaults) > 15
    for name, told in defaults.items():
        is_default = options[name]
        assert told == (list(is_default) if isinstance(is_default, tuple) else is_default) or str(told) == str(
            is_default
        )


def test_all_options_without_a_dot_are_known_at_once(options: dict[str, Any]) -> None:
    plain = {name for name in options if name.startswith("-") and "." not in name} - {"-h", "--help"}
    assert plain
    for name in plain:
        value = "freedoom_lt_fpn_ce" if name in ("-c", "--config") else "x"
        assert fit_help.told_at_once([f"{name}={value}", "--data.card=x"]) is None


def test_help_all_lists_all(options: dict[str, Any], capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["fit", "--help.all"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) > 500
    assert "--guard.spike_factor" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "there are no data: give a folder of images and masks"),
        (["--out", "a"], "there are no data"),
        (["run.yaml"], "there is no folder or card 'run.yaml'; a configuration is given with --config"),
        (["camvd", "--time", "20m"], "there is no folder or card 'camvd'; did you mean camvid?"),
        (["camvid", "freedoom_lt"], "'freedoom_lt' is not an option"),
        (["--data.card", "x", "run.yaml"], "'run.yaml' is not an option"),
        (["--learning_rte=3"], "no option --learning_rte; did you mean --model.learning_rate?"),
        (["--bank", "null"], "no option --bank; did you mean --model.bank?"),
        (["--config", "no.yaml"], "there is no file 'no.yaml'"),
        (["camvid", "--tim", "30m"], "no option --tim; did you mean --time?"),
        (["--zzz"], "no option --zzz; 'aucseg fit --help' lists"),
    ],
)
def test_what_is_wrong_is_told_at_once(arguments: list[str], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        fit_help.told_at_once(arguments)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["--itertions", "3"],
            "t: error: there is no option --itertions; did you mean --iterations? (all options: t --help)",
        ),
        (["-q"], "t: error: there is no option -q; known: --help, --iterations, --range (all options: t --help)"),
        (["--iterations", "x"], "t: error: argument --iterations: invalid int value: 'x' (all options: t --help)"),
        ([], "t: error: the following arguments are required: run (all options: t --help)"),
    ],
)
def test_a_wrong_option_of_a_command_is_one_line(arguments: list[str], line: str, capsys: Any) -> None:
    parser = OptionParser(prog="t")
    parser.add_argument("run")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--range", nargs=2, type=float)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines() == [line]


def test_numbers_abbreviations_and_what_follows_two_dashes_are_no_unknown_options() -> None:
    parser = OptionParser()
    parser.add_argument("run", nargs="*")
    parser.add_argument("--iterations", type=int)
    parser.add_argument("--range", nargs=2, type=float)
    read = parser.parse_args(["--range", "-1", "-.5", "--iter=3", "--", "--nosuch", "-"])
    assert (read.range, read.iterations, read.run) == ([-1, -0.5], 3, ["--nosuch", "-"])
