"""Which image file an annotation means, and how large it is."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from aucseg.datasets.annotations.label_studio import without_prefix
from aucseg.datasets.annotations.made_folders import made_folders, source_files
from aucseg.datasets.annotations.model import AnnotationError, Annotations
from aucseg.datasets.files import image_sizes
from aucseg.datasets.naming import split_of_path
from aucseg.datasets.tree import IMAGE_ENDINGS, Tree, normalized


class ImageFiles:
    """The image files below a folder, found by as much of a path as they share with it.

    Args:
        annotations: Their root is searched, without the folders that hold no images or that `aucseg masks` made.
    """

    def __init__(self, annotations: Annotations) -> None:
        self.root = annotations.root
        tree = Tree(self.root)
        self.made_folders = made_folders(tree)
        excluded = [folder.resolve() for folder in annotations.not_images]
        self.paths = [
            path
            for path in source_files(tree, IMAGE_ENDINGS)
            if not any((self.root / path).resolve().is_relative_to(folder) for folder in excluded)
        ]
        self._by_name: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}
        for path in self.paths:
            self._by_name.setdefault(normalized(PurePosixPath(path).name), []).append(path)
            self._by_stem.setdefault(normalized(PurePosixPath(path).stem), []).append(path)

    def find(self, file_name: str, split: str | None) -> tuple[str, int]:
        """Returns the path, below the root, of the image that is meant, and how many folders it shares with the name.

        Of files with one name that with most folders in common is taken, then that of the split.

        Raises:
            AnnotationError: None, several, or one of another split.
        """
        wanted = [part for part in file_name.split("/") if part not in ("", ".", "..")]
        name = wanted[-1] if wanted else file_name
        candidates = (
            self._by_name.get(normalized(name))
            or self._by_name.get(normalized(without_prefix(name)))
            or (self._by_stem.get(normalized(name)) if "." not in name else None)
            or []
        )
        if not candidates:
            raise AnnotationError(f"there is no image {file_name} below {self.root} (--images)")
        shared = {path: common_end(PurePosixPath(path).parent.parts, tuple(wanted[:-1])) for path in candidates}
        best = [path for path in candidates if shared[path] == max(shared.values())]
        if len(best) > 1 and split is not None:
            best = [path for path in best if split_of_path(str(PurePosixPath(path).parent)) == split] or best
        if len(best) > 1 and "/".join(wanted) in best:
            best = ["/".join(wanted)]
        if len(best) > 1:
            raise AnnotationError(
                f"the image {file_name} may be {' or '.join(best[:3])}; move away all but one, or narrow the folder of "
                "images (--images)"
            )
        found_split = split_of_path(str(PurePosixPath(best[0]).parent))
        # The path of another machine may name a split anywhere.
        own_split = split if split is not None or shared[best[0]] else split_of_path("/".join(wanted[:-1]))
        if contradict(own_split, found_split):
            raise AnnotationError(
                f"there is no image {file_name} of split {own_split} below {self.root}, but {best[0]}, of another one"
            )
        return best[0], shared[best[0]]


def contradict(one: str | None, other: str | None) -> bool:
    """Whether two names of splits are known and differ."""
    return one is not None and other is not None and one != other


def common_end(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """How many folders two paths have in common, counted from the last one."""
    count = 0
    for a, b in zip(reversed(one), reversed(other), strict=False):
        if normalized(a) != normalized(b):
            break
        count += 1
    return count


def size_drawn_on(path: Path, size: tuple[int, int] | None, relative_to_shown: bool) -> tuple[tuple[int, int], str]:
    """Returns the size of the mask of an image, and how the card must read an orientation tag.

    Args:
        path: The image.
        size: (height, width) of the annotations; None where they do not say.
        relative_to_shown: Whether annotations without a size are drawn on the picture as shown.

    Returns:
        (height, width), and `error`, `ignore` or `apply`: `error` where nothing turns, or nothing tells.

    Raises:
        ValueError: The file cannot be read, or has another size.
    """
    stored, shown = image_sizes(path)
    if size is None:
        size = shown if relative_to_shown else stored
    if size not in (stored, shown):
        raise AnnotationError(
            f"its annotations are drawn on {size[1]} x {size[0]} (width x height), the image {path} is {stored[1]} x "
            f"{stored[0]}; find the image that was annotated"
        )
    return size, "error" if stored == shown else "apply" if size == shown else "ignore"
