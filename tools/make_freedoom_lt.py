"""Make the embedded data set Freedoom-LT: views of the Freedoom levels with a label for every pixel.

Needs PyPI's `vizdoom`, which carries the engine and the two Freedoom game files. The same versions of vizdoom, numpy
and Pillow give the same bytes on every run::

    python tools/make_freedoom_lt.py --package-dir src/aucseg/datasets
"""

from __future__ import annotations

import argparse
import hashlib
import io
import math
import os
import shutil
import struct
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import vizdoom
from freedoom_lt_classes import CARD, KIND_IDS, KIND_NAMES, KINDS
from PIL import Image
from tqdm import tqdm

UInt8 = npt.NDArray[np.uint8]
Float = npt.NDArray[np.float64]

WADS = {
    "freedoom1": [f"e{episode}m{level}" for episode in range(1, 5) for level in range(1, 10)],
    "freedoom2": [f"map{level:02d}" for level in range(1, 33)],
}
# Every fifth map of each game goes to validation.
VAL_EVERY = 5
HEAD_SHARE, TAIL_SHARE = 0.01, 0.001
LIGHTNESS = (30.0, 92.0)  # L* of a class colour: darker is lost on the scenes, white is for what is ignored
NUM_FRAMES = {"train": 2000, "val": 500}
MIN_FRAMES = {"train": 20, "val": 5}
FRAMES_PER_MAP = 44  # more than 2500 / 68, because some maps are too small to give their share
EPISODES_PER_MAP = 12  # each freezes the animations at another moment
PROPOSALS_PER_EPISODE = 400
DISTANCE = (60.0, 360.0)  # map units from the camera to the object it looks for
MAX_JITTER = 32.0  # degrees off that object; the view is 90 wide

IGNORE = 255
MIN_INSTANCE_PIXELS = 32  # of 320x240: a smaller object cannot be told from others, so it is ignored
MIN_INSTANCE_LUMA = 28.0  # of 255, 90th percentile over the object: a darker one cannot be seen, so it is ignored
MIN_SEEN_PIXELS = 16  # of 160x120: a class counts as seen in a frame
MIN_OBJECT_PIXELS, MAX_OBJECT_SHARE = 80, 0.60
MAX_CLASS_SHARE = 0.97
MIN_LUMA = 22.0  # of 255, mean over the frame
MIN_DIFFERENCE = 9.0  # mean absolute difference of 16x12 thumbnails, 0..255
JPEG_QUALITY = 76


@dataclass
class Frame:
    """One view: JPEG bytes, kinds (120, 160) as indices into KIND_NAMES, (12, 16) thumbnail against duplicates."""

    jpeg: bytes
    kinds: UInt8
    thumbnail: Float


@dataclass
class Scene:
    """A frozen level: places of targets (T, 2), of all objects (N, 2), the room each needs (N,), and walls (L, 4)."""

    targets: Float
    places: Float
    room: Float
    walls: Float

    @classmethod
    def from_objects(cls, objects: list[Any], walls: Float) -> Scene:
        others = [item for item in objects if item.category != "Self"]
        # Nearer to an object the player would pick it up (some tint the screen) or be stuck in it and crush it.
        room = [
            {"SpiderMastermind": 180, "Arachnotron": 110}.get(o.name, 90 if o.category == "Monster" else 54)
            for o in others
        ]
        places = np.array([(item.position_x, item.position_y) for item in others])
        return cls(places[[item.name in KINDS for item in others]], places, np.array(room, dtype=np.float64), walls)


def start_game(wad: str, seed: int) -> Any:
    """Returns a running engine for `wad` that draws the scene alone: no status bar, weapon, messages or particles."""
    game = vizdoom.DoomGame()
    game.set_doom_game_path(str(Path(vizdoom.__file__).parent / f"{wad}.wad"))
    game.set_doom_map(WADS[wad][0])
    game.set_doom_skill(4)  # the most monsters
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_320X240)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_labels_buffer_enabled(True)
    game.set_objects_info_enabled(True)
    for element in (
        "hud",
        "weapon",
        "crosshair",
        "messages",
        "decals",
        "particles",
        "effects_sprites",
        "screen_flashes",
    ):
        getattr(game, f"set_render_{element}")(False)
    game.set_available_buttons([vizdoom.Button.TURN_LEFT_RIGHT_DELTA])
    game.set_available_game_variables([vizdoom.GameVariable.ANGLE])
    game.set_episode_timeout(0)
    # The distance is twice as bright as usual; "A secret is revealed!" would stay in the picture.
    game.add_game_args("+sv_cheats 1 +r_visibility 16 +cl_showsecretmessage 0")
    game.set_seed(seed)
    game.init()
    return game


