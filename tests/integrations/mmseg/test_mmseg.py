"""Runs in an environment of its own: make test-mmseg."""

from pathlib import Path
from typing import Any

import mmseg
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.runner.checkpoint import get_state_dict, load_checkpoint, save_checkpoint, weights_to_cpu
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from PIL import Image
from torch import nn

from aucseg import AUCSegLoss, build_model
from aucseg.integrations.mmseg import AUCSegDataPreProcessor, MMSegAUCSegLoss, TailMemoryBankTransform
from aucseg.models import load_checkpoint as load_our_checkpoint
from aucseg.models import load_encoder_checkpoint
from tests.docs_blocks import ROOT, code_blocks

pytestmark = pytest.mark.slow
register_all_modules(init_default_scope=True)  # mmengine's Runner does this

CONFIGS = Path(mmseg.__file__).parent / ".mim" / "configs"
NUM_CLASSES, TAIL, SIZE = 5, 4, 64
BANK = {"tail_classes": [TAIL], "num_classes": NUM_CLASSES, "sample_ratio": 1.0, "resize_ratio": 1.0, "scope": "image"}
# The stages of ResNet-18, so that two steps take seconds.
NARROW = {2048: 512, 1024: 256, 256: 64}


def zoo_config(name: str) -> Config:
    if name == "segnext":
        config = Config.fromfile(CONFIGS / "segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py").model
        config.backbone.init_cfg = None
    else:
        config = Config.fromfile(CONFIGS / f"_base_/models/{name}_r50-d8.py").model
        config.pretrained = None
        config.backbone.depth = 18
        heads = config.decode_head if isinstance(config.decode_head, list) else [config.decode_head]
        for head in [*heads, *([config.auxiliary_head] if "auxiliary_head" in config else [])]:
            head.in_channels = NARROW[head.in_channels]
            if "c1_in_channels" in head:
                head.c1_in_channels = NARROW[head.c1_in_channels]
    return config


def with_aucseg(config: Config) -> Config:
    """What a user adds: the type of the preprocessor with its bank, and the loss of the last head."""
    config.data_preprocessor.type = "AUCSegDataPreProcessor"
    config.data_preprocessor.bank = BANK
    config.data_preprocessor.size = (SIZE, SIZE)
    heads = config.decode_head if isinstance(config.decode_head, list) else [config.decode_head]
    heads[-1].loss_decode = {"type": "AUCSegLoss", "auc_weight": 1.0}
    for head in [*heads, *([config.auxiliary_head] if "auxiliary_head" in config else [])]:
        head.num_classes = NUM_CLASSES
    return config


def random_batch(*, tail: bool, size: int = SIZE) -> dict[str, Any]:
    """Two samples as a loader gives them; a square of the tail class in the first when asked for."""
    inputs, samples = [], []
    for index in range(2):
        mask = (
            torch.randint(NUM_CLASSES - 1, (1, size // 16, size // 16))
            .repeat_interleave(16, 1)
            .repeat_interleave(16, 2)
        )
        if tail and index == 0:
            mask[:, 8:24, 8:24] = TAIL
        sample = SegDataSample(metainfo={"img_shape": (size, size), "ori_shape": (size, size)})
        sample.gt_sem_seg = PixelData(data=mask)
        inputs.append(torch.randint(256, (3, size, size), dtype=torch.uint8))
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


@pytest.mark.parametrize("name", ["segnext", "deeplabv3plus", "emanet", "ocrnet", "isanet"])
def test_two_training_steps_with_loss_and_bank(name: str) -> None:
    torch.manual_seed(0)
    model = revert_sync_batchnorm(MODELS.build(with_aucseg(zoo_config(name)))).train()
    before = {key: value.clone() for key, value in model.named_parameters()}
    optimizer = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.01))
    bank = model.data_preprocessor.bank
    for tail in (True, False):
        losses = model.train_step(random_batch(tail=tail), optimizer)
        assert torch.isfinite(losses["loss"])
        assert any("loss_aucseg" in key for key in losses)
    assert bank.num_samples == {TAIL: 1}
    # The second batch lacks the class: both of its images got it.
    assert [(image, class_id) for image, class_id, _ in bank.last_pastes] == [(0, TAIL), (1, TAIL)]
    changed = [key for key, value in model.named_parameters() if not torch.equal(value, before[key])]
    assert any(key.startswith("backbone") for key in changed)
    assert any(key.startswith("decode_head") for key in changed)


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_the_same_weights_give_the_same_logits(size: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    ours: Any = build_model(f"segnext/{size}", 150).eval()
    for module in ours.modules():  # statistics and scales that matter
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    config = zoo_config("segnext")
    if size == "small":
        config.backbone.update(embed_dims=[64, 128, 320, 512], depths=[2, 2, 4, 2])
        config.decode_head.in_channels = [128, 320, 512]
    theirs = MODELS.build(config).eval()
    # The paper's checkpoints and ours say mlp.dwconv.dwconv, mmsegmentation 1.x mlp.dwconv.
    theirs.load_state_dict({k.replace("dwconv.dwconv", "dwconv"): value for k, value in ours.state_dict().items()})
    bases = F.normalize(ours.decode_head.hamburger.evaluation_bases, dim=1)
    theirs.decode_head.hamburger.ham._build_bases = lambda batch, *_args, **_kwargs: bases.expand(batch, -1, -1)
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        expected = theirs(images, mode="tensor")
        torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)
    # And back, by way of a file: their checkpoints load here.
    torch.save({"state_dict": theirs.state_dict(), "meta": {}}, tmp_path / "theirs.pth")
    again: Any = build_model(f"segnext/{size}", 150).eval()
    load_our_checkpoint(again, tmp_path / "theirs.pth")
    with torch.no_grad():
        torch.testing.assert_close(again(images), expected, rtol=1e-4, atol=1e-4)
    assert not load_encoder_checkpoint(
        build_model(f"segnext/{size}", 19), tmp_path / "theirs.pth", strict=False
    ).missing


