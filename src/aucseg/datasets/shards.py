"""Samples from shards: WebDataset-style tar archives, on disk or behind a URL."""

from __future__ import annotations

import glob
import itertools
import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch.utils.data import IterableDataset, get_worker_info

from aucseg.datasets.card import DatasetCard
from aucseg.datasets.dataset import Sample, SegmentationDataset, decode_sample
from aucseg.datasets.files import SampleError
from aucseg.datasets.label_map import LabelMap
from aucseg.datasets.tree import IMAGE_ENDINGS, MASK_ENDINGS
from aucseg.hints import check_choice, counted, import_extra

_logger = logging.getLogger(__name__)
_IMAGE, _MASK = "image.*", "mask.*"
_IMAGE_KINDS = tuple(IMAGE_ENDINGS)
# Masks are never compressed with loss.
_MASK_KINDS = tuple(MASK_ENDINGS - {".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".avif"})


class StreamedSegmentationDataset(IterableDataset[Sample]):
    """The samples in tar shards, as `SegmentationDataset` gives them.

    A sample is the files of a shard that share their name up to the first dot, one of them the image, one the mask,
    their bytes as on disk. Shards are dealt out to ranks (`torch.distributed`, where it runs) and then to the
    loader's workers. Without shuffling one process yields the samples in the order of shards and files.

    Args:
        card: A card, the name of one that comes with the package, or the path of a card file.
        urls: Shards: paths, URLs, or patterns with braces such as `train-{0000..0099}.tar`, of paths also with
            `*` and `?`. A command (`pipe:`) is refused.
        transform: Called with each sample; its result is yielded.
        shuffle: Samples in the shuffle buffer; 0 keeps the order. Otherwise the shards are shuffled too.
        seed: Seed of the shuffling, mixed with the epoch.
        on_error: `raise`, or `skip`: count, log and leave out what cannot be read.
        image: Pattern of the image's ending (what follows the first dot).
        mask: Pattern of the mask's ending; None for shards without masks. Where neither of the usual patterns fits,
            the endings tell if there is one image and one mask, such as a `.jpg` beside a `.png`.
        train_ids: Whether the masks hold train ids already.

    Raises:
        ValueError: No shard, a pattern that fits no file, a `pipe:` URL, fewer shards than ranks.
        ImportError: `webdataset` is not installed.
    """

    def __init__(
        self,
        card: DatasetCard | str | Path,
        urls: str | Path | Sequence[str | Path],
        *,
        transform: Callable[[Sample], Sample] | None = None,
        shuffle: int = 0,
        seed: int = 0,
        on_error: str = "raise",
        image: str = _IMAGE,
        mask: str | None = _MASK,
        train_ids: bool = False,
    ) -> None:
        check_choice("on_error", on_error, ("raise", "skip"))
        if shuffle < 0:
            raise ValueError(f"shuffle is the size of a buffer, at least 0, got {shuffle}")
        self.urls = shard_urls(urls)
        self.card = card if isinstance(card, DatasetCard) else DatasetCard.load(card)
        self.label_map = LabelMap(self.card, train_ids=train_ids)
        self.transform, self.shuffle, self.seed, self.on_error = transform, shuffle, seed, on_error
        self.image, self.mask = image, mask
        # Shared memory: what a loader's workers skip, and the epoch that they are told, cross processes.
        self._num_skipped = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def num_skipped(self) -> int:
        """How many samples were left out so far, in all worker processes."""
        return int(self._num_skipped)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order of the shuffling; call it before each epoch."""
        self._epoch.fill_(epoch)

    def __iter__(self) -> Iterator[Sample]:
        for entries in self.entries(int(self._epoch)):
            try:
                sample = self.decode(entries)
            except SampleError as error:
                self.handle(error)
                continue
            yield sample if self.transform is None else self.transform(sample)

    def entries(self, epoch: int, worker: tuple[int, int] | None = None) -> Iterator[dict[str, Any]]:
        """Yields the undecoded samples of an epoch that fall to this process, for `decode`.

        Args:
            epoch: Decides the order where there is shuffling.
            worker: Number of this loader worker and of all; by default what the loader says.
        """
        webdataset = import_extra("webdataset", "stream")
        shuffle_seed = f"{self.seed} {epoch}"
        urls = list(self.urls)
        if self.shuffle:
            random.Random(shuffle_seed).shuffle(urls)
        urls = self._shards_of_this_process(urls, worker)
        samples = self._read_shards(urls)
        if self.shuffle:
            # By the names alone: the order is the same wherever the shards lie.
            rng = random.Random(f"{shuffle_seed} {[url.rpartition('/')[2] for url in map(str, urls)]}")
            samples = webdataset.filters.shuffle(self.shuffle, initial=self.shuffle, rng=rng)(samples)
        yield from samples

    def _read_shards(self, urls: list[str]) -> Iterator[dict[str, Any]]:
        webdataset = import_extra("webdataset", "stream")
        for url in urls:
            try:
                # Opened here, not by webdataset's own pipeline, which leaves closing to the garbage collector.
                stream = webdataset.gopen(url)
            except OSError as error:
                self.handle(SampleError(f"{url}: cannot open the shard: {error}"))
                continue

            def handle_double(error: Exception, url: str = url) -> bool:
                return self.handle(SampleError(f"{url}: two files of one name: {error.args[0]}"))

            with stream:
                yield from webdataset.tariterators.group_by_keys(self._files(url, stream), handler=handle_double)

    def _files(self, url: str, stream: Any) -> Iterator[dict[str, Any]]:
        """The files in a shard."""
        expand = import_extra("webdataset", "stream").tariterators.tar_file_expander
        is_empty = True
        try:
            for file in expand([{"url": url, "stream": stream}]):
                is_empty = is_empty and not file  # the last one, without content, is a mark
                yield file
        except Exception:  # tarfile and what unpacks for it fail in many ways
            self.handle(SampleError(f"{url}: the shard is cut off, damaged or not a tar file; write or fetch it again"))
            return
        if is_empty:
            self.handle(SampleError(f"{url}: the shard holds no files; write or fetch it again, or leave it out"))

    @staticmethod
    def _shards_of_this_process(urls: list[str], worker: tuple[int, int] | None) -> list[str]:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            num_ranks = torch.distributed.get_world_size()
            if len(urls) < num_ranks:
                raise ValueError(
                    f"{counted(len(urls), 'shard')} for {num_ranks} ranks; write at least one shard for each rank"
                )
            urls = urls[torch.distributed.get_rank() :: num_ranks]
        info = get_worker_info()
        if worker is None and info is not None:
            worker = info.id, info.num_workers
        return urls if worker is None else urls[worker[0] :: worker[1]]

    def handle(self, error: SampleError) -> bool:
        """Raises the error, or counts and logs it, as `on_error` says; True tells webdataset to go on."""
        if self.on_error == "raise":
            raise error
        _logger.warning("skipped: %s", error)
        self._num_skipped += 1
        return True

    def decode(self, entries: dict[str, Any]) -> Sample:
        """Returns the sample, without the transform; `SampleError` where it cannot be read."""
        shard, key = entries["__url__"], entries["__key__"]
        image_ending, mask_ending = self._endings(entries)
        name = entries["name.txt"].decode() if "name.txt" in entries else key
        mask = (None, None) if mask_ending is None else (Path(shard) / f"{key}.{mask_ending}", entries[mask_ending])
        return decode_sample(name, self.label_map, (Path(shard) / f"{key}.{image_ending}", entries[image_ending]), mask)

    def _endings(self, entries: dict[str, Any]) -> tuple[str, str | None]:
        """The endings of the image and of the mask of a sample."""
        patterns = self.image, self.mask
        if patterns in ((_IMAGE, _MASK), (_IMAGE, None)) and not any(
            fnmatch(ending, pattern) for ending in entries for pattern in (_IMAGE, _MASK)
        ):
            images, masks = (
                [ending for ending in entries if f".{ending}".endswith(kinds)] for kinds in (_IMAGE_KINDS, _MASK_KINDS)
            )
            choices = itertools.product(images, masks if self.mask is not None else [None])
            certain = [choice for choice in choices if choice[0] != choice[1]]
            if len(certain) == 1:
                return certain[0]
        return self._ending(entries, self.image), None if self.mask is None else self._ending(entries, self.mask)

    @staticmethod
    def _ending(entries: dict[str, Any], pattern: str) -> str:
        found = [ending for ending in entries if not ending.startswith("__") and fnmatch(ending, pattern)]
        name = entries["__key__"]
        if len(found) != 1:
            endings = ", ".join(ending for ending in entries if not ending.startswith("__"))
            raise SampleError(
                f"{entries['__url__']}: sample {name!r} has {len(found)} files that match {pattern!r} "
                f"(it has {endings}); call them {name}.image.jpg and {name}.mask.png, say, as write_shards does, or "
                "give StreamedSegmentationDataset other patterns (image=, mask=)"
            )
        return found[0]


def shard_urls(urls: str | Path | Sequence[str | Path]) -> list[str]:
    """The shards that paths, URLs and patterns stand for.

    Raises:
        ValueError: No shard, a pattern that fits no file, a shard listed twice, a `pipe:` URL.
        ImportError: `webdataset` is not installed.
    """
    webdataset = import_extra("webdataset", "stream")
    patterns = [urls] if isinstance(urls, (str, Path)) else urls
    found = [
        path
        for pattern in patterns
        for url in webdataset.shardlists.expand_urls(str(pattern))
        for path in _expand_wildcards(url)
    ]
    if not found:
        raise ValueError("urls is empty; give at least one shard")
    if len(set(found)) < len(found):
        twice = next(url for url, count in Counter(found).items() if count > 1)
        raise ValueError(f"the shard {twice} is listed twice, so that its samples would count twice")
    return found


def _expand_wildcards(url: str) -> list[str]:
    if url.strip().startswith("pipe:"):
        raise ValueError(f"{url!r} would run a command of the shell; give paths or http(s) URLs")
    if not ("*" in url or "?" in url) or Path(url).exists() or "://" in url:
        return [url]
    # Brackets stand for themselves, as everywhere in names of data.
    found = sorted(path for path in glob.glob(url.replace("[", "[[]"), recursive=True) if Path(path).is_file())
    if not found:
        raise ValueError(f"no shard is called {url!r}; the pattern is relative to {Path.cwd()}")
    return found


def write_shards(dataset: SegmentationDataset, folder: str | Path, *, samples_per_shard: int = 1000) -> list[Path]:
    """Writes the files of a data set, unchanged and in order, as shards `<split>-000000.tar` and so on.

    Args:
        dataset: The files; without tiles.
        folder: Where to; it is made.
        samples_per_shard: Images in a shard, at least 1.

    Returns:
        The paths of the shards.

    Raises:
        ValueError: `samples_per_shard` below 1, or a data set with tiles.
        ImportError: The extra `stream` is missing.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard must be at least 1, got {samples_per_shard}")
    if any(pair.tile is not None for pair in dataset.pairs):
        raise ValueError("shards hold whole files: make the data set without tile")
    webdataset = import_extra("webdataset", "stream")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pattern = str(folder / f"{dataset.split}-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=samples_per_shard, verbose=0) as writer:
        for index, pair in enumerate(dataset.pairs):
            entries: dict[str, Any] = {"__key__": f"{index:09d}", "name.txt": pair.name}
            entries[f"image{PurePosixPath(pair.image).suffix}"] = dataset.image_path(index).read_bytes()
            if pair.mask is not None:
                entries[f"mask{PurePosixPath(pair.mask).suffix}"] = dataset.mask_path(index).read_bytes()
            writer.write(entries)
    num_shards = -(-len(dataset) // samples_per_shard)
    return [Path(pattern % i) for i in range(num_shards)]