def walls(wad: bytes, level: str) -> Float:
    """Returns the lines (N, 4) of `level` that no view may cross: one-sided ones, and those that stop a player."""
    count, start = struct.unpack_from("<ii", wad, 4)
    lumps = [struct.unpack_from("<ii8s", wad, start + 16 * index) for index in range(count)]
    names = [name.rstrip(b"\0").decode("latin-1") for _, _, name in lumps]
    lines_at, vertices_at = (names.index(lump, names.index(level.upper())) for lump in ("LINEDEFS", "VERTEXES"))

    def read(index: int, columns: int) -> npt.NDArray[np.int16]:
        place, size, _ = lumps[index]
        return np.frombuffer(wad, "<i2", size // 2, place).reshape(-1, columns)

    lines, vertices = read(lines_at, 7), read(vertices_at, 2).astype(np.float64)
    flags = lines[:, 2]
    solid = lines[(flags & 4 == 0) | (flags & 1 != 0)].astype(np.uint16)
    return np.concatenate([vertices[solid[:, 0]], vertices[solid[:, 1]]], axis=1)


def crosses(start: Float, end: Float, lines: Float) -> bool:
    """Tells whether the segment from `start` to `end` crosses any of `lines` (N, 4)."""
    first, second = lines[:, :2], lines[:, 2:]
    along, way = second - first, end - start

    def side(direction: Float, offset: Float) -> Float:
        return direction[..., 0] * offset[..., 1] - direction[..., 1] * offset[..., 0]

    across_line = side(along, start - first) * side(along, end - first) <= 0
    across_way = side(way, first - start) * side(way, second - start) <= 0
    return bool(np.any(across_line & across_way))


def distance_to(point: Float, lines: Float) -> float:
    """Returns the distance from `point` to the nearest of `lines` (N, 4)."""
    first, along = lines[:, :2], lines[:, 2:] - lines[:, :2]
    length = np.maximum((along**2).sum(1), 1e-9)
    t = np.clip(((point - first) * along).sum(1) / length, 0, 1)
    return float(np.linalg.norm(first + t[:, None] * along - point, axis=1).min())


def propose_view(rng: np.random.Generator, scene: Scene) -> tuple[int, int, float] | None:
    """Returns a place with a free line of sight to a random object and an angle that has it in view, or None."""
    goal = scene.targets[rng.integers(len(scene.targets))]
    direction = rng.uniform(0, 2 * math.pi)
    distance = math.exp(rng.uniform(*np.log(DISTANCE)))
    jitter = rng.uniform(-MAX_JITTER, MAX_JITTER)
    place = np.round(goal + distance * np.array([math.cos(direction), math.sin(direction)]))
    if np.any(np.linalg.norm(scene.places - place, axis=1) < scene.room):
        return None
    if distance_to(place, scene.walls) < 24 or crosses(goal, place, scene.walls):
        return None
    return int(place[0]), int(place[1]), math.degrees(direction) + 180 + jitter


def kinds_of(state: Any, luma: Float) -> UInt8 | None:
    """Returns the kind of every pixel (240, 320), or None for ambiguous labels or the player's own body in view."""
    labels: UInt8 = state.labels_buffer
    pixels = np.bincount(labels.ravel(), minlength=256)
    seen = [label for label in state.labels if pixels[label.value]]
    if len({label.value for label in seen}) < len(seen) or any(label.object_category == "Self" for label in seen):
        return None
    table = np.full(256, IGNORE, np.uint8)
    table[[0, 1]] = [0, 1]
    for label in seen:
        here = luma[labels == label.value]
        if here.size >= MIN_INSTANCE_PIXELS and np.percentile(here, 90) >= MIN_INSTANCE_LUMA:
            table[label.value] = KIND_IDS.get(label.object_name, IGNORE)
    return table[labels]


def halve_labels(kinds: UInt8) -> UInt8:
    """Returns the commonest label of each 2x2 block; an object wins a tie with the background: thin ones last."""
    height, width = kinds.shape
    blocks = kinds.reshape(height // 2, 2, width // 2, 2).transpose(0, 2, 1, 3).reshape(height // 2, width // 2, 4)
    votes = 2 * (blocks[..., :, None] == blocks[..., None, :]).sum(-1) + (blocks >= 2)
    return np.take_along_axis(blocks, votes.argmax(-1)[..., None], -1)[..., 0]


def to_frame(state: Any) -> Frame | None:
    """Returns the frame at half the size, or None where it shows too little, too much of one thing, or no light."""
    image: UInt8 = state.screen_buffer
    luma = image @ np.array([0.299, 0.587, 0.114])
    kinds = kinds_of(state, luma)
    if kinds is None or luma.mean() < MIN_LUMA:
        return None
    counts = np.bincount(kinds.ravel(), minlength=256)
    objects = counts[2:IGNORE].sum()
    if not MIN_OBJECT_PIXELS <= objects <= MAX_OBJECT_SHARE * kinds.size or counts.max() > MAX_CLASS_SHARE * kinds.size:
        return None
    small = np.rint(image.reshape(120, 2, 160, 2, 3).mean((1, 3))).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return Frame(buffer.getvalue(), halve_labels(kinds), luma.reshape(12, 20, 16, 20).mean((1, 3)))


def views(game: Any, level: str, walls: Float, rng: np.random.Generator) -> Iterator[Any]:
    """Yields engine states seen from random places of `level`."""
    for _ in range(EPISODES_PER_MAP):
        game.set_doom_map(level)
        game.new_episode()
        for cheat in ("god", "notarget"):
            game.send_game_command(cheat)
        game.make_action([0.0], int(rng.integers(2, 36)))
        game.send_game_command("freeze")
        game.make_action([0.0], 1)
        scene = Scene.from_objects(game.get_state().objects, walls)
        proposals = (propose_view(rng, scene) for _ in range(PROPOSALS_PER_EPISODE))
        for x, y, angle in filter(None, proposals):
            game.send_game_command(f"warp {x} {y}")
            turn = (game.get_game_variable(vizdoom.GameVariable.ANGLE) - angle + 180) % 360 - 180
            game.set_action([turn])
            game.advance_action(1, False)
            # After a warp the eye is at the player's feet; two tics later it is at its height.
            game.set_action([0.0])
            game.advance_action(2)
            yield game.get_state()


def frames_of_map(game: Any, level: str, walls: Float, rng: np.random.Generator) -> list[Frame]:
    """Returns up to FRAMES_PER_MAP useful frames of `level`, no two nearly alike."""
    frames: list[Frame] = []
    for state in views(game, level, walls, rng):
        frame = to_frame(state)
        if frame and all(np.abs(frame.thumbnail - other.thumbnail).mean() >= MIN_DIFFERENCE for other in frames):
            frames.append(frame)
        if len(frames) == FRAMES_PER_MAP:
            break
    return frames


def render_all() -> dict[str, dict[str, list[Frame]]]:
    """Returns the frames of each split by map name; a map is in one split alone."""
    pool: dict[str, dict[str, list[Frame]]] = {"train": {}, "val": {}}
    with tqdm(total=sum(map(len, WADS.values())), desc="maps") as progress:
        for wad_id, (wad, levels) in enumerate(WADS.items()):
            data = (Path(vizdoom.__file__).parent / f"{wad}.wad").read_bytes()
            game = start_game(wad, seed=wad_id + 1)
            for level_id, level in enumerate(levels):
                rng = np.random.default_rng([wad_id, level_id])
                split = "val" if level_id % VAL_EVERY == 0 else "train"
                pool[split][f"{wad}_{level}"] = frames_of_map(game, level, walls(data, level), rng)
                progress.update()
            game.close()
    return pool


def choose(pool: dict[str, list[Frame]], number: int) -> dict[str, Frame]:
    """Returns `number` frames of `pool` drawn at random, by file stem in order."""
    stems = [(f"{level}_{index:04d}", frame) for level, frames in pool.items() for index, frame in enumerate(frames)]
    chosen = np.random.default_rng(0).permutation(len(stems))[:number]
    return {stems[index][0]: stems[index][1] for index in sorted(chosen)}


def choose_classes(splits: dict[str, dict[str, Frame]]) -> list[int]:
    """Returns the kinds seen in enough frames of each split: wall and floor first, objects by training pixels."""
    pixels = {
        split: np.array([np.bincount(frame.kinds.ravel(), minlength=256) for frame in frames.values()])
        for split, frames in splits.items()
    }
    enough = [(pixels[split] >= MIN_SEEN_PIXELS).sum(0) >= MIN_FRAMES[split] for split in splits]
    kinds = [kind for kind in range(len(KIND_NAMES)) if all(seen[kind] for seen in enough)]
    return sorted(kinds, key=lambda kind: (kind >= 2, -pixels["train"][:, kind].sum() if kind >= 2 else kind))


def to_lab(linear: Float) -> Float:
    """Returns CIE L*a*b* (D65) of linear RGB colours in 0..1, shape (..., 3)."""
    xyz = linear @ np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]).T
    f = np.cbrt(np.maximum(xyz / np.array([0.9505, 1.0, 1.089]), 0.008856))
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def make_palette(number: int) -> list[list[int]]:
    """Returns colours as far apart as may be, to normal and to red- and green-blind sight; the first two are greys.

    Farthest-point choice in CIELAB; colour blindness after Machado et al. 2009 at full severity.
    """
    steps = np.linspace(0, 255, 11).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    colours = np.concatenate([[[112, 112, 112], [48, 48, 48]], candidates])
    linear = np.where(colours <= 10.31475, colours / 3294.6, ((colours / 255 + 0.055) / 1.055) ** 2.4)
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    seen = np.stack([to_lab(np.clip(linear @ np.array(sight).T, 0, 1)) for sight in (np.eye(3), protan, deutan)])
    # The colour-blind tell fewer colours apart: doubled, their distances leave the others a say.
    seen[1:] *= 2
    distance = np.linalg.norm(seen[:, :, None] - seen[:, None], axis=-1).min(0)
    distance[:, (seen[0, :, 0] < LIGHTNESS[0]) | (seen[0, :, 0] > LIGHTNESS[1])] = 0
    chosen = [0, 1]
    while len(chosen) < number:
        chosen.append(int(distance[chosen].min(0).argmax()))
    return [[int(value) for value in colours[index]] for index in chosen]


