"""What the names of folders and files say: images or masks, which split, which picture."""

from __future__ import annotations

import re
from functools import lru_cache

from aucseg.datasets.tree import normalized

MASK, IMAGE = "mask", "image"


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SPLITS = {
    "train": _set("train training trainset trainval trn tr"),
    "val": _set("val valid validation validate valset dev eval"),
    "test": _set("test testing testset tst"),
}
_SPLIT_OF_WORD = {word: split for split, words in _SPLITS.items() for word in words}
_MASK_WORDS = _set(
    "mask masks label labels lbl lbls annot annots annotation annotations anno annos ann anns gt gts groundtruth "
    "groundtruths truth seg segs segmentation segmentations segmap segmaps target targets"
)
_IMAGE_WORDS = _set(
    "im ims img imgs image images photo photos picture pictures pic pics rgb input inputs frame frames scan scans "
    "jpegimages"
)
# Words that leave a name what its other words make it.
_NEUTRAL = _set(
    "png jpg jpeg tif tiff bmp bit bits left right fine coarse class classes id ids color colour colored colors gray "
    "grey binary semantic instance instances panoptic coco json raw all set data dataset final new full resized crop "
    "crops original tiles patches ground of the and my"
)
_NEGATIONS = _set("with without no non")
_UNLABELLED = _set("unlabeled unlabelled unannotated")
# Between the parts of a name: a separator, a change from lower to upper case, a digit.
_BOUNDARY = r"(?:[_.\- ]+|(?<=\d)|(?-i:(?<=[a-z0-9])(?=[A-Z])))"
_AFFIX = "|".join(
    sorted(
        {"gtFine", "leftImg8bit", "labelIds", "ground[_ ]?truth", *_MASK_WORDS, *_IMAGE_WORDS}, key=len, reverse=True
    )
)
_SUFFIX = re.compile(rf"(?:(?:^|{_BOUNDARY})(?:{_AFFIX}))+$", re.IGNORECASE)
_PREFIX = re.compile(rf"^(?:(?:{_AFFIX})(?:[_.\- ]+|(?=\d)))+", re.IGNORECASE)


@lru_cache(maxsize=4096)
def words(name: str) -> tuple[str, ...]:
    """Returns the words of a name in lower case, without numbers.

    Example:
        >>> words("gtFine_labelIds2"), words("trainannot"), words("Washington")
        (('gt', 'fine', 'label', 'ids'), ('train', 'annot'), ('washington',))
    """
    found: list[str] = []
    for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+", name):
        word = normalized(part)
        for split in _SPLIT_OF_WORD:
            rest = word.removeprefix(split)
            if rest != word and rest in _MASK_WORDS | _IMAGE_WORDS:
                found += [split, rest]
                break
        else:
            found.append(word)
    return tuple(found)


def kind_of_name(name: str) -> str | None:
    """Returns whether a name says `mask` or `image`, or None.

    Example:
        >>> kind_of_name("SegmentationClass"), kind_of_name("images_png"), kind_of_name("with_mask")
        ('mask', 'image', None)
    """
    telling = [word for word in words(name) if word not in _NEUTRAL and word not in _SPLIT_OF_WORD]
    if not telling or _NEGATIONS & set(telling):
        return None
    # Among words that say nothing the first and the last count: "crack_masks", "gt_boxes".
    ends = telling if all(_kind_of_word(word) for word in telling) else [telling[0], telling[-1]]
    kinds = {_kind_of_word(word) for word in ends}
    return MASK if MASK in kinds else IMAGE if IMAGE in kinds else None


def _kind_of_word(word: str) -> str | None:
    return MASK if word in _MASK_WORDS else IMAGE if word in _IMAGE_WORDS else None


def split_of_path(folder: str) -> str | None:
    """Returns `train`, `val` or `test` where the folder nearest the root that names a split says so, or None.

    Example:
        >>> split_of_path("training/images"), split_of_path("images/valencia"), split_of_path("val2017")
        ('train', None, 'val')
    """
    for part in folder.split("/"):
        telling = [word for word in words(part) if word not in _NEUTRAL and _kind_of_word(word) is None]
        splits = {_SPLIT_OF_WORD.get(word) for word in telling}
        if len(splits) == 1 and None not in splits:
            return splits.pop()
    return None


def is_unlabelled(folder: str) -> bool:
    """Returns whether a folder's path says that its images have no masks."""
    return any(_UNLABELLED & set(words(part)) for part in folder.split("/"))


def affixes(stem: str) -> tuple[str, str, str]:
    """Splits a stem in what says "image" or "mask" before it, the rest, and the same behind it.

    Example:
        >>> affixes("img_01"), affixes("a_b_gtFine_labelIds"), affixes("Washington")
        (('img_', '01', ''), ('', 'a_b', '_gtFine_labelIds'), ('', 'Washington', ''))
    """
    suffix = _SUFFIX.search(stem)
    end = suffix.start() if suffix else len(stem)
    prefix = _PREFIX.match(stem[:end])
    start = prefix.end() if prefix else 0
    return stem[:start], stem[start:end], stem[end:]


@lru_cache(maxsize=65536)
def picture_of(stem: str) -> str:
    """Returns what the stems of an image and of its mask have in common."""
    return normalized(affixes(stem)[1])


@lru_cache(maxsize=65536)
def place_of(folder: str) -> tuple[str, ...]:
    """Returns what the folders of images and of their masks have in common: all that says neither.

    Example:
        >>> place_of("images/training/a") == place_of("train/masks/a")
        True
    """
    parts = []
    for part in folder.split("/"):
        if kind_of_name(part) is None and split_of_path(part) is None:
            parts.append(normalized(part))
        else:
            rest = [w for w in words(part) if w not in _NEUTRAL and _kind_of_word(w) is None]
            numbers = re.findall(r"\d+(?!\d|bit|px)", part)
            parts += [" ".join([_SPLIT_OF_WORD.get(w, w) for w in rest] + numbers)] if rest or numbers else []
    return tuple(sorted(parts))
