"""The Trainer with loss and bank: what it pastes, logs, keeps and refuses. Whole batches: test_whole_batch.py."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from aucseg import AUCSegLoss, PairwiseAUCLoss, TailMemoryBank, build_loss
from aucseg.integrations.hf import AUCSegTrainer
from tests.integrations.whole_batch import ModelOutput, Network

pytestmark = pytest.mark.filterwarnings("ignore")
TAIL, NUM_CLASSES = 4, 5


def samples(num_images: int = 8, *, size: int = 16) -> Any:
    """One image in four has a patch of the rare class."""
    generator = torch.Generator().manual_seed(0)
    data = []
    for index in range(num_images):
        mask = torch.randint(3, (size, size), generator=generator)
        if index % 4 == 0:
            mask[2:8, 2:8] = TAIL
        data.append({"pixel_values": torch.randn(3, size, size, generator=generator).double(), "labels": mask})
    return data


def make_bank() -> TailMemoryBank:
    generator = torch.Generator().manual_seed(0)
    return TailMemoryBank([TAIL], NUM_CLASSES, sample_ratio=1.0, resize_ratio=1.0, scope="image", generator=generator)


def make_trainer(folder: Path, bank: TailMemoryBank | None = None, loss: Any = None, **options: Any) -> AUCSegTrainer:
    settings = {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(folder), **{**settings, **options})
    data: dict[str, Any] = {"train_dataset": samples(), "eval_dataset": samples(4)}
    return AUCSegTrainer(ModelOutput(Network()), arguments, loss=loss or AUCSegLoss(), bank=bank, **data)


class Watching(AUCSegTrainer):
    """Remembers the labels that the model is trained and evaluated with; a Trainer of one's own."""

    trained: list[Tensor]
    evaluated: list[Tensor]

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        self.trained = [*getattr(self, "trained", []), inputs["labels"]]
        return super().training_step(model, inputs, *args, **kwargs)

    def prediction_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.evaluated = [*getattr(self, "evaluated", []), inputs["labels"]]
        return super().prediction_step(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_pastes_in_training_and_never_in_evaluation(tmp_path: Path, accumulation: int) -> None:
    trainer = make_trainer(
        tmp_path,
        make_bank(),
        eval_strategy="steps",
        eval_steps=1,
        max_steps=4,
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    trainer.__class__ = Watching
    trainer.train()
    assert isinstance(trainer, Watching)
    given = samples()
    truth = torch.stack([sample["labels"] for sample in given])
    pasted = [mask for labels in trainer.trained for mask in labels if not (truth == mask).flatten(1).all(1).any()]
    assert pasted
    assert all(bool((mask == TAIL).any()) for mask in pasted)
    assert len(trainer.evaluated) == 4
    for labels in trainer.evaluated:
        assert torch.equal(labels, torch.stack([sample["labels"] for sample in samples(4)]))
    evaluation = next(entry for entry in reversed(trainer.state.log_history) if "eval_loss" in entry)
    images = torch.stack([sample["pixel_values"] for sample in samples(4)])
    with torch.no_grad():
        expected = AUCSegLoss()(trainer.model(images)["logits"], labels)  # type: ignore[misc]
    assert evaluation["eval_loss"] == pytest.approx(expected.item(), rel=1e-3)


def test_a_loss_without_sums_trains_without_accumulation(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, loss=build_loss("focal"))
    trainer.train()
    assert len([entry for entry in trainer.state.log_history if "loss" in entry]) == 2


def test_last_update_of_an_epoch_with_fewer_parts(tmp_path: Path) -> None:
    """Eight images in threes: an update of two parts, three and two, then one of two images."""
    trainer = make_trainer(
        tmp_path, max_steps=-1, num_train_epochs=1, per_device_train_batch_size=3, gradient_accumulation_steps=2
    )
    trainer.train()
    assert trainer.state.global_step == 2
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[1] == pytest.approx(losses[0], rel=0.5)  # each that of a whole, not of half of one


def test_resumed_with_the_bank_of_the_checkpoint(tmp_path: Path) -> None:
    first, second = make_bank(), make_bank()
    make_trainer(tmp_path, first, save_strategy="steps", save_steps=1).train()
    resumed = make_trainer(tmp_path, second, save_strategy="steps", save_steps=1, max_steps=2)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))  # where nothing is left to train
    expected, found = first.get_extra_state(), second.get_extra_state()
    assert torch.equal(found["generator"], expected["generator"])
    assert [len(of_class) for of_class in found["samples"]] == [len(of_class) for of_class in expected["samples"]]
    assert any(found["samples"])
    (tmp_path / "checkpoint-2" / "tail_memory_bank_0.pt").unlink()
    without = make_trainer(tmp_path, make_bank(), save_strategy="steps", save_steps=1, max_steps=2)
    with pytest.warns(UserWarning, match=r"tail_memory_bank_0\.pt is missing: the bank of process 0 starts empty"):
        without.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    by_sorting = PairwiseAUCLoss("hinge", scores="identity")
    for loss in (by_sorting, build_loss("focal")):
        with pytest.raises(ValueError, match=r"gradient_accumulation_steps is 2.*per_device_train_batch_size"):
            make_trainer(tmp_path, loss=loss, gradient_accumulation_steps=2)
    with pytest.raises(TypeError, match="pass loss="):
        AUCSegTrainer(ModelOutput(Network()), loss=AUCSegLoss(), compute_loss_func=print)
    trainer = make_trainer(tmp_path)
    trainer.train_dataset = [
        {"pixel_values": sample["pixel_values"], "masks": sample["labels"]} for sample in samples()
    ]
    with pytest.raises(ValueError, match=r"not \['labels'\].*remove_unused_columns=False"):
        trainer.train()


