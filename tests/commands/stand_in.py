"""Stands in for `python -m aucseg fit`: leaves what a run leaves, in a fraction of a second.

The metrics follow from the loss, the bank, the seed and `auc_weight`. STAND_IN_LOG names a file that gets a line for
each start; STAND_IN_FAIL a loss whose runs fail; STAND_IN_TERMINATE one
whose run ends its parent; STAND_IN_SECONDS how long it takes. Of launchers it must know nothing.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import yaml


def main() -> None:
    command, _, config_file, _, out = sys.argv[1:6]
    config = yaml.safe_load(Path(config_file).read_text())
    folder, model, seed = Path(out), config["model"], config["seed_everything"]
    with Path(os.environ["STAND_IN_LOG"]).open("a") as log:
        log.write(f"{command} {out}\n")
    time.sleep(float(os.environ.get("STAND_IN_SECONDS", "0")))
    (folder / "options.txt").write_text(" ".join(sys.argv[6:]))
    if os.environ.get("STAND_IN_FAIL") == model["loss"]:
        sys.exit("out of luck")
    if os.environ.get("STAND_IN_TERMINATE") == model["loss"]:
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(60)
    assert not any(name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE") for name in os.environ)
    weight = (model.get("loss_options") or {}).get("auc_weight", 1.0)
    miou = {"ce": 0.4, "la": 0.45, "aucseg": 0.6}.get(model["loss"], 0.3) - 0.05 * abs(weight - 2) + 0.001 * seed
    metrics = {"miou": miou + (0.01 if seed == 1 else 0) * len(model["loss"]), "tail": 0.1, "head": None}
    step = config["trainer"]["max_steps"] if command == "fit" else 0
    (folder / "checkpoints").mkdir(exist_ok=True)
    for name in ("last.ckpt", "previous.ckpt"):
        (folder / "checkpoints" / name).touch()
    (folder / "result.json").write_text(json.dumps({"step": step, "metrics": metrics}))
    cost = {"seconds_per_step": 0.25, "peak_memory": 2_000_000, "device": "cpu"}
    (folder / "cost.json").write_text(json.dumps(cost))


if __name__ == "__main__":
    main()