def write_images(folder: Path, splits: dict[str, dict[str, Frame]], classes: list[int]) -> None:
    """Writes images and masks, kinds turned into train ids, into the emptied `folder`."""
    train_ids = np.full(256, IGNORE, np.uint8)
    train_ids[classes] = np.arange(len(classes))
    for split, frames in splits.items():
        for kind in ("images", "masks"):
            shutil.rmtree(folder / kind / split, ignore_errors=True)
            (folder / kind / split).mkdir(parents=True)
        for stem, frame in frames.items():
            (folder / "images" / split / f"{stem}.jpg").write_bytes(frame.jpeg)
            Image.fromarray(train_ids[frame.kinds]).save(folder / "masks" / split / f"{stem}.png", optimize=True)


def card_text(splits: dict[str, dict[str, Frame]], classes: list[int]) -> str:
    """Returns the data set card as YAML, with the share and the number of frames of every class in comments."""
    kinds = {split: np.stack([frame.kinds for frame in frames.values()]) for split, frames in splits.items()}
    pixels = np.bincount(kinds["train"].ravel(), minlength=256)[classes]
    share = pixels / pixels.sum()
    groups: dict[str, list[str]] = {"head": [], "middle": [], "tail": []}
    lines = []
    for kind, part, colour in zip(classes, share, make_palette(len(classes)), strict=True):
        name = KIND_NAMES[kind]
        groups["head" if part > HEAD_SHARE else "tail" if part < TAIL_SHARE else "middle"].append(name)
        train, val = ((kinds[split] == kind).any((1, 2)).sum() for split in ("train", "val"))
        lines.append(f"  - {{name: {name}, color: {colour}}}  # {100 * part:.4f} %, {train} + {val} frames")
    return CARD.format(
        classes="\n".join(lines),
        groups="\n".join(
            textwrap.fill(f"{group}: [{', '.join(names)}]", 100, initial_indent="  ", subsequent_indent="    ")
            for group, names in groups.items()
        ),
    )


