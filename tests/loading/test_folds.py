from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aucseg.loading.folds import fold_of_images, stratified_folds
from aucseg.training.datamodule import SegmentationDataModule
from tests.conftest import write_tiny_dataset


@st.composite
def _cases(draw: st.DrawFn) -> tuple[np.ndarray, int, list[int] | None]:
    length = draw(st.integers(2, 40))
    num_classes = draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**20)))
    classes = rng.random((length, num_classes)) < draw(st.sampled_from([0.05, 0.3, 0.9]))
    groups = rng.integers(0, draw(st.integers(1, length)), length).tolist() if draw(st.booleans()) else None
    num_units = length if groups is None else len(set(groups))
    return classes, draw(st.integers(2, max(2, min(num_units, 8)))), groups


@given(_cases())
def test_every_image_is_in_one_fold_groups_are_whole_and_it_is_always_the_same(
    case: tuple[np.ndarray, int, list[int] | None],
) -> None:
    classes, num_folds, groups = case
    if groups is not None and len(set(groups)) < num_folds:
        with pytest.raises(ValueError, match="give fewer"):
            stratified_folds(classes, num_folds, groups)
        return
    folds = stratified_folds(classes, num_folds, groups)
    assert folds.shape == (len(classes),)
    sizes = np.bincount(folds, minlength=num_folds)
    assert len(sizes) == num_folds  # one number each, of the folds that there are
    assert sizes.min() >= 1
    if groups is None:
        assert sizes.max() <= -(-len(classes) // num_folds)
    else:
        assert len(set(zip(groups, folds.tolist(), strict=True))) == len(set(groups))
    np.testing.assert_array_equal(folds, stratified_folds(classes, num_folds, groups))


@given(st.lists(st.integers(0, 3), min_size=4, max_size=40), st.integers(2, 4))
def test_classes_that_do_not_share_images_are_spread_as_evenly_as_can_be(labels: list[int], num_folds: int) -> None:
    folds = stratified_folds(np.eye(4, dtype=bool)[labels], num_folds)
    for label in set(labels):
        in_folds = np.bincount(folds[np.asarray(labels) == label], minlength=num_folds)
        assert in_folds.max() - in_folds.min() <= 1
    sizes = np.bincount(folds, minlength=num_folds)
    assert sizes.max() - sizes.min() <= 1


def test_a_large_group_does_not_leave_a_fold_empty() -> None:
    groups = [0] * 96 + [1, 2, 3, 4]
    folds = stratified_folds(np.ones((100, 1), bool), 5, groups)
    assert sorted(np.bincount(folds).tolist()) == [1, 1, 1, 1, 96]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images of eight drives; the rare class is in four of these."""
    card = write_tiny_dataset(tmp_path_factory.mktemp("folds"), num_train=16, num_val=1)
    for folder in ("images", "masks"):
        for index in range(16):
            path = card.parent / folder / "train" / f"frame_{index:02d}.png"
            path.rename(path.with_name(f"drive{'abcdefgh'[index // 2]}_{index:02d}.png"))
    return card


def _names(data: SegmentationDataModule) -> tuple[set[str], set[str]]:
    training, validation = data.training_dataset(None), data.validation_dataset(None)
    return tuple({pair.name for pair in dataset.pairs} for dataset in (training, validation))  # type: ignore[return-value]


def _data(card: Path, **options: Any) -> SegmentationDataModule:
    return SegmentationDataModule(str(card), str(card.parent), num_workers=0, **options)


def test_folds_of_a_data_module(card: Path) -> None:
    whole = {pair.name for pair in _data(card).training_dataset(None).pairs}
    seen: list[str] = []
    for number in range(4):
        data = _data(card, fold=(number, 4))
        training, validation = _names(data)
        assert training | validation == whole
        assert not training & validation
        drives = [{name.partition("_")[0] for name in names} for names in (training, validation)]
        assert not drives[0] & drives[1]
        # One of the four drives with the rare class in each fold.
        gems = data.validation_dataset(None)
        assert any((gems[index]["mask"] == 3).any() for index in range(len(gems)))
        assert data.validation_name == f"fold {number} of 4"
        assert data.parts.describe() == [
            f"fold {number} of 4: 4 of 16 training images, 2 of 8 sequences that their names tell"
        ]
        seen += validation
        # What is held out for offsets or to choose settings by comes from the images that are trained on.
        for validates in (True, False):
            more = _data(card, fold=(number, 4), held_out_share=0.25, validate_held_out=validates)
            held = {pair.name for pair in more.held_out_dataset(None).pairs}
            assert held < training
            assert _names(more) == (training - held, held if validates else validation)
    assert sorted(seen) == sorted(whole)
    alone = _data(card, fold=(0, 16), held_out_by="image")
    assert len(alone.validation_dataset(None)) == 1


def test_wrong_folds_are_told(card: Path) -> None:
    with pytest.raises(ValueError, match=r"fold must be \[number, how many\].*got \[5, 5\]"):
        _data(card, fold=(5, 5))
    with pytest.raises(ValueError, match="with held_out_share and fold"):
        _data(card, fold=(0, 5), statistics="statistics.json")
    with pytest.raises(ValueError, match=r"9 folds of 8 sequences.*data.held_out_by to image"):
        fold_of_images(_data(card).dataset("train", None), (0, 9))
    with pytest.raises(ValueError, match="17 folds of 16 images: give fewer"):
        fold_of_images(_data(card).dataset("train", None), (0, 17), by="image")
    with pytest.raises(ValueError, match="at least 2 folds"):
        stratified_folds(np.ones((4, 1), bool), 1)