def test_two_lines_of_the_documentation_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration as the page prints it, on files on disk, through mmengine's own runner and loader."""
    monkeypatch.chdir(tmp_path)
    (block,) = [block for block in code_blocks(ROOT / "docs" / "integrations.md") if block.title == "segnext_aucseg.py"]
    Path("segnext_aucseg.py").write_text(block.text)
    Path("configs").symlink_to(CONFIGS)
    for index in range(8):
        mask = np.full((SIZE, SIZE), 1, dtype=np.uint8)  # raw label 1 is class 0 of ADE20K
        mask[:, SIZE // 2 :] = 4
        if index % 2:
            mask[8:40, 8:40] = 1 + 100  # a tail class
        for folder, array in (("images", np.stack([mask] * 3, axis=-1)), ("masks", mask)):
            Path(folder).mkdir(exist_ok=True)
            Image.fromarray(array).save(f"{folder}/{index}.{'jpg' if folder == 'images' else 'png'}")
    config = Config.fromfile("segnext_aucseg.py")
    size = (SIZE, SIZE)
    config.merge_from_dict(
        {
            "work_dir": "runs",
            "model.backbone.init_cfg": None,
            "model.data_preprocessor.size": size,
            "train_dataloader.batch_size": 4,
            "train_dataloader.num_workers": 1,
            "train_dataloader.dataset": {
                "data_root": str(tmp_path),
                "data_prefix": {"img_path": "images", "seg_map_path": "masks"},
            },
            "train_cfg": {"max_iters": 2, "val_interval": 10},
        }
    )
    for step in config.train_dataloader.dataset.pipeline:
        if "crop_size" in step:
            step.crop_size = size
        if "scale" in step:
            step.scale = (2 * SIZE, SIZE)
    for name in ("val_dataloader", "val_cfg", "val_evaluator", "test_dataloader", "test_cfg", "test_evaluator"):
        config[name] = None
    runner = Runner.from_cfg(config)
    runner.train()
    bank = runner.model.data_preprocessor.bank
    assert {class_id for class_id, count in bank.num_samples.items() if count} == {100}
    # The runner's checkpoint holds more than tensors: its state dict is what loads elsewhere.
    saved = Path("runs/iter_2.pth")
    with pytest.raises(ValueError, match="save its state dict alone"):
        load_our_checkpoint(build_model("segnext/tiny", 150), saved)
    torch.save(torch.load(saved, weights_only=False)["state_dict"], "segnext.pth")
    report = load_our_checkpoint(build_model("segnext/tiny", 150), "segnext.pth", strict=False)
    assert not report.missing
    assert all(name.startswith(("data_preprocessor.", "decode_head.conv_seg")) for name in report.unexpected)


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
def test_sizes_of_the_factorization_are_as_documented(size: str) -> None:
    (path,) = (CONFIGS / "segnext").glob(f"segnext_mscan-{size}_1x*-adamw-160k_ade20k-512x512.py")
    assert Config.fromfile(path).model.decode_head.ham_kwargs.MD_R == 16


def test_loss_is_ours_times_its_weight_with_the_ignore_label_of_the_head() -> None:
    torch.manual_seed(0)
    loss = MODELS.build({"type": "AUCSegLoss", "loss_weight": 0.4, "auc_weight": 2.0, "ignore_index": 9})
    logits, target = torch.randn(2, 4, 8, 8), torch.randint(4, (2, 8, 8))
    target[0, :2] = 9
    expected = 0.4 * AUCSegLoss(auc_weight=2.0, ignore_index=9)(logits, target)
    torch.testing.assert_close(loss(logits, target, weight=None, ignore_index=9), expected)
    assert loss.loss_name == "loss_aucseg"
    with pytest.raises(ValueError, match="remove the sampler"):
        loss(logits, target, weight=torch.ones(2, 8, 8), ignore_index=9)
    with pytest.raises(ValueError, match="the head ignores label 255, the loss 9"):
        loss(logits, target)


def test_wrong_options_are_refused_when_built() -> None:
    with pytest.raises(ValueError, match="must contain 'loss'"):
        MMSegAUCSegLoss(loss_name="auc")
    with pytest.raises(ValueError, match="_delete_=True"):
        MMSegAUCSegLoss(use_sigmoid=True)
    with pytest.raises(ValueError, match="surrogate"):
        MMSegAUCSegLoss(surrogate="squre")
    with pytest.raises(ValueError, match="scope='image'"):
        TailMemoryBankTransform(tail_classes=[1], num_classes=2, scope="batch")
    with pytest.raises(TypeError, match="TailMemoryBankTransform has no option 'num_clases'; did you mean num_classes"):
        TailMemoryBankTransform(tail_classes=[1], num_clases=2)
    with pytest.raises(TypeError, match="bank has no option 'num_clases'"):
        AUCSegDataPreProcessor(bank={"tail_classes": [1], "num_clases": 2})


def test_transform_pastes_into_the_packed_sample() -> None:
    torch.manual_seed(0)
    transform = TRANSFORMS.build({"type": "TailMemoryBankTransform", **BANK})
    pack = PackSegInputs()
    image = torch.full((32, 32, 3), 200, dtype=torch.uint8).numpy()
    mask = torch.zeros(32, 32, dtype=torch.uint8).numpy()
    mask[4:12, 4:12] = TAIL
    transform(pack({"img": image, "gt_seg_map": mask}))
    result = transform(pack({"img": image * 0, "gt_seg_map": mask * 0}))
    pasted = result["data_samples"].gt_sem_seg.data
    assert pasted.shape == (1, 32, 32)
    assert int((pasted == TAIL).sum()) == 64
    assert torch.equal(result["inputs"] == 200, (pasted == TAIL).expand(3, -1, -1))


def test_a_warning_says_that_the_edges_of_pastes_are_missing() -> None:
    transform = TRANSFORMS.build({"type": "TailMemoryBankTransform", **BANK})
    packed = PackSegInputs()({"img": np.zeros((8, 8, 3), np.uint8), "gt_seg_map": np.zeros((8, 8), np.uint8)})
    packed["data_samples"].gt_edge_map = PixelData(data=torch.zeros(1, 8, 8))
    with pytest.warns(UserWarning, match="gt_edge_map, in which the edges of what the bank pastes are missing"):
        transform(packed)
    preprocessor = AUCSegDataPreProcessor(bank=BANK, size=(8, 8))
    batch = {"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}
    with pytest.warns(UserWarning, match="gt_edge_map"):
        preprocessor(batch, training=True)


def test_transform_before_packing_is_refused() -> None:
    with pytest.raises(ValueError, match="after PackSegInputs"):
        TailMemoryBankTransform(**BANK)({"img": 0})


def test_evaluation_is_left_alone() -> None:
    options: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3, "bgr_to_rgb": True, "size": (SIZE, SIZE)}
    preprocessor = AUCSegDataPreProcessor(bank=BANK, **options)
    plain = MODELS.build({"type": "SegDataPreProcessor", **options})
    preprocessor(random_batch(tail=True), training=True)
    batch = random_batch(tail=False)
    expected = plain({"inputs": list(batch["inputs"]), "data_samples": batch["data_samples"]})
    assert torch.equal(preprocessor(batch)["inputs"], expected["inputs"])


def test_bank_is_part_of_the_checkpoint(tmp_path: Path) -> None:
    config = with_aucseg(zoo_config("segnext"))
    model = MODELS.build(config)
    model.data_preprocessor(random_batch(tail=True), training=True)
    save_checkpoint({"state_dict": weights_to_cpu(get_state_dict(model)), "meta": {}}, str(tmp_path / "model.pth"))
    other = MODELS.build(config)
    load_checkpoint(other, str(tmp_path / "model.pth"))
    assert other.data_preprocessor.bank.num_samples == {TAIL: 1}
    assert other.data_preprocessor.bank.nbytes == model.data_preprocessor.bank.nbytes > 0


def test_weights_of_other_tail_classes_leave_the_bank_empty(tmp_path: Path) -> None:
    config = with_aucseg(zoo_config("segnext"))
    model = MODELS.build(config)
    model.data_preprocessor(random_batch(tail=True), training=True)
    save_checkpoint({"state_dict": weights_to_cpu(get_state_dict(model)), "meta": {}}, str(tmp_path / "model.pth"))
    config.data_preprocessor.bank.tail_classes = [TAIL - 1]
    other = MODELS.build(config)
    with pytest.warns(UserWarning, match="a bank of other classes .* the bank begins empty"):
        load_checkpoint(other, str(tmp_path / "model.pth"))
    assert other.data_preprocessor.bank.num_samples == {TAIL - 1: 0}
    for (name, a), (_, b) in zip(other.named_parameters(), model.named_parameters(), strict=True):
        assert torch.equal(a, b), name
