import json
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.evidence import one_run, pool, run, speed
from benchmarks.evidence.pool import Pool
from benchmarks.evidence.shared_studies import SHARED_STUDIES
from benchmarks.evidence.shared_study import Job, SharedStudy, best_methods
from filelock import FileLock

from aucseg.datasets import DatasetCard, SegmentationDataset

STUDY = SharedStudy(
    "Small", "", card="rehearsal", config="rehearsal", methods=("ce", "auc", "aucseg"), rates=(0.001, 0.002, 0.004),
    search_steps=5, steps=10, seeds=2, embedded=True,
)  # fmt: skip

# Stands for a training: the score on the held-out images is best at the middle rate and an AUC weight of 4.
FAKE = """
import json, sys, time
from pathlib import Path
folder, job = Path(sys.argv[1]), json.load(sys.stdin)
record = job["record"]
weight = (job["config"]["model"]["loss_options"] or {}).get("auc_weight")
with open(folder.parents[1] / "calls.txt" if job["part"] == "runs" else folder.parents[2] / "calls.txt", "a") as file:
    file.write(f"{record['method']} {record['learning_rate']} {weight} {record.get('seed')}\\n")
if record["method"] == FAILING:
    sys.exit("out of luck")
miou = 0.5 - abs(record["learning_rate"] - 0.002) - 0.01 * abs((weight or 4) - 4)
scores = {"miou": miou, "head": miou, "middle": miou, "tail": None}
measured = {"metrics": scores, "per_class_iou": {}, "cost": {"seconds_per_step": 0.5, "device": "cpu"}, "seconds": 60.0}
if job["offsets"]:
    measured |= {"heldout": scores, "with_offsets": {"offsets": [], "heldout": scores, "metrics": scores}}
(folder / "job.json").write_text(json.dumps(job))
(folder / "measured.json").write_text(json.dumps(measured))
"""


def make_pool(folder: Path, *, out: str = "out", failing: str = "", **options: Any) -> Pool:
    code = FAKE.replace("FAILING", repr(failing))
    arguments: dict[str, Any] = {"device": "cpu", "processes": 3, "loaders": 0, **options}
    return Pool(
        "small", STUDY, STUDY.data_root(None), folder / out, folder / "results",
        command=(sys.executable, "-c", code), **arguments,
    )  # fmt: skip


def calls(folder: Path, out: str = "out") -> list[str]:
    path = folder / out / "calls.txt"
    return path.read_text().splitlines() if path.is_file() else []


