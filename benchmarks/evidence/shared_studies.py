"""Studies whose runs several processes on one GPU share, see `benchmarks.evidence.pool`: what each consists of."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aucseg
from aucseg.compare.methods import Configuration, Method, load_base, load_definitions, merged, parse_methods
from aucseg.compare.search import Grid, Outcome, Point, Search, label, outcome, with_settings
from aucseg.compare.tuning import choice_of
from aucseg.safe_files import read_yaml_mapping

_HERE = Path(__file__).parent
HELD_OUT = "heldout"
RATE = "model.learning_rate"
_FIRST = "ce"
BEST_RIVAL = "BEST_RIVAL"
"""Stands for the method that is best on the held-out images of another study, of those without the AUC loss."""


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        part: ``"trials"`` of the search, validated on held-out images, or ``"runs"``, validated on the study's split.
        method: Name in the tables.
        seed: Seed of the run.
        config: The whole configuration, but for the device.
        trial: What a trial is called, such as ``learning_rate=0.004``; empty for a run.
    """

    part: str
    method: str
    seed: int
    config: Configuration
    trial: str = ""

    @property
    def steps(self) -> int:
        return int(self.config["trainer"]["max_steps"])

    @property
    def rate(self) -> float:
        return float(self.config["model"]["learning_rate"])

    @property
    def place(self) -> Path:
        """Folder below that of the study."""
        return Path("search", self.method, self.trial) if self.trial else Path(self.method, f"seed{self.seed}")

    @property
    def title(self) -> str:
        if self.trial:
            return f"{self.method}, {self.trial.replace('=', ' ').replace(',', ', ')}, search"
        return f"{self.method}, learning rate {self.rate:g}, seed {self.seed}"


