"""Predictions in files: every number against scikit-learn and scipy, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score, jaccard_score, precision_score, recall_score, roc_auc_score

from aucseg.report.evaluation import Evaluation, evaluate_predictions
from aucseg.report.runs import read_run
from tests.report.predicted_folders import NAMES, NUM_CLASSES, probabilities, truths, write_cases, write_nnunet

Labels = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cases(tmp_path_factory.mktemp("cases"))


@pytest.fixture(scope="module")
def nnunet(card: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_nnunet(tmp_path_factory.mktemp("out") / "nnunet", probabilities(card, 2.0))


def evaluate(folder: Path, card: Path, **options: object) -> Evaluation:
    return evaluate_predictions(folder, card, card.parent, **options)  # type: ignore[arg-type]


def counted(card: Path, labels: Labels) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Truth and prediction of all pixels that count."""
    truth = truths(card)
    return tuple(np.concatenate([part[case][truth[case] != 255] for case in truth]) for part in (truth, labels))  # type: ignore[return-value]


def band_iou(card: Path, labels: Labels, class_id: int) -> float:
    sums = np.zeros(2)
    for case, truth in truths(card).items():
        masks = [(part == class_id) & (truth != 255) for part in (truth, labels[case])]
        width = max(1, round(0.02 * np.hypot(*truth.shape)))
        bands = [m & ~ndimage.binary_erosion(m, np.ones((3, 3)), iterations=width) for m in masks]
        sums += [(bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()]
    return float(sums[0] / sums[1])


def found(card: Path, labels: Labels, class_id: int) -> list[int]:
    counts = [0, 0]
    for case, truth in truths(card).items():
        components, number = ndimage.label(truth == class_id, np.ones((3, 3)))
        for i in range(1, number + 1):
            counts[0] += int((labels[case][components == i] == class_id).mean() >= 0.5)
            counts[1] += 1
    return counts


def test_a_folder_of_nnunet_equals_scikit_learn(card: Path, nnunet: Path) -> None:
    evaluation = evaluate(nnunet, card)
    scores = probabilities(card, 2.0)
    labels = {case: values.argmax(0).astype(np.uint8) for case, values in scores.items()}
    true, predicted = counted(card, labels)
    result = evaluation.result
    ids = range(NUM_CLASSES)
    np.testing.assert_allclose(
        list(result["per_class_iou"].values()), jaccard_score(true, predicted, average=None), rtol=1e-6
    )
    per_class = {key: [result["per_class"][name][key] for name in NAMES] for key in result["per_class"][NAMES[0]]}
    np.testing.assert_allclose(per_class["precision"], precision_score(true, predicted, average=None), rtol=1e-6)
    np.testing.assert_allclose(per_class["recall"], recall_score(true, predicted, average=None), rtol=1e-6)
    np.testing.assert_allclose(per_class["boundary_iou"], [band_iou(card, labels, c) for c in ids], rtol=1e-6)
    assert [np.sum(counts, 0).tolist() for counts in per_class["objects"]] == [found(card, labels, c) for c in ids]
    at_pixels = np.concatenate(
        [s[:, truth != 255] for s, truth in zip(scores.values(), truths(card).values(), strict=True)], 1
    )
    for c in ids:
        ap = average_precision_score(true == c, at_pixels[c])
        assert per_class["average_precision"][c] == pytest.approx(ap, abs=2e-3)
        pairs = [roc_auc_score(true[m] == c, at_pixels[c][m]) for o in ids if o != c for m in [np.isin(true, [c, o])]]
        assert per_class["auroc"][c] == pytest.approx(np.mean(pairs), abs=1e-3)
    metrics = result["metrics"]
    assert metrics["middle"] == pytest.approx(np.mean([result["per_class_iou"][name] for name in NAMES[1:3]]))
    assert metrics["tail_ap"] == pytest.approx(per_class["average_precision"][3])
    by_image = [
        jaccard_score(t[t != 255], labels[case][t != 255], labels=np.unique(t[t != 255]), average="macro")
        for case, t in truths(card).items()
    ]
    assert metrics["image_miou"] == pytest.approx(np.mean(by_image))
    assert metrics["image_worst"] == pytest.approx(min(by_image))
    found_all = np.sum([found(card, labels, c) for c in ids], 0)
    sizes = np.sum([result["per_class"][name]["objects"] for name in NAMES], 0)
    assert sizes.sum(0).tolist() == found_all.tolist()
    hits, total = found(card, labels, 3)
    assert metrics["tail_found"] == pytest.approx(hits / total)


def test_its_files_are_those_of_a_run(card: Path, nnunet: Path, tmp_path: Path) -> None:
    evaluation = evaluate(nnunet, card)
    evaluation.write(tmp_path / "e")
    run = read_run(tmp_path / "e")
    assert run.status == "predictions for 6 images, split val"
    assert run.is_finished
    assert run.confusion is not None
    assert run.confusion.tolist() == evaluation.confusion
    assert set(run.roc) == {"gem"}
    assert run.per_class["gem"]["average_precision"] == pytest.approx(run.metrics["tail_ap"])
    assert sorted(run.images) == [f"imagesTs/case_{i:03}_0000" for i in range(6)]


def test_labels_in_any_form_are_the_same(card: Path, nnunet: Path, tmp_path: Path) -> None:
    expected = evaluate(nnunet, card)
    scores = probabilities(card, 2.0)
    colors = np.array([(0, 0, 0), (200, 60, 60), (60, 200, 60), (60, 60, 220)], np.uint8)
    for kind in ("tif", "npy", "rgb", "int64", "scores", "last", "logits"):
        folder = tmp_path / kind / "deep"
        folder.mkdir(parents=True)
        for case, values in scores.items():
            labels = values.argmax(0).astype(np.uint8)
            if kind == "tif":
                Image.fromarray(labels.astype(np.uint16)).save(folder / f"{case}_pred.tif")
            elif kind == "rgb":
                Image.fromarray(colors[labels]).save(folder / f"{case}.png")
            elif kind in ("npy", "int64"):
                np.save(folder / f"{case.upper()}.npy", labels[None] if kind == "npy" else labels.astype(np.int64))
            elif kind == "logits":
                np.save(folder / f"{case}.npy", np.log(values).astype(np.float64))
            else:
                np.savez(folder / f"{case}.npz", values if kind == "scores" else values.transpose(1, 2, 0))
        evaluation = evaluate(tmp_path / kind, card)
        assert evaluation.confusion == expected.confusion, kind
        has_scores = kind in ("scores", "last", "logits")
        assert ("auroc" in evaluation.result["metrics"]) == has_scores, kind
        if has_scores:
            for name in ("auroc", "tail_ap"):
                assert evaluation.result["metrics"][name] == pytest.approx(expected.result["metrics"][name], abs=1e-4)


def test_missing_extra_and_misshapen_files_are_named(card: Path, nnunet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(nnunet, folder)
    for ending in ("png", "npz"):
        (folder / f"case_001.{ending}").rename(folder / f"case_901.{ending}")
        (folder / f"case_002.{ending}").unlink()
    Image.new("L", (20, 40)).save(folder / "case_003.png")
    Image.fromarray(np.full((40, 52), 9, np.uint8)).save(folder / "case_004.png")
    (folder / "case_005.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="5 of 6 images cannot be evaluated") as caught:
        evaluate(folder, card)
    message = str(caught.value)
    for part in (
        "no prediction for imagesTs/case_001_0000, imagesTs/case_002_0000",
        "case_003.png: the prediction is 20 x 40 (width x height), the truth 52 x 40",
        "case_004.png: 2073 pixels that count are predicted as no class of the card (values 9, read as train ids)",
        "case_005.png: not a readable image",
        "of none of the images: case_901.npz, case_901.png",
        "--partial",
    ):
        assert part in message
    evaluation = evaluate(folder, card, partial=True)
    assert sorted(evaluation.images) == ["imagesTs/case_000_0000"]
    assert len(evaluation.left_out) == evaluation.result["num_left_out"] == 5
    assert evaluation.extra == ["case_901.npz", "case_901.png"]


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (np.zeros((5, 40, 52), np.float32), r"scores of shape \(5, 40, 52\), but the card has 4 classes"),
        (np.zeros((4, 20, 26), np.float32), r"write them as \(4, 40, 52\)"),
        (np.full((4, 40, 52), np.nan, np.float32), "not finite numbers"),
        (np.full((4, 40, 52), 3.0, np.float32), "scores from 3 to 3, but those of other images"),
    ],
)
def test_scores_that_do_not_fit(
    card: Path, nnunet: Path, tmp_path: Path, scores: NDArray[np.float32], message: str
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(nnunet, folder)
    np.savez(folder / "case_002.npz", scores)
    with pytest.raises(ValueError, match=message):
        evaluate(folder, card)


def test_a_card_without_groups_and_images_without_scores(card: Path, nnunet: Path, tmp_path: Path) -> None:
    text = card.read_text()
    bare = card.with_name("bare.yaml")
    bare.write_text(text[: text.index("groups:")] + text[text.index("ignore_ids:") :])
    folder = tmp_path / "out"
    shutil.copytree(nnunet, folder)
    (folder / "case_002.npz").unlink()
    evaluation = evaluate(folder, bare)
    assert evaluation.result["groups"] == {"head": [0, 1, 2, 3], "middle": [], "tail": []}
    assert "auroc" not in evaluation.result["metrics"]
    assert evaluation.notes == [
        "the card names no groups; by share of the labelled pixels: head from 2 %, tail below 0.5 %",
        "no AUC and average precision: no scores for imagesTs/case_002_0000",
    ]


def test_two_classes_with_one_score_a_pixel(tmp_path: Path) -> None:
    card = write_cases(tmp_path / "data")
    text = card.read_text().replace("- box", "").replace("- crate", "")
    for path in (tmp_path / "data" / "labelsTs").glob("*.png"):
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 255, 255, mask > 0).astype(np.uint8)).save(path)
    head = "classes: [{name: back}, {name: thing}]\nignore_ids: [255]\nname: two\n"
    card.write_text(head + text[text.index("splits:") :])
    (tmp_path / "out").mkdir()
    rng = np.random.default_rng(0)
    scores = {case: rng.random((1, *truth.shape)).astype(np.float32) for case, truth in truths(card).items()}
    for case, values in scores.items():
        np.save(tmp_path / "out" / f"{case}.npy", values)
    evaluation = evaluate(tmp_path / "out", card)
    true, predicted = counted(card, {case: (values[0] > 0.5).astype(np.uint8) for case, values in scores.items()})
    iou = jaccard_score(true, predicted, average=None)
    np.testing.assert_allclose(list(evaluation.result["per_class_iou"].values()), iou, rtol=1e-6)
    pixels = np.concatenate([scores[case][0][truth != 255] for case, truth in truths(card).items()])
    assert evaluation.result["metrics"]["auroc"] == pytest.approx(roc_auc_score(true, pixels), abs=1e-3)


def test_result_files_hold_no_nan(card: Path, nnunet: Path, tmp_path: Path) -> None:
    evaluate(nnunet, card).write(tmp_path / "e")
    for path in (tmp_path / "e").glob("*.json"):
        assert "NaN" not in path.read_text()
        json.loads(path.read_text())
