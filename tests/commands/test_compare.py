import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from aucseg.cli import main
from aucseg.compare import comparison
from aucseg.compare.runner import trusting
from aucseg.losses import build_loss
from aucseg.training.run_lock import RUN_LOCK, lock_if_free
from tests.commands.comparisons import change_config, rows_of
from tests.commands.conftest import Compare, Launches


def test_finished_runs_are_not_repeated(
    compare: Compare, launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare("--methods", "ce,aucseg", "--seeds", "0,1") == 0
    out = "out/smp-fpn"
    assert launches() == [f"{out}/{method}/seed{seed}" for seed in (0, 1) for method in ("ce", "aucseg")]
    printed = capsys.readouterr().out
    assert printed.count("difference to ce") >= 2  # the table comes after every run that it changes
    assert compare("--methods", "ce,aucseg,la", "--seeds", "0,1,2") == 0
    assert launches() == [f"{out}/la/seed0", f"{out}/la/seed1", *(f"{out}/{m}/seed2" for m in ("ce", "aucseg", "la"))]
    assert compare("--methods", "ce,aucseg,la", "--seeds", "0,1,2") == 0
    assert launches() == []
    rows = rows_of(tmp_path / "out")
    assert [(row["method"], row["seed"]) for row in rows][:3] == [("ce", "0"), ("aucseg", "0"), ("la", "0")]
    assert float(rows[0]["miou"]) == pytest.approx(0.35)
    assert (rows[0]["head"], rows[0]["seconds_per_step"], rows[0]["peak_memory"]) == ("", "0.25", "2000000.0")
    assert {path.name for path in (tmp_path / "out").glob("table.*")} == {"table.md", "table.csv", "table.tex"}


def test_methods_and_seeds_that_are_named_later_are_added(
    compare: Compare, launches: Launches, tmp_path: Path, base_config: Path
) -> None:
    assert compare("--methods", "auc,ce,ce+posthoc-la", "--seeds", "1,0") == 0
    launches()
    (tmp_path / "out" / "runs.csv").unlink()  # as where a call was cut off; the order of the tables alone is in it
    assert compare("--methods", "la", "--seeds", "0") == 0
    assert launches() == ["out/smp-fpn/la/seed0"]
    both = ["auc", "ce", "ce+posthoc-la"]
    expected = [("0", name) for name in [*both, "la"]] + [("1", name) for name in both]
    assert [(row["seed"], row["method"]) for row in rows_of(tmp_path / "out")] == expected
    # A second stage starts from models that are there, and what is left of an order stays.
    assert compare("--methods", "la+posthoc-la", "--seeds", "2,0") == 0
    assert [line.removeprefix("out/smp-fpn/") for line in launches()] == [
        "la+posthoc-la/seed0", "la/seed2", "la+posthoc-la/seed2",
    ]  # fmt: skip
    rows = [(row["seed"], row["method"]) for row in rows_of(tmp_path / "out")]
    assert rows[:5] == [*expected[:4], ("0", "la+posthoc-la")]
    assert rows[-2:] == [("2", "la"), ("2", "la+posthoc-la")]
    # They are of the same data and configuration as those that are there.
    change_config(base_config, "model", learning_rate=0.25)
    with pytest.raises(ValueError, match="auc/seed0 was made with other configuration"):
        compare("--methods", "focal", "--seeds", "0")


def test_tables_do_not_lose_what_cannot_be_added_to(compare: Compare, launches: Launches, tmp_path: Path) -> None:
    definitions = tmp_path / "methods.yaml"
    definitions.write_text("mine: {method: ce}\n")
    assert compare("--methods", "mine", "--seeds", "0", "--methods-file", str(definitions)) == 0
    launches()
    for options, message in (
        (("ce", "--seeds", "0"), "a method that is not known now: give the --methods-file .*unknown method 'mine'"),
        (("ce", "--folds", "2"), "out are of seeds, and not of folds: give another folder with --out"),
        (
            ("ce", "--seeds", "0", "--methods-file", str(definitions), "--models", "smp/unet"),
            "would lose its table of smp/fpn: name that with --models, beside smp/unet",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            compare("--methods", *options)
    assert launches() == []


def test_a_killed_comparison_goes_on_where_it_was(
    compare: Compare, launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAND_IN_TERMINATE", "la")
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compare("--methods", "ce,la,aucseg", "--seeds", "0")
    assert time.monotonic() - start < 50  # the run that was going on has been ended too
    assert launches() == ["out/smp-fpn/ce/seed0", "out/smp-fpn/la/seed0"]
    options = tmp_path / "out" / "smp-fpn" / "la" / "seed0" / "options.txt"
    assert options.read_text() == "--overwrite true"
    monkeypatch.delenv("STAND_IN_TERMINATE")
    assert compare("--methods", "ce,la,aucseg", "--seeds", "0") == 0
    assert launches() == ["out/smp-fpn/la/seed0", "out/smp-fpn/aucseg/seed0"]
    assert options.read_text() == "--resume auto"


def test_a_run_cut_off_with_another_configuration_begins_anew(
    compare: Compare, monkeypatch: pytest.MonkeyPatch, launches: Launches, base_config: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("STAND_IN_TERMINATE", "ce")
    with pytest.raises(KeyboardInterrupt):
        compare("--methods", "ce", "--seeds", "0")
    monkeypatch.delenv("STAND_IN_TERMINATE")
    change_config(base_config, "model", learning_rate=0.25)
    assert compare("--methods", "ce", "--seeds", "0") == 0
    assert (tmp_path / "out" / "smp-fpn" / "ce" / "seed0" / "options.txt").read_text() == "--overwrite true"


def test_a_failed_run_stops_itself_alone_and_is_tried_again(
    compare: Compare, launches: Launches, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STAND_IN_FAIL", "la")
    assert compare("--methods", "la,la+posthoc-la,ce", "--seeds", "0") == 1
    assert launches() == ["out/smp-fpn/la/seed0", "out/smp-fpn/ce/seed0"]
    printed = capsys.readouterr().out
    assert "failed: exit status 1\n  | out of luck\n" in printed
    assert "not run: smp/fpn, la, seed 0 has failed" in printed
    monkeypatch.delenv("STAND_IN_FAIL")
    assert compare("--methods", "la,la+posthoc-la,ce", "--seeds", "0") == 0
    assert launches() == ["out/smp-fpn/la/seed0", "out/smp-fpn/la+posthoc-la/seed0"]


def test_processes_share_a_comparison(
    compare: Compare,
    launches: Launches,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Whoever comes takes what is free, waits for the rest, and ends with the whole table; here as threads."""
    monkeypatch.setattr(comparison, "_POLL_SECONDS", 0.05)
    monkeypatch.setenv("STAND_IN_SECONDS", "0.2")
    for name, value in {"SLURM_PROCID": "1", "SLURM_NTASKS": "3", "WORLD_SIZE": "3", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    options = (
        "--methods",
        "ce,ce+posthoc-la,aucseg",
        "--seeds",
        "0,1",
        "--search",
        "auc_weight=1,2",
        "--search-limit",
        "2",
    )
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: compare(*options), range(3))) == [0, 0, 0]
    runs = launches()
    assert len(runs) == len(set(runs)) == 6 + 3 * 2
    assert [(row["seed"], row["method"]) for row in rows_of(tmp_path / "out")] == [
        (seed, method) for seed in "01" for method in ("ce", "ce+posthoc-la", "aucseg")
    ]
    printed = capsys.readouterr().out
    assert printed.count("Tables: ") == 3
    assert compare(*options) == 0
    printed = capsys.readouterr().out
    assert printed.count("difference to ce") == 1  # nothing has changed: the table comes once, at the end
    assert launches() == []


def test_a_run_of_a_comparison_that_is_gone_is_waited_for(
    compare: Compare, launches: Launches, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(comparison, "_POLL_SECONDS", 0.05)
    folder = tmp_path / "out" / "smp-fpn" / "ce" / "seed0"
    folder.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with lock_if_free(folder / RUN_LOCK):
            call = pool.submit(compare, "--methods", "ce,la", "--seeds", "0")
            while not (tmp_path / "out" / "runs.csv").is_file():
                time.sleep(0.02)
            assert compare("--methods", "ce", "--seeds", "0", "--dry-run") == 0
            assert launches() == ["out/smp-fpn/la/seed0"]
        assert call.result(30) == 0
    assert launches() == ["out/smp-fpn/ce/seed0"]


def test_a_run_that_another_process_saw_fail_is_not_tried_at_once(
    compare: Compare, launches: Launches, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed = tmp_path / "out" / "smp-fpn" / "ce" / "seed0" / "failed"
    failed.parent.mkdir(parents=True)
    failed.touch()
    os.utime(failed, (time.time() + 60,) * 2)
    assert compare("--methods", "ce,la", "--seeds", "0") == 1
    assert launches() == ["out/smp-fpn/la/seed0"]
    assert "failed in another process: smp/fpn, ce, seed 0" in capsys.readouterr().out
    os.utime(failed, (time.time() - 60,) * 2)
    assert compare("--methods", "ce,la", "--seeds", "0") == 0
    assert launches() == ["out/smp-fpn/ce/seed0"]


def test_other_configuration_is_refused_until_it_is_repeated(
    compare: Compare, launches: Launches, base_config: Path
) -> None:
    assert compare("--methods", "ce,la", "--seeds", "0") == 0
    launches()
    change_config(base_config, "model", learning_rate=0.25)
    changed = r"ce/seed0 was made with other configuration .*learning_rate: nothing then, 0.25 now.*--redo"
    with pytest.raises(ValueError, match=changed):
        compare("--methods", "ce,la", "--seeds", "0")
    assert launches() == []
    assert compare("--methods", "ce,la", "--seeds", "0", "--redo") == 0
    assert len(launches()) == 2
    assert compare("--methods", "ce,la", "--seeds", "0") == 0
    assert launches() == []


def test_other_code_and_data_are_refused(
    compare: Compare, launches: Launches, base_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    network, card = tmp_path / "my_network.py", tmp_path / "card.yaml"
    network.write_text("SIZE = 1\nNet = dict\n")
    original_card = Path(yaml.safe_load(base_config.read_text())["data"]["card"])
    card.write_text(original_card.read_text())
    change_config(base_config, "model", model="my_network:Net")
    change_config(base_config, "data", card=str(card))
    assert compare("--methods", "ce", "--seeds", "0") == 0
    network.write_text("SIZE = 2\nNet = dict\n")
    with pytest.raises(ValueError, match=r"other code \(hash .*my_network \(yours\)"):
        compare("--methods", "ce", "--seeds", "0")
    network.write_text("SIZE = 1  # as before\nNet = dict\n")
    assert compare("--methods", "ce", "--seeds", "0") == 0
    card.write_text(original_card.read_text().replace("gem", "jewel"))
    with pytest.raises(ValueError, match=r"other data \(hash .*card: "):
        compare("--methods", "ce", "--seeds", "0")


def test_losses_of_the_users_own_are_methods(
    compare: Compare, launches: Launches, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "an_own_loss.py").write_text(
        "from torch import nn\n\n\nclass Loss(nn.Module):\n    def __init__(self, class_counts):\n"
        "        super().__init__()\n        self.class_counts = class_counts\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build_loss("an_own_loss:Loss", [3, 1], ignore_index=255).class_counts == [3, 1]
    assert compare("--methods", "an_own_loss:Loss,an_own_loss:Loss+posthoc-la", "--seeds", "0") == 0
    folder = tmp_path / "out" / "smp-fpn" / "an_own_loss.Loss" / "seed0"
    config = yaml.safe_load((folder / "input.yaml").read_text())
    assert (config["model"]["loss"], config["model"]["bank"]) == ("an_own_loss:Loss", None)
    # The second stage loads what the comparison has trained itself, a stranger's file would not be trusted.
    assert trusting(config) == {"AUCSEG_TRUST_FILES": "1"}
    assert trusting({"model": {"model": "smp/fpn", "loss": "ce"}}) == {}
    with pytest.raises(ImportError, match="an_own_loss has no class or function 'Los'; did you mean Loss"):
        compare("--methods", "an_own_loss:Los", "--seeds", "0")


def test_offsets_are_fitted_on_images_that_no_method_is_trained_on(
    compare: Compare, launches: Launches, tmp_path: Path
) -> None:
    methods = ("--methods", "ce,ce+offsets,aucseg,aucseg+offsets", "--seeds", "0", "--offsets-share", "0.25")
    assert compare(*methods, "--search", "auc_weight=1,2", "--search-limit", "2") == 0
    started = launches()
    assert sum("/search/" in line for line in started) == 4  # offsets have no setting of their own
    out = tmp_path / "out" / "smp-fpn"
    for folder in out.glob("*/seed0"):
        config = yaml.safe_load((folder / "input.yaml").read_text())
        assert (config["data"]["held_out_share"], config["data"]["validate_held_out"]) == (0.25, False)
        if folder.parent.name.endswith("+offsets"):
            options = config["model"]["model_options"]
            assert options["data"] == config["data"]
            assert options["checkpoint"].endswith(
                f"{folder.parent.name.removesuffix('+offsets')}/seed0/checkpoints/last.ckpt"
            )
    assert {row["method"] for row in rows_of(tmp_path / "out")} == {"ce", "ce+offsets", "aucseg", "aucseg+offsets"}
    assert compare(*methods, "--search", "auc_weight=1,2", "--search-limit", "2") == 0
    assert launches() == []


def test_checkpoints_of_later_seeds_can_be_discarded(compare: Compare, launches: Launches, tmp_path: Path) -> None:
    assert compare("--methods", "ce,la", "--seeds", "0,1", "--discard-checkpoints") == 0
    left = {str(path.parents[1].relative_to(tmp_path)) for path in tmp_path.rglob("*.ckpt")}
    assert left == {f"out/smp-fpn/{method}/seed0" for method in ("ce", "la")}


def test_checkpoints_of_trials_are_discarded_when_no_trial_starts_from_them(
    compare: Compare, launches: Launches, tmp_path: Path
) -> None:
    options = ("--methods", "auc,auc+posthoc-la", "--seeds", "0", "--search", "auc_weight=1,2,4")
    assert compare(*options, "--discard-checkpoints") == 0
    left = {str(path.parents[1].relative_to(tmp_path / "out")) for path in tmp_path.rglob("*.ckpt")}
    runs = {"smp-fpn/auc/seed0", "smp-fpn/auc+posthoc-la/seed0"}
    assert left == {"search/smp-fpn/auc/auc_weight=2", *runs}


def test_dry_run_starts_nothing(compare: Compare, launches: Launches, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare("--methods", "ce,la", "--seeds", "0", "--dry-run") == 0
    assert launches() == []
    assert capsys.readouterr().out.count("to do") == 2


def test_dry_run_tells_runs_that_the_real_call_refuses(
    compare: Compare, launches: Launches, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare("--methods", "ce", "--seeds", "0") == 0
    launches()
    capsys.readouterr()
    assert compare("--methods", "ce,la", "--seeds", "0", "--dry-run") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["finished", "to"]
    assert compare("--methods", "ce,la", "--seeds", "0", "--steps", "3", "--dry-run") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["differs", "to"]
    assert compare("--methods", "ce,la", "--seeds", "0", "--steps", "3", "--dry-run", "--redo") == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["to", "to"]
    assert launches() == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "ce", "--seeds", "0,x"), "expected whole numbers"),
        (("--methods", "ce", "--seeds", "1,1"), "listed twice"),
        (("--methods", ","), "--methods lists nothing"),
        (("--methods", "ce,la", "--baseline", "vs"), "not one of the methods"),
    ],
)
def test_wrong_options_are_told(compare: Compare, options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(*options)


@pytest.mark.parametrize(
    ("option", "text", "message"),
    [
        ("--steps", "a", "argument --steps: must be a whole number of at least 1, got 'a'"),
        ("--search-limit", "0", "argument --search-limit: must be a whole number of at least 1, got '0'"),
        ("--folds", "1.5", "argument --folds: must be a whole number of at least 2, got '1.5'"),
        ("--search-share", "1", "argument --search-share: must be a number between 0 and 1, got '1'"),
        ("--offsets-share", "nan", "argument --offsets-share: must be a number between 0 and 1, got 'nan'"),
    ],
)
def test_numbers_out_of_their_range_are_named(
    option: str, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["compare", "tiles", option, text])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