@dataclass(frozen=True)
class SharedStudy:
    """Methods that are all tuned alike on held-out images, and then run with some seeds.

    First the learning rate of cross-entropy is found. Then each method's main settings are tuned at this rate, and its
    own rate, by the rules of `aucseg.compare.search`.

    Attributes:
        title: Heading in the results.
        text: What is compared.
        card: Name of a card of this folder; its split ``heldout`` chooses, and nothing is trained on it.
        config: Name of the base configuration.
        methods: In the order in which they are run.
        rates: Learning rates that cross-entropy begins with.
        search_steps: Steps of a trial.
        steps: Steps of a run.
        seeds: Number of seeds.
        num_trials: Values that every setting begins with.
        limit: Most trials of any method.
        tunes_rates: Whether methods have learning rates of their own, or that of cross-entropy.
        embedded: Whether the images are part of the package.
        change: Name of a file of changes to the base configuration, for another model.
        rival_of: Study whose held-out images choose `BEST_RIVAL`.
        frequent: Classes over which the mean IoU is reported as well, where others have too few images.
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
    num_trials: int = 3
    limit: int = 7
    tunes_rates: bool = True
    embedded: bool = False
    change: str | None = None
    rival_of: str | None = None
    frequent: tuple[str, ...] = ()

    def resolved(self, results: Path) -> SharedStudy:
        """The study with the method that `BEST_RIVAL` stands for.

        Args:
            results: Folder of the JSON files.

        Raises:
            ValueError: The other study has not been run yet.
        """
        if BEST_RIVAL not in self.methods:
            return self
        path = results / f"{self.rival_of}.json"
        runs = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.is_file() else []
        rivals = best_methods([run for run in runs if is_rival(run["method"])])
        if not rivals:
            raise ValueError(f"'{self.title}' takes the best rival of the study {self.rival_of!r}: run that first")
        return replace(self, methods=tuple(rivals[0] if name == BEST_RIVAL else name for name in self.methods))

    def only(self, methods: Sequence[str]) -> SharedStudy:
        """The study with some of its methods; cross-entropy, whose learning rate they need, is always among them.

        Raises:
            ValueError: The study has no such method.
        """
        unknown = [name for name in methods if name not in self.methods]
        if unknown:
            raise ValueError(f"'{self.title}' has no method {', '.join(unknown)}; there are {', '.join(self.methods)}")
        return replace(self, methods=tuple(name for name in self.methods if name in (_FIRST, *methods)))

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
        """What is to do next, in its order: of each method the trials that are wanted now, or its runs.

        Args:
            result: Finished ``trials`` and ``runs``.
            failed: Places of jobs that failed: nobody waits for them.
        """
        done = {Path(run["method"], f"seed{run['seed']}") for run in result["runs"]} | failed
        jobs: list[Job] = []
        rate = None
        for method in self._parsed():
            if rate is None and method.name != _FIRST:
                break  # the learning rate of cross-entropy comes first
            grids = self._grids(method, rate)
            found, _ = self._search(method, grids, result, failed)
            if found.wanted:
                trials = [self._job("trials", method, 0, grids, point) for point in found.wanted]
                jobs += [job for job in trials if not _is_done(job, result) and job.place not in failed]
            elif found.point is not None:
                if method.name == _FIRST:
                    rate = found.point[-1]
                runs = [self._job("runs", method, seed, grids, found.point) for seed in range(self.seeds)]
                jobs += [job for job in runs if job.place not in done]
        return jobs

    def choices(self, result: Mapping[str, Any], failed: frozenset[Path] = frozenset()) -> list[dict[str, Any]]:
        """What was chosen for the methods whose trials are done, as ``search.json`` of a comparison has it."""
        choices = []
        rate = None
        for method in self._parsed():
            trials = [trial for trial in result["trials"] if trial["method"] == method.name]
            if not trials or (rate is None and method.name != _FIRST):
                continue
            grids = self._grids(method, rate)
            found, scores = self._search(method, grids, result, failed)
            if found.wanted or found.point is None:
                continue
            if method.name == _FIRST:
                rate = found.point[-1]
            choice = choice_of(grids, found, scores)
            choices.append({"model": trials[0]["model"], "method": method.name, **choice})
        return choices

    def _parsed(self) -> list[Method]:
        return parse_methods(self.methods, load_definitions(_HERE / "configs" / "methods.yaml"))

    def _grids(self, method: Method, rate: float | None) -> tuple[Grid, ...]:
        if rate is None or method.name == _FIRST:
            return (Grid(RATE, self.rates),)
        search = Search(self.num_trials, {}, {}, self.limit, rates=self.tunes_rates)
        grids = search.grids_of(method, {**self._base(), "model": {**self._base()["model"], "learning_rate": rate}})
        return grids if any(grid.path == RATE for grid in grids) else (*grids, Grid(RATE, (rate,)))

    def _search(
        self, method: Method, grids: tuple[Grid, ...], result: Mapping[str, Any], failed: frozenset[Path] = frozenset()
    ) -> tuple[Outcome, dict[Point, float | None]]:
        finished = {t["trial"]: t["metrics"]["miou"] for t in result["trials"] if t["method"] == method.name}
        finished |= {place.name: None for place in failed if place.parts[:2] == ("search", method.name)}
        scores: dict[Point, float | None] = {}
        while True:
            found = outcome(grids, self.limit, scores)
            known = {p: finished[label(grids, p)] for p in found.wanted if label(grids, p) in finished}
            if not known:
                return found, scores
            scores |= known

    def _base(self) -> Configuration:
        base = load_base(_HERE / "configs" / f"{self.config}.yaml")
        if self.change is not None:
            change = read_yaml_mapping(_HERE / "configs" / f"{self.change}.yaml")
            base = merged(merged(base, {"model": {"model_options": None}}), change)
        return merged(base, {"data": {"card": str(self.card_path)}, "model": {"pixel_metrics": True}})

    def _job(self, part: str, method: Method, seed: int, grids: tuple[Grid, ...], point: Point) -> Job:
        is_trial = part == "trials"
        steps = self.search_steps if is_trial else self.steps
        settings = {grid.path: value for grid, value in zip(grids, point, strict=True)}
        config = merged(with_settings(method.configure(self._base()), settings), {
            "seed_everything": seed,
            "trainer": {"max_steps": steps, "val_check_interval": steps},
            "data": {"seed": seed} | ({"val_split": HELD_OUT} if is_trial else {}),
        })  # fmt: skip
        return Job(part, method.name, seed, config, label(grids, point) if is_trial else "")


def _is_done(job: Job, result: Mapping[str, Any]) -> bool:
    return any((trial["method"], trial["trial"]) == (job.method, job.trial) for trial in result["trials"])


def is_rival(method: str) -> bool:
    """Whether a method is neither plain cross-entropy nor one with the AUC loss."""
    return method != _FIRST and not method.startswith("auc")


def best_methods(runs: list[dict[str, Any]]) -> list[str]:
    """The methods by their mean IoU on the held-out images, best first; those alone with as many seeds as any."""
    scores: dict[str, list[float]] = {}
    for run in runs:
        if "heldout" in run:
            scores.setdefault(run["method"], []).append(run["heldout"]["miou"])
    most = max(map(len, scores.values()), default=0)
    complete = [method for method, values in scores.items() if len(values) == most]
    return sorted(complete, key=lambda method: -statistics.mean(scores[method]))


_ORDER = ("ce", "wce-inverse", "auc", "aucseg", "auc-inverse", "ce-jml", "ce-dice", "la")
_REST = (
    *("vs", "ldam", "ce-lovasz", "focal", "cb-focal", "wce-effective", "wce-median", "seesaw", "balanced-softmax"),
    *("blv", "ohem", "ce+rcs"),
)
_WITH_BANK = ("ce+bank", "wce-inverse+bank", "ce-jml+bank", "la+bank")
_FEW = ("ce", "wce-inverse", "auc-inverse", "auc", "aucseg")
_SECOND_MODEL = ("ce", BEST_RIVAL, "aucseg")
_RATES = (0.001, 0.002, 0.004, 0.008, 0.016)
_ABOUT = (
    "The learning rate of cross-entropy is the best of five on held-out training images, and more where the best lies "
    "at the edge. Every other method is tuned there with as many trials at most: its main settings, then its own "
    "learning rate. Nothing is trained on the held-out images; offsets of the classes are fitted on them."
)
_ON_GPU = f"FPN with EfficientNet-Lite0 in bfloat16. {_ABOUT}"
_RISING = "Whether cross-entropy has stopped rising at this budget was not measured."
_CPU_ABOUT = (
    "FPN with EfficientNet-Lite0 on the CPU, in float32. The learning rate is the best of three for cross-entropy on "
    "held-out training images, the main setting of every other method the best of three there, and of more where it "
    "lies at the edge. Nothing is trained on the held-out images; offsets of the classes are fitted on them."
)
_CITYSCAPES = "The scores compare methods; they are not comparable with published ones."
# The classes of the data set with at least five test images, the background included.
_CCP_FREQUENT = (
    *("background", "accessories", "bag", "belt", "blazer", "blouse", "boots", "bracelet", "cape", "coat", "dress"),
    *("hair", "hat", "jacket", "jeans", "leggings", "loafers", "necklace", "pants", "purse", "romper", "sandals"),
    *("scarf", "shirt", "shoes", "shorts", "skin", "skirt", "socks", "stockings", "suit", "sunglasses", "sweater"),
    *("sweatshirt", "t-shirt", "top", "vest", "wallet", "watch"),
)

_CITYSCAPES_256 = SharedStudy(
    "Cityscapes at 256 x 256",
    f"{_ON_GPU} 16 crops of 256 x 256, scale 0.5 to 2, 4,000 steps, three seeds. {_CITYSCAPES}",
    card="cityscapes_256",
    config="cityscapes_256",
    methods=(*_ORDER, *_REST),
    rates=_RATES,
    search_steps=1000,
    steps=4000,
)
_CCP = SharedStudy(
    "Clothing Co-Parsing",
    f"{_ON_GPU} 59 classes, 16 crops of 256 x 256, scale 0.5 to 2, 4,000 steps, three seeds; scores on the test split.",
    card="ccp",
    config="ccp",
    methods=(*_ORDER, *_REST),
    rates=_RATES,
    search_steps=1000,
    steps=4000,
    frequent=_CCP_FREQUENT,
)
_FREEDOOM_LT = SharedStudy(
    "Freedoom-LT, 8,000 steps, whole maps held out",
    f"{_ON_GPU} 8 crops of 96 x 128, scale 0.75 to 1.5, 8,000 steps, three seeds.",
    card="freedoom_lt",
    config="freedoom_lt",
    methods=("ce", "wce-inverse", "aucseg", "auc", "wce-inverse+bank", "ce-jml"),
    rates=_RATES,
    search_steps=1000,
    steps=8000,
    embedded=True,
)


def _on_cpu(study: SharedStudy, title: str, text: str) -> SharedStudy:
    return replace(
        study, title=title, text=f"{_CPU_ABOUT} {text}", methods=_FEW, rates=(0.002, 0.004, 0.008), search_steps=400,
        steps=3000, seeds=2, limit=4, tunes_rates=False,
    )  # fmt: skip


def _second_model(study: SharedStudy, name: str) -> SharedStudy:
    text = f"The decoder of SegFormer on the same encoder, two seeds, everything else as in '{study.title}'."
    return replace(
        study, title=f"{study.title}, a second model", text=text, methods=_SECOND_MODEL, seeds=2, change="segformer",
        rival_of=name,
    )  # fmt: skip


SHARED_STUDIES = {
    "cityscapes_256": _CITYSCAPES_256,
    "ccp": _CCP,
    "freedoom_lt_400": replace(
        _FREEDOOM_LT,
        title="Freedoom-LT, 400 steps, whole maps held out",
        text=f"{_ON_GPU} 8 crops of 96 x 128, scale 0.75 to 1.5, 400 steps, five seeds.",
        methods=(*_ORDER, *_WITH_BANK, *_REST),
        search_steps=200,
        steps=400,
        seeds=5,
    ),
    "freedoom_lt_8000": _FREEDOOM_LT,
    "camvid_heldout": SharedStudy(
        "CamVid, 2,400 steps, the end of a drive held out",
        f"{_ON_GPU} 11 classes, input at half size, 8 crops of 192 x 160, 2,400 steps, three seeds; scores on the test "
        "split.",
        card="camvid",
        config="camvid",
        methods=(*_ORDER, *_REST),
        rates=_RATES,
        search_steps=600,
        steps=2400,
    ),
    "cityscapes_256_segformer": _second_model(_CITYSCAPES_256, "cityscapes_256"),
    "ccp_segformer": _second_model(_CCP, "ccp"),
    "cityscapes_256_cpu": _on_cpu(
        _CITYSCAPES_256,
        "Cityscapes at 256 x 256, on the CPU",
        f"16 crops of 256 x 256, 3,000 steps, two seeds. {_RISING} {_CITYSCAPES}",
    ),
    "ccp_cpu": _on_cpu(
        _CCP,
        "Clothing Co-Parsing, on the CPU",
        f"16 crops of 256 x 256, 3,000 steps, two seeds; scores on the test split. {_RISING}",
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
        num_trials=2,
        limit=2,
        tunes_rates=False,
        embedded=True,
    ),
}
