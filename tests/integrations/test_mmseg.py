"""Runs in an environment of its own: make test-mmseg."""

from pathlib import Path
from typing import Any

import mmseg
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper
from mmengine.runner.checkpoint import get_state_dict, load_checkpoint, save_checkpoint, weights_to_cpu
from mmengine.structures import PixelData
from mmseg.datasets.transforms import PackSegInputs
from mmseg.registry import MODELS, TRANSFORMS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules
from torch import nn

from aucseg import AUCSegLoss, build_model
from aucseg.integrations.mmseg import AUCSegDataPreProcessor, MMSegAUCSegLoss, TailMemoryBankTransform

pytestmark = pytest.mark.slow
register_all_modules(init_default_scope=True)  # mmengine's Runner does this

CONFIGS = Path(mmseg.__file__).parent / ".mim" / "configs"
NUM_CLASSES, TAIL = 5, 4
BANK = {"tail_classes": [TAIL], "num_classes": NUM_CLASSES, "sample_ratio": 1.0, "resize_ratio": 1.0, "scope": "image"}
# The stages of ResNet-18, so that two steps take seconds.
NARROW = {2048: 512, 1024: 256, 256: 64}


def zoo_config(name: str) -> Config:
    if name == "segnext":
        config = Config.fromfile(CONFIGS / "segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512.py").model
        config.backbone.init_cfg = None
        config.data_preprocessor.size = None
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
    heads = config.decode_head if isinstance(config.decode_head, list) else [config.decode_head]
    heads[-1].loss_decode = {"type": "AUCSegLoss", "auc_weight": 1.0}
    for head in [*heads, *([config.auxiliary_head] if "auxiliary_head" in config else [])]:
        head.num_classes = NUM_CLASSES
    return config


def random_batch(*, tail: bool, size: int = 64) -> dict[str, Any]:
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
def test_the_same_weights_give_the_same_logits(size: str) -> None:
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
    theirs.load_state_dict(ours.state_dict())
    bases = F.normalize(ours.decode_head.hamburger.evaluation_bases, dim=1)
    theirs.decode_head.hamburger.ham._build_bases = lambda batch, *_args, **_kwargs: bases.expand(batch, -1, -1)
    images = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images, mode="tensor"), rtol=1e-4, atol=1e-4)


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
    with pytest.raises(ValueError, match="surrogate"):
        MMSegAUCSegLoss(surrogate="squre")
    with pytest.raises(ValueError, match="scope='image'"):
        TailMemoryBankTransform(tail_classes=[1], num_classes=2, scope="batch")


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


def test_transform_before_packing_is_refused() -> None:
    with pytest.raises(ValueError, match="after PackSegInputs"):
        TailMemoryBankTransform(**BANK)({"img": 0})


def test_evaluation_is_left_alone() -> None:
    options: dict[str, Any] = {"mean": [0.0] * 3, "std": [1.0] * 3, "bgr_to_rgb": True}
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
