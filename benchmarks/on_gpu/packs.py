"""A study's data in tar files of a bounded size: `python -m benchmarks.on_gpu.packs pack|unpack|delete STUDY`.

`pack` (here) writes the images and masks of the study's splits, as they are, to `.packs/STUDY`, with checksums in a
manifest. Each pack may travel alone, the manifest with each of them. `unpack` (there) checks and unpacks the packs
that have arrived, and says which are missing yet (exit status 3). `delete` removes packs and data.

Both folders are ignored by git. The terms of data sets allow measuring on machines of one's own and nothing else: packs
are never committed, published or shipped, and deleted where they were taken to.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

PACKS = Path(".packs")
DATA = Path(".gpu/data")
MISSING = 3
_MANIFEST = "manifest.json"
_BLOCK = 512
_END_BYTES = 20 * _BLOCK


def files_of_study(study: str, root: Path | None) -> tuple[Path, list[str]]:
    """The folder of a study's data, and the files of its splits below it.

    Raises:
        ValueError: No root is given but needed, or the files are not there.
    """
    from benchmarks.evidence.shared_studies import SHARED_STUDIES

    from aucseg.datasets import SegmentationDataset

    chosen = SHARED_STUDIES[study]
    folder = chosen.data_root(root)
    names: set[str] = set()
    for split in chosen.splits():
        for pair in SegmentationDataset(chosen.card_path, folder, split).pairs:
            names |= {name for name in (pair.image, pair.mask) if name is not None}
    return folder, sorted(names)


def pack(study: str, root: Path, names: list[str], folder: Path, most_bytes: int) -> list[Path]:
    """Writes the packs of some files and their manifest; returns the packs.

    Args:
        study: Name of the study.
        root: Folder of the files.
        names: Files below it.
        folder: Folder of the packs; what it holds is replaced.
        most_bytes: Size that no pack exceeds.

    Raises:
        ValueError: A file is larger than a pack may be.
    """
    shares: list[list[str]] = [[]]
    used = _END_BYTES
    for name in names:
        size = (root / name).stat().st_size
        needed = 2 * _BLOCK + -(-size // _BLOCK) * _BLOCK  # a header, sometimes of two blocks
        if needed + _END_BYTES > most_bytes:
            raise ValueError(f"{root / name} has {size} bytes, more than a pack may have: raise --megabytes")
        if used + needed > most_bytes:
            shares.append([])
            used = _END_BYTES
        shares[-1].append(name)
        used += needed
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    manifest: dict[str, Any] = {"study": study, "packs": {}}
    paths = []
    for number, share in enumerate(shares, 1):
        path = folder / f"{study}-{number}of{len(shares)}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name in share:
                tar.add(root / name, name, filter=_without_owner)
        manifest["packs"][path.name] = {
            "sha256": sha256_of(path),
            "bytes": path.stat().st_size,
            "files": {name: (root / name).stat().st_size for name in share},
        }
        paths.append(path)
    (folder / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    return paths


def unpack(folder: Path, data: Path) -> list[str]:
    """Checks and unpacks the packs that are there; returns the names of those that have yet to come.

    Raises:
        ValueError: There is no manifest, a pack is damaged or holds other files than listed.
    """
    manifest_path = folder / _MANIFEST
    if not manifest_path.is_file():
        raise ValueError(f"there is no {manifest_path}: take it along with each pack")
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    missing = []
    for name, expected in manifest["packs"].items():
        path = folder / name
        if all(_has_size(data / file, size) for file, size in expected["files"].items()):
            continue
        if not path.is_file():
            missing.append(name)
            continue
        if sha256_of(path) != expected["sha256"]:
            raise ValueError(f"{path} is damaged (its checksum is not that of the manifest): take it along again")
        with tarfile.open(path) as tar:
            if sorted(tar.getnames()) != sorted(expected["files"]):
                raise ValueError(f"{path} holds other files than the manifest lists")
            data.mkdir(parents=True, exist_ok=True)
            tar.extractall(data, filter="data")
    return missing


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o644
    return member


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("pack", "unpack", "delete"))
    parser.add_argument("study")
    parser.add_argument("--root", type=Path, metavar="DIR", help="folder of the data, for pack")
    parser.add_argument("--packs", type=Path, default=PACKS, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="default: %(default)s")
    parser.add_argument("--megabytes", type=float, default=40, metavar="N", help="of a pack (default: %(default)s)")
    args = parser.parse_args(argv)
    folder, data = args.packs / args.study, args.data / args.study
    if args.action == "delete":
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(data, ignore_errors=True)
        return 0
    try:
        if args.action == "pack":
            root, names = files_of_study(args.study, args.root)
            for path in pack(args.study, root, names, folder, round(args.megabytes * 1e6)):
                print(f"{path.stat().st_size / 1e6:8.2f} MB  {path}")
            print(f"{len(names)} files; take {folder / _MANIFEST} along with each pack")
            return 0
        missing = unpack(folder, data)
    except KeyError:
        parser.error(f"there is no shared study {args.study!r}")
    except ValueError as error:
        parser.error(str(error))
    print(f"{data}: " + (f"still to come: {', '.join(missing)}" if missing else "all files are there"))
    return MISSING if missing else 0


if __name__ == "__main__":
    sys.exit(main())
