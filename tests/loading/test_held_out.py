from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aucseg import SegmentationDataModule, SegmentationDataset
from aucseg.loading.folds import fold_of_images
from aucseg.loading.held_out import held_out_images, stratified_split
from aucseg.loading.sequences import sequences_of_names
from tests.conftest import write_tiny_dataset


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(2, 60),
    num_classes=st.integers(1, 6),
    density=st.floats(0.02, 1.0),
    share=st.floats(0.05, 0.9),
    seed=st.integers(0, 1000),
)
def test_every_image_is_in_one_part(length: int, num_classes: int, density: float, share: float, seed: int) -> None:
    image_classes = np.random.default_rng(seed).random((length, num_classes)) < density
    kept, held_out = stratified_split(image_classes, share)
    assert sorted(kept + held_out) == list(range(length))
    assert kept
    assert held_out
    # Each class rounds its own share, and one dealt out late may have to make up for those before it.
    assert abs(len(held_out) - share * length) <= 2 * (num_classes + 1)
    assert (kept, held_out) == stratified_split(image_classes, share)
    counts = image_classes.sum(0)
    if counts[counts > 0].size:
        rarest = int(np.where(counts > 0, counts, length + 1).argmin())
        in_parts = image_classes[kept, rarest].sum(), image_classes[held_out, rarest].sum()
        assert min(in_parts) >= (counts[rarest] >= 2)


def test_rare_classes_are_in_both_parts_where_chance_would_leave_many_out() -> None:
    """Thirty classes of four images each, one class an image beside the background."""
    rare = np.repeat(np.eye(30, dtype=bool), 4, axis=0)
    image_classes = np.zeros((600, 31), bool)
    image_classes[:, 0] = True
    image_classes[:120, 1:] = rare
    kept, held_out = stratified_split(image_classes, 0.25)
    assert len(held_out) == 150
    assert (image_classes[held_out, 1:].sum(0) == 1).all()
    assert (image_classes[kept, 1:].sum(0) == 3).all()
    chance = np.random.default_rng(0).permutation(600)[:150]
    assert (image_classes[chance, 1:].sum(0) == 0).sum() > 3


def test_the_data_module_holds_out_the_rare_class_and_trains_on_it(tiny_card: Path) -> None:
    """Two of the eight training images hold class 3."""
    data = SegmentationDataModule(str(tiny_card), str(tiny_card.parent), held_out_share=0.25, num_workers=0)
    trained, validated = data.training_dataset(None), data.validation_dataset(None)
    assert (len(trained), len(validated)) == (6, 2)
    assert {pair.image for pair in trained.pairs}.isdisjoint(pair.image for pair in validated.pairs)
    for dataset in (trained, validated):
        assert sum((dataset[i]["mask"] == 3).any().item() for i in range(len(dataset))) == 1
    assert int(data.class_counts()[3]) == sum(int((trained[i]["mask"] == 3).sum()) for i in range(len(trained)))


def test_images_with_a_class_each_are_split_none_the_less() -> None:
    kept, held_out = stratified_split(np.eye(3, 4, dtype=bool), 0.25)
    assert (len(kept), len(held_out)) == (2, 1)
    kept, held_out = stratified_split(np.array([[1, 1, 0], [1, 0, 1], [1, 0, 1]]), 0.3)
    assert 0 in kept  # the only image of class 1 is trained on
    assert len(held_out) == 1


def test_a_single_image_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="at least 2, and there is 1: add images"):
        stratified_split(np.ones((1, 2), bool), 0.5)


@settings(max_examples=100, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=2, max_size=20),
    num_classes=st.integers(1, 5),
    share=st.floats(0.05, 0.6),
    seed=st.integers(0, 1000),
)
def test_groups_stay_together(sizes: list[int], num_classes: int, share: float, seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    image_classes = np.random.default_rng(seed).random((len(groups), num_classes)) < 0.3
    kept, held_out = stratified_split(image_classes, share, groups.tolist())
    assert sorted(kept + held_out) == list(range(len(groups)))
    assert kept
    assert held_out
    assert not set(groups[kept]) & set(groups[held_out])
    alone = [c for c in range(num_classes) if len(set(groups[image_classes[:, c]])) == 1]
    if len(alone) == 1:  # a class in one sequence alone is learned
        assert image_classes[kept, alone[0]].any()


@pytest.mark.parametrize(
    ("names", "number"),
    [
        ([f"train/s{i:02}/{j:04}" for i in range(6) for j in range(3)], 6),
        ([f"s{i}_{j:05}_leftImg8bit" for i in range(5) for j in range(4)], 5),
        ([f"images/Seq{i}V_f{j:04}" for i in range(4) for j in range(5)], 4),
        ([f"drive{i}_{j:03}/image" for i in range(4) for j in range(5)], 4),
        ([f"frame_{j:05}" for j in range(50)], None),
        ([f"{j:05}" for j in range(50)], None),
        ([f"day/{j}" for j in range(20)] + [f"night/{j}" for j in range(20)], None),  # two parts are not sequences
        (list("abcdefgh"), None),
    ],
)
def test_names_tell_sequences(names: list[str], number: int | None) -> None:
    found = sequences_of_names(names)
    assert (None if found is None else len(set(found))) == number


def test_whole_sequences_are_held_out_with_the_rare_class_in_both_parts(tmp_path: Path) -> None:
    card = write_tiny_dataset(tmp_path, num_train=40)
    for folder in ("images", "masks"):
        for i, path in enumerate(sorted((tmp_path / folder / "train").iterdir())):
            path.rename(path.with_name(f"drive{i // 5}_{i % 5:03}.png"))
    dataset = SegmentationDataset(str(card), tmp_path)
    found = held_out_images(dataset, 0.25)
    assert found.num_sequences == (2, 8)
    assert "10 of 40 training images, 2 of 8 sequences" in found.describe()
    drives = [{dataset.pairs[i].image.rpartition("_")[0] for i in part} for part in (found.kept, found.held_out)]
    assert not drives[0] & drives[1]
    for part in (found.kept, found.held_out):
        assert any((dataset.read_mask(i) == 3).any() for i in part)
    by_image = held_out_images(dataset, 0.25, by="image")
    assert by_image.num_sequences is None
    assert "sequences" not in by_image.describe()
    # Three may be videos, or something else: that frames of each are on both sides is told.
    for folder in ("images", "masks"):
        for path in (tmp_path / folder / "train").iterdir():
            path.rename(path.with_name(f"drive{int(path.name[5]) % 3}_{path.name[5]}{path.name[7:]}"))
    dataset = SegmentationDataset(str(card), tmp_path)
    for held_out in (held_out_images(dataset, 0.25), fold_of_images(dataset, (0, 2))):
        assert "the names may tell 3 sequences, too few to be kept whole" in held_out.describe()