def test_what_would_be_left_out_of_the_loss_is_named(tmp_path: Path) -> None:
    model = ModelOutput(Network())
    model.config = SimpleNamespace(use_auxiliary_head=True)  # type: ignore[assignment]
    arguments = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.warns(UserWarning, match="its auxiliary head is not trained"):
        AUCSegTrainer(model, arguments, loss=AUCSegLoss())
    arguments.label_smoothing_factor = 0.1
    with pytest.raises(ValueError, match=r"AUCSegLoss\(label_smoothing=0\.1\)"):
        AUCSegTrainer(model, arguments, loss=AUCSegLoss())


def test_own_trainers_are_extended(tmp_path: Path) -> None:
    class Own(Trainer):
        steps = 0

        def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
            self.steps += 1
            return super().training_step(*args, **kwargs)

    class Both(AUCSegTrainer, Own):
        pass

    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=2)
    trainer.__class__ = Both
    trainer.train()
    assert isinstance(trainer, Both)
    assert trainer.steps == 4


class ImagesOnly(torch.nn.Module):
    """A model whose forward() knows no labels and gives its logits in some form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.network, self.form = Network(), form

    def forward(self, pixel_values: Tensor, mask_labels: Any = None) -> Any:
        logits = self.network(pixel_values)
        forms: dict[str, Any] = {"dict": {"logits": logits}, "out": {"out": logits}, "tuple": (logits,)}
        forms |= {"tensor": logits, "object": SimpleNamespace(logits=logits)}
        return forms.get(self.form, {"class_queries_logits": logits, "masks_queries_logits": logits})


@pytest.mark.parametrize("form", ["dict", "out", "tuple", "tensor", "object"])
def test_a_model_without_labels_in_its_signature_is_evaluated(tmp_path: Path, form: str) -> None:
    model = ImagesOnly(form)
    trainer = AUCSegTrainer(
        model,
        make_trainer(tmp_path, remove_unused_columns=False).args,
        loss=AUCSegLoss(),
        train_dataset=samples(),
        eval_dataset=samples(4),
        compute_metrics=lambda found: {"shape": list(found.predictions.shape)},
    )
    trainer.train()
    result: dict[str, Any] = trainer.evaluate()
    images, labels = (torch.stack([sample[key] for sample in samples(4)]) for key in ("pixel_values", "labels"))
    with torch.no_grad():
        expected = AUCSegLoss()(model.network(images), labels)
    assert result["eval_loss"] == pytest.approx(expected.item())
    assert result["eval_shape"] == [4, NUM_CLASSES, 16, 16]


def test_an_output_without_logits_is_named(tmp_path: Path) -> None:
    arguments = make_trainer(tmp_path, remove_unused_columns=False).args
    trainer = AUCSegTrainer(ImagesOnly("queries"), arguments, loss=AUCSegLoss(), train_dataset=samples())
    with pytest.raises(TypeError, match=r"dict with class_queries_logits, masks_queries_logits; expected logits"):
        trainer.train()