def test_a_study_is_run_to_its_end_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_pool(tmp_path).run() == 0
    result = json.loads((tmp_path / "results/small.json").read_text())
    by_method = {choice["method"]: choice for choice in result["search"]}
    assert by_method["ce"]["settings"] == {"model.learning_rate": 0.002}
    for method in ("auc", "aucseg"):
        # Beyond the edge of the first grid, and then at three rates, one of which is known.
        choice = by_method[method]
        assert choice["settings"] == {"model.loss_options.auc_weight": 4.0, "model.learning_rate": 0.002}
        assert choice["tried"]["model.loss_options.auc_weight"] == [0.5, 1.0, 2.0, 4.0, 8.0]
        assert choice["tried"]["model.learning_rate"] == [0.001, 0.002, 0.004]
        assert (choice["at_edge"], len(choice["scores"])) == ([], 7)
    assert result["commit"] is None
    runs = {(entry["method"], entry["seed"]): entry for entry in result["runs"]}
    assert sorted(runs) == sorted((method, seed) for method in ("auc", "aucseg", "ce") for seed in (0, 1))
    assert runs["ce", 0]["steps"] == 10
    done = calls(tmp_path)
    assert len(done) == len(set(done)) == 3 + 7 + 7 + 6
    assert {line.partition(" ")[0] for line in done[:3]} == {"ce"}
    assert sum(line.startswith("auc 0.002 4.0") for line in done) == 3  # a trial and two runs
    assert "145 steps of finished runs" in capsys.readouterr().out

    # Neither here nor, from the JSON file alone, on another machine is anything left to do.
    assert make_pool(tmp_path).run() == 0
    assert make_pool(tmp_path, out="there").run() == 0
    assert len(calls(tmp_path)) == 23
    assert calls(tmp_path, "there") == []

    # A part of the results goes on where it ends: of aucseg the last step of the search, and the runs.
    result["runs"] = [entry for entry in result["runs"] if entry["method"] != "aucseg"]
    last = "auc_weight=8.0,learning_rate=0.002"
    result["trials"] = [t for t in result["trials"] if (t["method"], t["trial"]) != ("aucseg", last)]
    (tmp_path / "results/small.json").write_text(json.dumps(result))
    assert make_pool(tmp_path, out="there").run() == 0
    again = ["aucseg 0.002 4.0 0", "aucseg 0.002 4.0 1", "aucseg 0.002 8.0 None"]
    assert sorted(calls(tmp_path, "there")) == again

    # Results of a GPU and of a CPU are not mixed.
    result["runs"][0]["cost"]["device"] = "NVIDIA H200"
    (tmp_path / "results/small.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="a table never mixes a CPU with a GPU"):
        make_pool(tmp_path, out="third").run()

    # Results of other code are not mixed with these.
    result["runs"][0]["hashes"]["code"] = "other"
    (tmp_path / "results/small.json").write_text(json.dumps(result))
    with pytest.raises(ValueError, match="holds runs of another code"):
        make_pool(tmp_path, out="third").run()


def test_a_run_that_fails_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert make_pool(tmp_path, failing="aucseg").run() == 1
    result = json.loads((tmp_path / "results/small.json").read_text())
    assert {entry["method"] for entry in result["runs"]} == {"ce", "auc"}
    said = capsys.readouterr().out
    assert "failed (status 1): aucseg, auc_weight 1.0, learning_rate 0.002, search\n  | out of luck" in said
    assert make_pool(tmp_path).run() == 0  # the next time it is tried again
    assert len(json.loads((tmp_path / "results/small.json").read_text())["runs"]) == 6


def test_a_run_that_would_not_end_in_time_is_not_begun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # A trial took 60 s, so that a run takes more: there is no time for one.
    assert make_pool(tmp_path, minutes=1).run() == 0
    assert {line.rpartition(" ")[2] for line in calls(tmp_path)} == {"None"}
    assert "not begun, as they would not end in time: ce, learning rate 0.002, seed 0" in capsys.readouterr().out


def test_an_interruption_ends_the_runs_and_keeps_what_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupting = make_pool(tmp_path, processes=1)
    stop = (
        "if record['method'] == 'auc':\n"
        "    import os, signal\n    os.kill(os.getppid(), signal.SIGINT)\n    time.sleep(60)\n"
    )
    code = FAKE.replace("if record", stop + "if record", 1).replace("FAILING", "''")
    interrupting.command = (sys.executable, "-c", code)
    # What is started in the background has it ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupting.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert "cut off: auc, auc_weight 0.5, learning_rate 0.002, search" in capsys.readouterr().out
    result = json.loads((tmp_path / "results/small.json").read_text())
    assert [entry["method"] for entry in result["runs"]] == ["ce", "ce"]


def test_runs_of_somebody_else_are_left_to_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"record": {"hashes": {"code": "a"}}}
    monkeypatch.setattr(one_run, "train", lambda job, folder: (folder / "measured.json").write_text("{}") and 0)
    with FileLock(tmp_path / "run.lock"):
        assert one_run.main(tmp_path, job) == one_run.BUSY
    assert one_run.main(tmp_path, job) == 0
    (tmp_path / "checkpoints").mkdir()
    assert one_run.main(tmp_path, job) == 0
    assert (tmp_path / "checkpoints").is_dir()  # finished: nothing is done
    assert one_run.main(tmp_path, {"record": {"hashes": {"code": "b"}}}) == 0
    assert not (tmp_path / "checkpoints").exists()


