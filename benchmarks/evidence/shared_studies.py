"""Studies whose runs several processes on one GPU share, see `benchmarks.evidence.pool`: what each consists of."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aucseg
from aucseg.compare.methods import Configuration, at_path, load_base, load_definitions, merged, parse_methods

_HERE = Path(__file__).parent
HELD_OUT = "heldout"
RATE = "model.learning_rate"
_SEARCHED = "ce"
_FACTORS = (0.5, 2.0)


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        part: ``"trials"`` of the search, validated on held-out images, or ``"runs"``, validated on the study's split.
        method: Name in the tables.
        seed: Seed of the run.
        rate: Learning rate.
        config: The whole configuration, but for the device.
    """

    part: str
    method: str
    seed: int
    rate: float
    config: Configuration

    @property
    def steps(self) -> int:
        return int(self.config["trainer"]["max_steps"])

    @property
    def place(self) -> Path:
        """Folder below that of the study."""
        if self.part == "trials":
            return Path("search", self.method, f"learning_rate={self.rate}")
        return Path(self.method, f"seed{self.seed}")

    @property
    def title(self) -> str:
        end = "search" if self.part == "trials" else f"seed {self.seed}"
        return f"{self.method}, learning rate {self.rate:g}, {end}"


@dataclass(frozen=True)
class SharedStudy:
    """Methods at one learning rate, found with cross-entropy on held-out images; then the best methods at others.

    Attributes:
        title: Heading in the results.
        text: What is compared.
        card: Name of a card of this folder; its split ``heldout`` chooses, and nothing is trained on it.
        config: Name of the base configuration.
        methods: In the order in which they are run, all seeds of one before the next.
        rates: Learning rates of the search.
        search_steps: Steps of a trial.
        steps: Steps of a run.
        seeds: Number of seeds.
        refined: How many of the best methods are run at half and double the learning rate, too.
        embedded: Whether the images are part of the package.
    """

    title: str
    text: str
    card: str
    config: str
    methods: tuple[str, ...]
    rates: tuple[float, ...]
    search_steps: int
    steps: int
    seeds: int = 3
    refined: int = 2
    embedded: bool = False

    @property
    def card_path(self) -> Path:
        return _HERE / "cards" / f"{self.card}.yaml"

    def data_root(self, given: Path | None) -> Path:
        """The folder of the images.

        Raises:
            ValueError: None is given, but the images are not part of the package.
        """
        if given is not None:
            return given
        if not self.embedded:
            raise ValueError(f"the data of '{self.title}' are not part of the package: give their folder with --root")
        return Path(aucseg.__file__).parent / "datasets" / "freedoom_lt"

    def splits(self) -> tuple[str, ...]:
        """The splits of the card that the study reads."""
        return ("train", HELD_OUT, str(self._base()["data"].get("val_split", "val")))

    def jobs(self, result: Mapping[str, Any], failed: frozenset[Path] = frozenset()) -> list[Job]:
        """What is to do next, in its order: the trials; when all are done, the runs; then those at other rates.

        Args:
            result: Finished ``trials`` and ``runs``.
            failed: Places of jobs that failed: nobody waits for them.
        """
        done = {Path("search", trial["method"], trial["trial"]) for trial in result["trials"]}
        done |= {Path(run["method"], f"seed{run['seed']}") for run in result["runs"]}

        def left(jobs: list[Job]) -> list[Job]:
            return [job for job in jobs if job.place not in done and job.place not in failed]

        trials = [self._job("trials", _SEARCHED, 0, rate) for rate in self.rates]
        rate = chosen_rate(result["trials"])
        if left(trials) or rate is None:
            return left(trials)
        runs = [self._job("runs", method, seed, rate) for method in self.methods for seed in range(self.seeds)]
        if left(runs):
            return left(runs)
        best = best_methods(result["runs"], self.methods, self.seeds)[: self.refined]
        return left([
            self._job("runs", method, seed, factor * rate, f"{method}@{factor:g}")
            for method in best
            for factor in _FACTORS
            for seed in range(self.seeds)
        ])  # fmt: skip

    def _base(self) -> Configuration:
        base = load_base(_HERE / "configs" / f"{self.config}.yaml")
        return merged(base, {"data": {"card": str(self.card_path)}, "model": {"pixel_metrics": True}})

    def _job(self, part: str, method: str, seed: int, rate: float, name: str | None = None) -> Job:
        (parsed,) = parse_methods([method], load_definitions(_HERE / "configs" / "methods.yaml"))
        steps = self.search_steps if part == "trials" else self.steps
        config = merged(parsed.configure(self._base()), at_path(RATE, rate))
        config = merged(config, {
            "seed_everything": seed,
            "trainer": {"max_steps": steps, "val_check_interval": steps},
            "data": {"seed": seed} | ({"val_split": HELD_OUT} if part == "trials" else {}),
        })  # fmt: skip
        return Job(part, name or method, seed, rate, config)


