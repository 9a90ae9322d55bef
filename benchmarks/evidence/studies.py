"""The studies behind `docs/results/`: what each compares, as arguments of `aucseg compare`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from aucseg.compare.methods import DISALIGN, POSTHOC

HERE = Path(__file__).parent
RESULTS = HERE / "results"
_CONFIGS = HERE / "configs"
_FREEDOOM = _CONFIGS / "freedoom_lt_before.yaml"

_RIVALS = (
    *("wce-inverse", "wce-median", "wce-effective", "focal", "cb-focal", "ohem", "ldam", "la", "vs"),
    *("balanced-softmax", "blv", "seesaw", "dice", "lovasz"),
)
# Two methods that are chosen by the scores of the main study's search, see `best_rivals`.
RIVALS_WITH_BANK = "RIVALS+bank"
_NUMBER_OF_RIVALS = 2
# Suffixes of methods that go on from another one's trained model.
SECOND_STAGES = (f"+{POSTHOC}", f"+{DISALIGN}")


@dataclass(frozen=True)
class Study:
    """One comparison.

    Attributes:
        title: Heading in the results.
        text: What is compared, for the results.
        methods: As for `--methods`; `RIVALS_WITH_BANK` stands for the two best rivals of the main study.
        seeds: Number of seeds.
        options: Further options of `aucseg compare`.
        needs_root: Whether the data are not in the package, so that `--root` must be given.
        joins: Study to whose table the results are added.
        from_main: Methods whose runs are those of the main study, which has chosen the settings that they have here.
        pairs: Methods to compare with each other, besides all with the baseline.
    """

    title: str
    text: str
    methods: tuple[str, ...]
    seeds: int
    options: tuple[str, ...]
    needs_root: bool = False
    joins: str | None = None
    from_main: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()

    @property
    def number_of_runs(self) -> int:
        return self.seeds * sum(_NUMBER_OF_RIVALS if name == RIVALS_WITH_BANK else 1 for name in self.methods)

    def arguments(self, out: Path, root: Path | None, results: Path) -> list[str]:
        """The arguments of `aucseg compare`.

        Args:
            out: Folder of the runs.
            root: Folder of data that are not in the package.
            results: Folder of the results so far.

        Raises:
            ValueError: No root is given but needed, or the rivals are not chosen yet.
        """
        if self.needs_root and root is None:
            raise ValueError(f"the data of '{self.title}' are not part of the package: give their folder with --root")
        methods = [name for method in self.methods for name in _expanded(method, results)]
        arguments = ["--methods", ",".join(methods), "--seeds", ",".join(map(str, range(self.seeds)))]
        if root is not None and self.needs_root:
            arguments += ["--root", str(root)]
        return [*arguments, *self.options, "--out", str(out), "--discard-checkpoints"]


_METHODS = ("--methods-file", str(_CONFIGS / "methods.yaml"))
_SHORT = ("--config", str(_FREEDOOM), "--steps", "400")
_UNTUNED = (*_SHORT, *_METHODS)
# Three trials of every method, as many as the AUC weight has values here.
_MAIN = (*_UNTUNED, "--search", "auc_weight=1,2,4", "--search-steps", "200")

_CAMVID = ("--config", str(_CONFIGS / "camvid.yaml"))
_TRANSFORMER = ("--models", str(_CONFIGS / "tiny_vit.yaml"))
_RATES = "0.001,0.002,0.004,0.008,0.012"
_BY_RATE = ("ce", "wce-inverse-0.25", "auc-4", "aucseg-4")


def _camvid_budget(steps: int, text: str, *methods: str, seeds: int = 1) -> Study:
    options = (*_CAMVID, "--steps", str(steps), *_METHODS)
    return Study(f"CamVid, {steps:,} steps", text, methods, seeds, options, needs_root=True)


STUDIES = {
    "learning_rate": Study(
        "Freedoom-LT, the learning rate",
        "How the learning rate of the base configuration was chosen: five rates, 250 steps each, judged on a quarter "
        "of the training images that was held out; then 500 steps at the best rate of each method. One seed.",
        _BY_RATE,
        1,
        (
            *("--config", str(_FREEDOOM), "--steps", "500", *_METHODS, "--search-steps", "250"),
            *(part for name in _BY_RATE for part in ("--search", f"{name}:model.learning_rate={_RATES}")),
        ),
    ),
    "main": Study(
        "Freedoom-LT, all methods",
        "One convolutional model (FPN, EfficientNet-Lite0), 400 steps, five seeds. The main setting of every method "
        "was tuned with three trials on a quarter of the training images that was held out. `aucseg-ratio` uses the "
        "policy of the paper's code: it pastes a share of the missing classes and protects only the tail. "
        "`aucseg-weighted` has mild class weights in its cross-entropy (inverse frequency with power 0.15, which was "
        "better than 0.25 in two more trials than the other methods had); `wce-mild+bank` is the same without the "
        "AUC loss.",
        (
            *("ce", "auc", "aucseg", "aucseg-ratio", "aucseg-weighted"),
            *_RIVALS,
            *("ce+rcs", "ce+bank", "ce+posthoc-la", "ce+disalign"),
        ),
        5,
        _MAIN,
        pairs=(
            ("aucseg", "wce-effective"),
            ("aucseg", "wce-inverse+bank"),
            ("aucseg", "wce-mild+bank"),
            ("aucseg-weighted", "wce-mild+bank"),
            ("aucseg-weighted", "aucseg"),
        ),
    ),
    "rivals_with_bank": Study(
        "Freedoom-LT, the best rivals with the bank",
        "The bank beside the two losses that were best on the held-out images.",
        (RIVALS_WITH_BANK,),
        5,
        (*_UNTUNED, "--search", "auto", "--search-steps", "200"),
        joins="main",
    ),
    "mild_weights": Study(
        "Freedoom-LT, weaker class weights beside the bank",
        "What `aucseg-weighted` is without the AUC loss. Not tuned.",
        ("wce-mild+bank",),
        5,
        _UNTUNED,
        joins="main",
    ),
    "steps_2000": Study(
        "Freedoom-LT, 2,000 steps",
        "Five times the budget of the main study, one seed, with the settings that the main study chose.",
        ("ce", "aucseg"),
        1,
        ("--config", str(_FREEDOOM), "--steps", "2000", *_METHODS),
    ),
    "steps_8000": Study(
        "Freedoom-LT, 8,000 steps",
        "Twenty times the budget of the main study, one seed, with the settings that the main study chose; "
        "cross-entropy still improves from 2,000 to 8,000 steps. `aucseg-1` has AUC weight 1 instead of 2.",
        ("ce", "aucseg", "wce-inverse-0.25", "aucseg-weighted", "aucseg-1"),
        1,
        ("--config", str(_FREEDOOM), "--steps", "8000", *_METHODS),
    ),
    "second_model": Study(
        "Freedoom-LT, a second model",
        "The decoder of SegFormer instead of the feature pyramid, on the same encoder; 400 steps, three seeds, with "
        "the settings that the main study chose.",
        ("ce", "wce-inverse-0.25", "dice-0.002", "auc", "aucseg"),
        3,
        ("--config", str(_CONFIGS / "freedoom_lt_segformer.yaml"), "--steps", "400", *_METHODS),
    ),
    "transformer_rate": Study(
        "Freedoom-LT, the transformer's learning rate",
        "Four rates, 200 steps each, judged on a quarter of the training images that was held out; then 400 steps at "
        "the best rate. One seed.",
        ("ce",),
        1,
        (
            *(*_UNTUNED, *_TRANSFORMER, "--search-steps", "200"),
            *("--search", "ce:model.learning_rate=0.0005,0.001,0.002,0.004"),
        ),
    ),
    "transformer": Study(
        "Freedoom-LT, a transformer",
        "TinyViT-5M with the weights of MobileSAM and the decoder of SegFormer; 400 steps, three seeds, with the "
        "settings that the main study chose and the learning rate that is best for cross-entropy.",
        ("ce", "wce-inverse-0.25", "dice", "auc", "aucseg"),
        3,
        (*_UNTUNED, *_TRANSFORMER),
        pairs=(("aucseg", "wce-inverse-0.25"), ("auc", "wce-inverse-0.25")),
    ),
    "camvid": Study(
        "CamVid",
        "Photographs: 11 classes, test split, input at half size, 600 steps. Not tuned on these data: settings and "
        "learning rate are those that the main study chose. Published test mIoU at full size with longer "
        "training: ENet 51.3, SegNet 60.1, DeepLab-LFOV 61.6, Dilation8 65.3, FC-DenseNet103 66.9.",
        ("ce", "wce-inverse-0.25", "dice", "auc", "aucseg", "auc-weighted"),
        3,
        (*_CAMVID, "--steps", "600", *_METHODS),
        needs_root=True,
        pairs=(("auc", "wce-inverse-0.25"), ("auc", "dice")),
    ),
    "camvid_1200": _camvid_budget(
        1200,
        "Twice the steps of [CamVid](camvid.md), everything else as there; three seeds. `auc-1` has AUC weight 1.",
        "ce",
        "auc-1",
        "auc",
        seeds=3,
    ),
    "camvid_2400": _camvid_budget(
        2400,
        "Four times the steps of [CamVid](camvid.md), everything else as there; three seeds.",
        "ce",
        "auc",
        seeds=3,
    ),
    "camvid_4800": _camvid_budget(
        4800,
        "Eight times the steps of [CamVid](camvid.md), everything else as there; one seed. `auc-1` has the default AUC "
        "weight, 1 instead of 2.",
        "ce",
        "auc-1",
    ),
    "ablation": Study(
        "Freedoom-LT, ablation",
        "400 steps, three seeds, not tuned: each row changes one setting of AUCSeg, or uses one of its parts alone. "
        "`ratio-...` pastes that share of the missing classes instead of aiming at a presence target.",
        (
            *("ce", "auc", "ce+bank", "aucseg"),
            *("surrogate-hinge", "surrogate-exponential", "scores-softmax", "aucseg-1", "aucseg-4"),
            *("ratio-0.2", "ratio-1", "resize-0.4", "capacity-1", "placement-canvas", "scope-batch"),
        ),
        3,
        (*_SHORT, "--methods-file", str(_CONFIGS / "ablation.yaml")),
        from_main=("ce", "auc", "aucseg"),
        pairs=(("ratio-0.2", "aucseg"), ("aucseg-1", "aucseg")),
    ),
}


def best_rivals(results: Path) -> list[str]:
    """The losses with the best scores in the main study's search, which never saw the validation split.

    Raises:
        ValueError: The main study has not tuned all of them yet.
    """
    path = results / "main.json"
    search = json.loads(path.read_text(encoding="utf-8"))["search"] if path.is_file() else []
    scores = {
        choice["method"]: max(score for score in choice["scores"].values() if score is not None)
        for choice in search
        if choice["method"] in _RIVALS
    }
    missing = [method for method in _RIVALS if method not in scores]
    if missing:
        raise ValueError(
            "the best rivals are those of the main study's search: run the study 'main' first (not tuned yet: "
            f"{', '.join(missing)})"
        )
    return sorted(scores, key=lambda method: -scores[method])[:_NUMBER_OF_RIVALS]


def _expanded(method: str, results: Path) -> list[str]:
    if method == RIVALS_WITH_BANK:
        return [f"{rival}+bank" for rival in best_rivals(results)]
    return [method]
