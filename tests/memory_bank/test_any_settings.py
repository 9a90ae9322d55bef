import copy
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.memory_bank.small_banks import TAIL, colours, make_bank, random_masks, stored

OPTIONS = {
    "scope": st.sampled_from(["image", "batch"]),
    "placement": st.sampled_from(["canvas", "uniform"]),
    "protect_tail": st.booleans(),
    "capacity": st.integers(1, 3),
    "resize_ratio": st.sampled_from([0.3, 1.0, 1.8]),
    "min_pixels": st.sampled_from([1, 9]),
    "max_components": st.sampled_from([1, 4]),
    "max_bytes": st.sampled_from([None, 300, 2000]),
    "protect_classes": st.sampled_from([(), (1, 2)]),
}


@given(
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float16]),
    channels=st.sampled_from([1, 3, 5]),
    channels_last=st.booleans(),
    options=st.fixed_dictionaries(OPTIONS),
    policy=st.sampled_from([{"sample_ratio": ratio} for ratio in (0.0, 0.3, 1.0)] + [{"presence_target": 0.6}]),
)
@settings(deadline=None, max_examples=60)
def test_whatever_the_settings(
    seed: int,
    dtype: torch.dtype,
    channels: int,
    channels_last: bool,
    options: dict[str, Any],
    policy: dict[str, float],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = make_bank(seed, **options, **policy)
    for _ in range(4):
        batch_size, height, width = (int(torch.randint(n, (), generator=generator)) + 1 for n in (3, 30, 30))
        masks = random_masks(generator, batch_size, height, width)
        images = colours(masks, dtype, channels)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        images_before, masks_before = images.clone(), masks.clone()
        earlier = {id(sample["values"]): (sample, copy.deepcopy(sample)) for sample in stored(bank)}
        seen_before = torch.isin(masks, torch.tensor(TAIL, dtype=torch.uint8))

        new_images, new_masks = bank(images, masks)

        # The inputs and what was stored before are untouched, and the bank is within its bounds.
        assert torch.equal(images, images_before)
        assert torch.equal(masks, masks_before)
        for sample, snapshot in earlier.values():
            assert torch.equal(sample["values"], snapshot["values"])
            assert torch.equal(sample["runs"], snapshot["runs"])
        assert bank.max_bytes is None or bank.nbytes <= bank.max_bytes
        assert all(count <= bank.capacity for count in bank.num_samples.values())
        assert new_images.shape == images.shape
        assert new_images.stride() == images.stride() or images.numel() == max(images.shape)
        assert (new_images.dtype, new_masks.dtype) == (images.dtype, masks.dtype)

        # Image and mask change at the same pixels, and every pixel has the colour of its label.
        tolerance = 0 if dtype == torch.uint8 else 0.26
        assert (new_images.float() - colours(new_masks, dtype, channels).float()).abs().max() <= tolerance
        changed = new_masks != masks
        if bank.protect_tail:
            assert not (changed & seen_before).any()
        assert not (changed & torch.isin(masks, torch.tensor(bank.protect_classes, dtype=torch.uint8))).any()

        # Only missing classes were pasted, and the record says which, where and how many pixels.
        recorded = {(image, class_id): count for image, class_id, count in bank.last_pastes}
        assert len(recorded) == len(bank.last_pastes)
        for image in range(batch_size):
            scope = masks if bank.scope == "batch" else masks[image]
            for class_id in TAIL:
                count = int((changed[image] & (new_masks[image] == class_id)).sum())
                assert recorded.get((image, class_id), 0) == count
                assert count == 0 or not (scope == class_id).any()
        assert not (changed & ~torch.isin(new_masks, torch.tensor(TAIL, dtype=torch.uint8))).any()
