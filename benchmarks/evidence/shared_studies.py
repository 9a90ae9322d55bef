"""Studies whose runs several processes share, on a GPU or here: what each consists of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.evidence.shared_study import BEST_RIVAL, SharedStudy

_ORDER = (
    "ce",
    "wce-inverse",
    "auc-inverse+rfs",
    "wce-inverse+rfs",
    "auc",
    "aucseg",
    "auc-inverse",
    "ce-jml",
    "ce-dice",
    "la",
)
_REST = (
    *("vs", "ldam", "ce-lovasz", "focal", "cb-focal", "wce-effective", "wce-median", "seesaw", "balanced-softmax"),
    *("blv", "ohem", "ce+rcs", "ce+rfs"),
)
_WITH_BANK = ("ce+bank", "wce-inverse+bank", "auc-inverse+bank", "auc-inverse+bank+rfs", "ce-jml+bank", "la+bank")
_WITH_RECIPE = (
    *("ce", "wce-inverse", "auc-inverse+bank", "wce-inverse+bank", "auc-inverse+bank+rfs", "auc-inverse", "aucseg"),
    "auc",
)
_FEW = ("ce", "wce-inverse", "auc-inverse+rfs", "wce-inverse+rfs", "auc")
_SECOND_MODEL = ("ce", BEST_RIVAL, "auc-inverse+rfs")  # what `aucseg stats` advises on these two data sets
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
    "lies at the edge. Nothing is trained on the held-out images; offsets of the classes are fitted on them. "
    "Seconds a step are those of a machine with other work to do."
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
_FREEDOOM_LT_400 = replace(
    _FREEDOOM_LT,
    title="Freedoom-LT, 400 steps, whole maps held out",
    text=f"{_ON_GPU} 8 crops of 96 x 128, scale 0.75 to 1.5, 400 steps, five seeds.",
    methods=(*_ORDER, *_WITH_BANK, *_REST),
    search_steps=200,
    steps=400,
    seeds=5,
    options={"model": {"warmup_steps": 50}},
)


def _on_cpu(study: SharedStudy, title: str, text: str, **changes: Any) -> SharedStudy:
    return replace(
        study, title=f"{title}, on the CPU", text=f"{_CPU_ABOUT} {text}", rates=(0.002, 0.004, 0.008), limit=6,
        tunes_rates=False, **changes,
    )  # fmt: skip


def _at_3000_steps(study: SharedStudy, text: str) -> SharedStudy:
    """8 crops of 128 x 128, an eighth of the pixels of the study: 20 minutes a run instead of some hours."""
    return _on_cpu(
        study, study.title, f"8 crops of 128 x 128, scale 0.5 to 1, 3,000 steps, two seeds{text}", methods=_FEW,
        search_steps=400, steps=3000, seeds=2, options={
            "model": {"warmup_steps": 100},
            "data": {"batch_size": 8, "crop_size": [128, 128], "scale": [0.5, 1.0]},
        },
    )  # fmt: skip


def _other_budget(study: SharedStudy, name: str, steps: int, seeds: int = 2, **changes: Any) -> SharedStudy:
    text = (
        f"As '{study.title}', with {steps:,} steps and the settings that its trials chose; no settings were tuned for "
        "this budget."
    )
    title = f"{study.title}, {steps:,} steps"
    return replace(study, title=title, text=text, steps=steps, seeds=seeds, settings_of=name, **changes)


def _second_model(study: SharedStudy, name: str) -> SharedStudy:
    text = f"The decoder of SegFormer on the same encoder, two seeds, everything else as in '{study.title}'."
    return replace(
        study, title=f"{study.title}, a second model", text=text, methods=_SECOND_MODEL, seeds=2, change="segformer",
        rival_of=name,
    )  # fmt: skip


_CITYSCAPES_256_CPU = _at_3000_steps(_CITYSCAPES_256, f". {_CITYSCAPES}")
_CCP_CPU = _at_3000_steps(_CCP, f"; scores on the test split. {_RISING}")
_FREEDOOM_LT_CPU = _on_cpu(
    _FREEDOOM_LT_400,
    "Freedoom-LT, 400 steps, whole maps held out",
    "8 crops of 96 x 128, scale 0.75 to 1.5, 400 steps, five seeds.",
    methods=(*_WITH_RECIPE, *(name for name in (*_ORDER, *_WITH_BANK, *_REST) if name not in _WITH_RECIPE)),
)

SHARED_STUDIES = {
    "cityscapes_256": _CITYSCAPES_256,
    "ccp": _CCP,
    "freedoom_lt_400": _FREEDOOM_LT_400,
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
    "cityscapes_256_cpu": _CITYSCAPES_256_CPU,
    "cityscapes_256_750_cpu": _other_budget(_CITYSCAPES_256_CPU, "cityscapes_256_cpu", 750),
    "cityscapes_256_1500_cpu": _other_budget(_CITYSCAPES_256_CPU, "cityscapes_256_cpu", 1500),
    "ccp_cpu": _CCP_CPU,
    "ccp_750_cpu": _other_budget(_CCP_CPU, "ccp_cpu", 750),
    "freedoom_lt_400_cpu": _FREEDOOM_LT_CPU,
    "freedoom_lt_2000_cpu": _other_budget(
        replace(_FREEDOOM_LT_CPU, title="Freedoom-LT, whole maps held out, on the CPU"),
        "freedoom_lt_400_cpu",
        2000,
        methods=("ce", "wce-inverse", "auc-inverse+bank", "wce-inverse+bank"),
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