_ORDER = ("ce", "auc", "wce-inverse-0.25", "auc-inverse-0.25", "aucseg", "ce-dice")
_REST = (
    "la",
    "vs",
    "balanced-softmax",
    "seesaw",
    "focal",
    "cb-focal",
    "wce-effective",
    "ohem",
    "lovasz",
    "ldam",
    "blv",
)
_ABOUT = (
    "FPN with EfficientNet-Lite0 in bfloat16. One learning rate, the best of five for cross-entropy on held-out "
    "training images; half and double of it for the two methods that are best there. Nothing is trained on the "
    "held-out images; offsets of the classes are fitted on them."
)
SHARED_STUDIES = {
    "cityscapes_256": SharedStudy(
        "Cityscapes at 256 x 256",
        f"{_ABOUT} 16 crops of 256 x 256, scale 0.5 to 2, 4,000 steps, three seeds. The scores compare methods; they "
        "are not comparable with published ones.",
        card="cityscapes_256",
        config="cityscapes_256",
        methods=(*_ORDER, *_REST),
        rates=(0.001, 0.002, 0.004, 0.008, 0.016),
        search_steps=1000,
        steps=4000,
    ),
    "ccp": SharedStudy(
        "Clothing Co-Parsing",
        f"{_ABOUT} 59 classes, 16 crops of 256 x 256, scale 0.5 to 2, 4,000 steps, three seeds; scores on the "
        "test split.",
        card="ccp",
        config="ccp",
        methods=(*_ORDER, *_REST),
        rates=(0.001, 0.002, 0.004, 0.008, 0.016),
        search_steps=1000,
        steps=4000,
    ),
    "freedoom_lt_8000": SharedStudy(
        "Freedoom-LT, 8,000 steps, whole maps held out",
        f"{_ABOUT} 8 crops of 96 x 128, scale 0.75 to 1.5, 8,000 steps, three seeds.",
        card="freedoom_lt",
        config="freedoom_lt",
        methods=(*_ORDER, *_REST),
        rates=(0.001, 0.002, 0.004, 0.008, 0.016),
        search_steps=1000,
        steps=8000,
        embedded=True,
    ),
    "rehearsal": SharedStudy(
        "Rehearsal",
        "The whole way in miniature, for a machine without a GPU: 20 steps on some images of Freedoom-LT. No evidence.",
        card="rehearsal",
        config="rehearsal",
        methods=("ce", "aucseg"),
        rates=(0.002, 0.004),
        search_steps=10,
        steps=20,
        seeds=1,
        refined=1,
        embedded=True,
    ),
}


def chosen_rate(trials: list[dict[str, Any]]) -> float | None:
    """The learning rate with the highest mean IoU on the held-out images."""
    if not trials:
        return None
    best = max(trials, key=lambda trial: trial["metrics"]["miou"])
    return float(best["learning_rate"])


def best_methods(runs: list[dict[str, Any]], methods: tuple[str, ...], seeds: int) -> list[str]:
    """The methods by their mean IoU on the held-out images, best first; those alone of which all seeds are there."""
    scores = {m: [run["heldout"]["miou"] for run in runs if run["method"] == m] for m in methods}
    complete = [method for method, values in scores.items() if len(values) == seeds]
    return sorted(complete, key=lambda method: -statistics.mean(scores[method]))