def test_a_pool_waits_for_what_another_one_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first attempt at each run finds it busy; the second one gets it."""
    monkeypatch.setattr(pool, "_SECONDS_TO_TRY_AGAIN", 0.5)
    code = (
        "import sys; from pathlib import Path\n"
        "mark = Path(sys.argv[1], 'tried'); was = mark.exists(); mark.touch()\n"
        "was or sys.exit(75)\n" + FAKE.replace("FAILING", "''")
    )
    waiting = make_pool(tmp_path)
    waiting.command = (sys.executable, "-c", code)
    waiting.study = STUDY.only(["ce"])
    assert waiting.run() == 0
    assert len(calls(tmp_path)) == 3 + 2


def titles(jobs: list[Job]) -> list[str]:
    return [f"{job.method} {job.trial or job.seed}" for job in jobs]


def trial(rate: float, miou: float, method: str = "ce", label: str = "") -> dict[str, Any]:
    label = f"{label}learning_rate={rate}"
    return {"method": method, "model": "fpn", "trial": label, "learning_rate": rate, "metrics": {"miou": miou}}


def finished(method: str, seed: int, miou: float) -> dict[str, Any]:
    return {"method": method, "seed": seed, "heldout": {"miou": miou}}


def test_each_method_is_tuned_and_then_run() -> None:
    trials = [trial(rate, miou) for rate, miou in zip(STUDY.rates, (0.1, 0.3, 0.2), strict=True)]
    jobs = STUDY.jobs({"trials": trials, "runs": [finished("ce", 0, 0.5)]})
    assert titles(jobs) == [
        "ce 1",
        *(
            f"{name} auc_weight={weight},learning_rate=0.002"
            for name in ("auc", "aucseg")
            for weight in (0.5, 1.0, 2.0)
        ),
    ]
    assert [job.config["data"].get("val_split") for job in jobs[:2]] == [None, "heldout"]
    assert jobs[1].config["model"]["loss_options"]["auc_weight"] == 0.5
    # The rate of cross-entropy comes first, with more values where the best lies at the edge.
    best_is_last = [trial(rate, rate) for rate in STUDY.rates]
    assert titles(STUDY.jobs({"trials": best_is_last, "runs": []})) == ["ce learning_rate=0.008"]
    # A trial that failed is not waited for.
    jobs = STUDY.jobs({"trials": trials[:2], "runs": []}, frozenset({Path("search/ce/learning_rate=0.004")}))
    assert titles(jobs)[:2] == ["ce 0", "ce 1"]


def test_a_part_of_the_methods() -> None:
    assert STUDY.only(["aucseg"]).methods == ("ce", "aucseg")
    with pytest.raises(ValueError, match="has no method dice; there are ce, auc, aucseg"):
        STUDY.only(["dice"])


def test_the_best_rival_is_that_of_the_held_out_images(tmp_path: Path) -> None:
    second = SHARED_STUDIES["ccp_segformer"]
    with pytest.raises(ValueError, match="'ccp': run that first"):
        second.resolved(tmp_path)
    runs = [finished(m, seed, miou) for m, miou in (("ce", 0.8), ("auc", 0.9), ("la", 0.5)) for seed in (0, 1)]
    runs += [finished("vs", 0, 0.7), finished("wce-inverse", 0, 0.6), finished("wce-inverse", 1, 0.6)]
    (tmp_path / "ccp.json").write_text(json.dumps({"runs": runs}))
    resolved = second.resolved(tmp_path)
    assert resolved.methods == ("ce", "wce-inverse", "auc-inverse+rfs")  # of vs a seed is missing
    assert resolved.jobs({"trials": [], "runs": []})[0].config["model"]["model"] == "smp/segformer"
    assert best_methods(runs)[:2] == ["auc", "ce"]


def test_another_budget_takes_the_settings_that_were_chosen(tmp_path: Path) -> None:
    longer = replace(STUDY, title="Longer", steps=40, settings_of="small", methods=("ce", "auc"))
    nothing: dict[str, Any] = {"trials": [], "runs": []}
    with pytest.raises(ValueError, match="'small', whose trials of ce are not finished: run that first"):
        longer.resolved(tmp_path).jobs(nothing)
    assert make_pool(tmp_path).run() == 0
    resolved = longer.resolved(tmp_path / "results")
    jobs = resolved.jobs(nothing)
    assert titles(jobs) == ["ce 0", "ce 1", "auc 0", "auc 1"]
    assert {(job.steps, job.rate) for job in jobs} == {(40, 0.002)}
    assert {job.config["model"]["loss_options"]["auc_weight"] for job in jobs if job.method == "auc"} == {4.0}
    small = json.loads((tmp_path / "results/small.json").read_text())
    assert resolved.choices(nothing) == [choice for choice in small["search"] if choice["method"] != "aucseg"]


@pytest.mark.parametrize("name", SHARED_STUDIES)
def test_every_study_has_its_configurations(name: str, tmp_path: Path) -> None:
    study = SHARED_STUDIES[name]
    if study.rival_of is not None:
        (tmp_path / f"{study.rival_of}.json").write_text(json.dumps({"runs": [finished("la", 0, 0.5)]}))
        study = study.resolved(tmp_path)
    study = replace(study, settings_of=None)
    middle = len(study.rates) // 2
    trials = [trial(rate, 0.3 if i == middle else 0.1) for i, rate in enumerate(study.rates)]
    jobs = study.jobs({"trials": trials, "runs": []})
    by_method = {job.method: job.config for job in jobs}
    assert tuple(by_method) == study.methods
    assert sum(job.method == "ce" for job in jobs) == study.seeds
    assert by_method["ce"]["model"]["bank"] is None
    for method in set(by_method) & {"aucseg", "auc-inverse+bank"}:
        assert by_method[method]["model"]["bank"]["protect_classes"] == "middle"
    assert by_method["ce"]["trainer"]["max_steps"] == study.steps
    assert {job.steps for job in jobs if job.trial} <= {study.search_steps}
    assert all(job.config["data"]["val_split"] == "heldout" for job in jobs if job.trial)
    assert set(study.frequent) <= set(DatasetCard.load(study.card_path).class_names)
    if not study.embedded:
        with pytest.raises(ValueError, match="--root"):
            study.data_root(None)


@pytest.mark.parametrize("name", ["freedoom_lt_8000", "rehearsal"])
def test_no_image_is_held_out_and_trained_on(name: str) -> None:
    study = SHARED_STUDIES[name]
    parts = [
        {pair.image for pair in SegmentationDataset(study.card_path, study.data_root(None), split).pairs}
        for split in study.splits()
    ]
    assert all(parts)
    assert len(set().union(*parts)) == sum(map(len, parts))


def test_a_study_wants_the_code_of_a_commit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run.main(["rehearsal", "--device", "cpu", "--code", str(tmp_path)])
    assert "a study is of one commit" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main(["ccp", "--device", "cpu", "--working-tree"])
    assert "give their folder with --root" in capsys.readouterr().err


@pytest.mark.slow
def test_speed_times_each_part(capsys: pytest.CaptureFixture[str]) -> None:
    assert speed.main(["rehearsal", "--device", "cpu", "--steps", "2", "--loaders", "0"]) == 0
    said = capsys.readouterr().out
    assert said.count("loader alone") == 4
    assert all(f"step alone, {size} crops" in said for size in (4, 8))
    assert "validation:" in said
