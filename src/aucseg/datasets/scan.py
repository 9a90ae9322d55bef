"""Scanning the files of a data set with a pool of processes and a cache."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from aucseg.datasets.bands import check_card_image, read_card_image
from aucseg.datasets.card import DatasetCard
from aucseg.datasets.counting import MaskScan, scan_image, scan_mask
from aucseg.datasets.files import SampleError, check_exists, size_message
from aucseg.datasets.mask_files import RawMask, read_mask
from aucseg.datasets.mask_windows import read_tile_of_mask
from aucseg.datasets.scan_cache import ScanCache, Signature, digest_of, pack_scan, unpack_scan
from aucseg.datasets.windows import Tile
from aucseg.runtime.announce import Announcement

if TYPE_CHECKING:
    from aucseg.datasets.split import SplitOfFiles

_logger = logging.getLogger(__name__)
_CHUNK = 32
# Below this number of files the start of the processes costs more than they save.
_MIN_POOL_JOBS = 128


@dataclass(frozen=True)
class _Job:
    """One file to look at: a mask to count (kind "mask") or an image to check (kind "image")."""

    index: int
    kind: str
    path: Path
    tile: Tile | None = None


# The packed result, or None; the error; the digest of the content, or "".
_Result = tuple[bytes | None, str, str]


@dataclass
class SampleScan:
    """What was found in one sample.

    Attributes:
        index: Which sample.
        raw: The scan of the mask in raw ids, or None where it cannot be used.
        errors: Messages about mask and image.
        image_size: (height, width) of the image, or None where it was not looked at or cannot be used.
    """

    index: int
    raw: MaskScan | None = None
    errors: list[str] = field(default_factory=list)
    image_size: tuple[int, int] | None = None


class _Worker:
    """Looks at files; one in every process of the pool."""

    def __init__(self, card: DatasetCard, decode_images: bool, cache_path: Path | None) -> None:
        self.card = card
        self.decode_images = decode_images
        self.cache = None if cache_path is None else ScanCache.open(cache_path)
        self.kinds = {kind: result_kind(kind, card, decode_images) for kind in ("mask", "image")}

    def __call__(self, job: _Job) -> _Result:
        """Returns the packed result (or None), the error, and the digest of the content, if it was taken."""
        digest = ""
        try:
            if job.tile is not None:
                # Never the whole file, neither for its digest.
                return self._of_tile(job, job.tile), "", ""
            if job.kind == "image" and not self.decode_images:
                # The header is read faster than the digest of the whole file.
                return repr(check_card_image(job.path, self.card, False)).encode(), "", ""
            data = None
            if self.cache is not None:
                check_exists(job.path)
                data = job.path.read_bytes()
                digest = digest_of(data)
                payload = self.cache.result(digest, self.kinds[job.kind])
                if payload is not None:
                    return payload, "", digest
            if job.kind == "mask":
                return pack_scan(_scan(read_mask(job.path, self.card, data))), "", digest
            return repr(check_card_image(job.path, self.card, True)).encode(), "", digest
        except (SampleError, OSError) as error:
            return None, str(error), digest

    def _of_tile(self, job: _Job, tile: Tile) -> bytes:
        if job.kind == "mask":
            return pack_scan(_scan(read_tile_of_mask(job.path, self.card, tile)))
        if self.decode_images:
            read_card_image(job.path, self.card, window=tile.core)
        return repr((tile.core.height, tile.core.width)).encode()


def _scan(mask: RawMask) -> MaskScan:
    scan = scan_mask(mask.pixels) if isinstance(mask.pixels, np.ndarray) else scan_image(mask.pixels)
    if mask.palette is None:
        return scan
    # Indices beyond the palette have no colour.
    colors = np.full(max(256, len(mask.palette)), -1, np.int64)
    colors[: len(mask.palette)] = mask.palette.astype(np.int64) @ (65536, 256, 1)
    return replace(scan, colors=colors[scan.ids])


_worker: _Worker | None = None


def _start_worker(card: DatasetCard, decode_images: bool, cache_path: Path | None) -> None:
    global _worker
    _worker = _Worker(card, decode_images, cache_path)


def _run_worker(job: _Job) -> _Result:
    assert _worker is not None
    return _worker(job)


def result_kind(kind: str, card: DatasetCard, decode_images: bool) -> str:
    """Returns the name under which results are cached: all that they depend on beside the content of the file."""
    if kind == "image":
        bands = "" if card.bands is None else f" {card.bands} {card.value_range}"
        return f"image 2 {card.exif} {'decoded' if decode_images else 'header'}{bands}"
    palette = (card.raw_ids, card.palette) if card.check_palette else ()
    return f"mask 3 {card.mask_encoding} {card.exif} {card.mat_key if card.mask_encoding == 'mat' else ''} {palette}"


def _of_part(kind: str, tile: Tile | None) -> str:
    return kind if tile is None else f"{kind} {tuple(tile.core)} of {tile.size}"


def scan_samples(
    dataset: SplitOfFiles,
    *,
    num_workers: int = 0,
    progress: bool = False,
    check_images: bool = True,
    decode_images: bool = False,
    cache: ScanCache | None = None,
) -> Generator[SampleScan, None, None]:
    """Scans every sample of a data set, in order, and never raises for a bad one.

    Args:
        dataset: The data set; its `on_error` plays no part here.
        num_workers: Processes; 0 means this one.
        progress: Whether to show a progress bar.
        check_images: Whether to look at the images too: readable, 8 bits, as large as the mask.
        decode_images: Whether to decode the images; else their header alone is read.
        cache: Results of earlier runs, which are used and added to.
    """
    from tqdm import tqdm

    signatures: dict[tuple[str, int], Signature | None] = {}
    samples = [SampleScan(index) for index in range(len(dataset))]
    kinds = {kind: result_kind(kind, dataset.card, decode_images) for kind in ("mask", "image")}

    def jobs_to_do() -> Iterator[_Job]:
        for index, sample in enumerate(tqdm(samples, desc="listing", unit="image", leave=False, disable=not progress)):
            for kind in ("mask", "image") if check_images else ("mask",):
                try:
                    path = dataset.mask_path(index) if kind == "mask" else dataset.image_path(index)
                except SampleError as error:
                    sample.errors.append(str(error))
                    continue
                tile = dataset.pairs[index].tile
                if cache is not None:
                    signature = signatures[kind, index] = Signature.of(path)
                    payload = None if signature is None else cache.known(path, signature, _of_part(kinds[kind], tile))
                    if payload is not None:
                        _put(sample, kind, payload)
                        continue
                yield _Job(index, kind, path, tile)

    jobs = list(jobs_to_do())
    pending = {job.index: 0 for job in jobs}
    for job in jobs:
        pending[job.index] += 1
    done = 0
    bar = tqdm(total=len(samples), desc="scanning", unit="image", disable=not progress)
    arguments = (dataset.card, decode_images, None if cache is None else cache.path)
    with bar, Announcement(f"reading {len(jobs):,} files", enabled=not progress):
        for job, (payload, error, digest) in zip(jobs, _run(jobs, arguments, num_workers), strict=True):
            sample = samples[job.index]
            if payload is None:
                sample.errors.append(error)
            else:
                _put(sample, job.kind, payload)
                signature = signatures.get((job.kind, job.index))
                if cache is not None and signature is not None:
                    # What is known from a part alone is known of this file, not of all with its content.
                    known = digest or f"part of {job.path.absolute()} {signature}"
                    cache.add(job.path, signature, known, _of_part(kinds[job.kind], job.tile), payload)
            pending[job.index] -= 1
            while done < len(samples) and pending.get(done, 0) == 0:
                yield _finish(samples[done], dataset)
                done += 1
                bar.update()
        for sample in samples[done:]:
            yield _finish(sample, dataset)
            bar.update()
    if cache is not None:
        cache.commit()


def scan_dataset(dataset: SplitOfFiles, *, num_workers: int = 0, progress: bool = False) -> Iterator[MaskScan]:
    """Scans the masks of a data set in train ids; a bad one raises or is left out, as its `on_error` says."""
    for sample in scan_samples(dataset, num_workers=num_workers, progress=progress, check_images=False):
        errors = list(sample.errors)
        if sample.raw is not None:
            scan, unknown = dataset.label_map.map_scan(sample.raw)
            if not unknown:
                yield scan
                continue
            errors.append(f"{dataset.mask_path(sample.index)}: {dataset.label_map.describe_unknown(unknown)}")
        if dataset.on_error == "raise":
            raise SampleError("; ".join(errors))
        _logger.warning("left out: %s", "; ".join(errors))


def _run(jobs: list[_Job], arguments: tuple[DatasetCard, bool, Path | None], num_workers: int) -> Iterator[_Result]:
    if num_workers == 0 or len(jobs) < _MIN_POOL_JOBS:
        yield from map(_Worker(*arguments), jobs)
        return
    # Fresh processes, not forks: a fork copies locked locks of torch's threads.
    pool = ProcessPoolExecutor(
        num_workers, multiprocessing.get_context("spawn"), initializer=_start_worker, initargs=arguments
    )
    try:
        yield from pool.map(_run_worker, jobs, chunksize=_CHUNK)
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a process that reads masks died: out of memory, or started from a script whose work is not under "
            "if __name__ == '__main__':; try num_workers=0"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _put(sample: SampleScan, kind: str, payload: bytes) -> None:
    if kind == "mask":
        sample.raw = unpack_scan(payload)
    else:
        height, width = payload.decode().strip("()").split(",")
        sample.image_size = int(height), int(width)


def _finish(sample: SampleScan, dataset: SplitOfFiles) -> SampleScan:
    if sample.raw is not None and sample.image_size not in (None, (sample.raw.height, sample.raw.width)):
        assert sample.image_size is not None
        image = dataset.pairs[sample.index].image
        mask_size = sample.raw.height, sample.raw.width
        sample.errors.append(size_message(dataset.mask_path(sample.index), mask_size, image, sample.image_size))
    return sample
