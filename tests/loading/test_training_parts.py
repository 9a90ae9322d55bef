import re
from pathlib import Path

import pytest

from aucseg.datasets import SegmentationDataset
from aucseg.loading.training_parts import TrainingParts


def _dataset(card: Path, *left_out: int) -> SegmentationDataset:
    found = SegmentationDataset(str(card), card.parent)
    found.pairs = [pair for index, pair in enumerate(found.pairs) if index not in left_out]
    return found


def _names(dataset: SegmentationDataset) -> set[str]:
    return {pair.name for pair in dataset.pairs}


def _parts(share: float = 0.5, fold: tuple[int, int] | None = None) -> TrainingParts:
    return TrainingParts(share, fold, "image", 0)


def test_parts_of_a_run_stay_whatever_is_added(tiny_card: Path) -> None:
    """The last two images are added later; the run has a fold, and holds images out of the rest."""
    first = _parts(fold=(0, 2))
    held, fold = (_names(part(_dataset(tiny_card, 6, 7))) for part in (first.held_out, first.in_fold))
    later = _parts(fold=(0, 2))
    later.restore(first.state())
    assert _names(later.held_out(_dataset(tiny_card))) == held
    assert _names(later.in_fold(_dataset(tiny_card))) == fold
    assert _names(later.trained_on(_dataset(tiny_card))) == _names(_dataset(tiny_card)) - held - fold
    assert later.describe() == [
        "fold 0 of 2: 3 of 8 training images, those of the checkpoint; there were 6 training images then, and there "
        "are 8 now",
        f"held out: {len(held)} of 5 training images, those of the checkpoint",
    ]
    assert later.state()["num_images"] == 8


def test_images_that_are_gone_are_named(tiny_card: Path) -> None:
    first = _parts()
    held = sorted(_names(first.held_out(_dataset(tiny_card))))
    index = {pair.name: index for index, pair in enumerate(_dataset(tiny_card).pairs)}
    later = _parts()
    later.restore(first.state())
    assert _names(later.held_out(_dataset(tiny_card, index[held[0]]))) == set(held[1:])
    (line,) = later.describe()
    assert f"gone since: {held[0]}; there were 8 training images then, and there are 7 now" in line
    # What is gone for now stays held out.
    assert later.state()["images"]["held_out"] == held
    none = _parts()
    none.restore(first.state())
    with pytest.raises(ValueError, match=f"nothing is there of what was held out in the run.*{held[0]}"):
        none.held_out(_dataset(tiny_card, *(index[name] for name in held)))


def test_a_part_is_the_same_after_files_came_during_the_training(tiny_card: Path) -> None:
    parts = _parts()
    held = _names(parts.held_out(_dataset(tiny_card, 0, 1)))
    assert _names(parts.held_out(_dataset(tiny_card))) == held


def test_images_drawn_before_the_checkpoint_was_known_are_refused(tiny_card: Path) -> None:
    first, later = _parts(), _parts()
    first.held_out(_dataset(tiny_card, 0, 1))
    drawn = _names(later.held_out(_dataset(tiny_card)))
    differing = sorted(drawn ^ set(first.state()["images"]["held_out"]))
    with pytest.raises(ValueError, match=f"such as {re.escape(differing[0])}.*Call load_state_dict"):
        later.restore(first.state())
    same = _parts()
    same.held_out(_dataset(tiny_card, 0, 1))
    same.restore(first.state())


def test_what_was_trained_on_is_not_held_out_later(tiny_card: Path) -> None:
    first, later = _parts(share=0.0), _parts(share=0.5)
    first.trained_on(_dataset(tiny_card))
    later.restore(first.state())
    with pytest.raises(ValueError, match=r"no data.held_out_share, not with data.held_out_share 0.5 and data.held_out"):
        later.held_out(_dataset(tiny_card))