def digest(folder: Path) -> str:
    """Returns the SHA-256 over the names and bytes of all images and masks."""
    total = hashlib.sha256()
    for path in sorted([*folder.rglob("*.jpg"), *folder.rglob("*.png")]):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the embedded data set Freedoom-LT and its card.")
    parser.add_argument(
        "--package-dir",
        type=Path,
        default=Path(__file__).resolve().parents[1] / "src" / "aucseg" / "datasets",
        help="gets freedoom_lt/{images,masks} and cards/freedoom_lt.yaml (default: the package of this checkout)",
    )
    package_dir: Path = parser.parse_args().package_dir.resolve()
    with tempfile.TemporaryDirectory() as work_dir:
        os.chdir(work_dir)  # the engine keeps its settings where it runs: an empty folder has none of an earlier run
        pool = render_all()
        os.chdir(package_dir.parent)
    splits = {split: choose(frames, NUM_FRAMES[split]) for split, frames in pool.items()}
    classes = choose_classes(splits)
    folder, card = package_dir / "freedoom_lt", package_dir / "cards" / "freedoom_lt.yaml"
    write_images(folder, splits, classes)
    card.parent.mkdir(parents=True, exist_ok=True)
    card.write_text(card_text(splits, classes), encoding="utf-8")
    print(f"{len(classes)} classes, SHA-256 of images and masks {digest(folder)}")


if __name__ == "__main__":
    main()
