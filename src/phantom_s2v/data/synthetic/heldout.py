"""The held-out subjects: the list, and the images of them that demo, tests and evaluation use.

No part of the model ever learns from them. They are packaged (at 160 pixels, MIT, see LICENSE beside them), so that nothing but
training fetches anything. `python -m phantom_s2v.data.synthetic.heldout ARCHIVE ...` wrote them from the packages of emoji.py.
"""

import io
import json
import sys
import tarfile
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from phantom_s2v.data.synthetic.emoji import (
    CLIP_FRAMES,
    Sprites,
    Subject,
    decode_sprites,
    family_of,
    read_packages,
    split,
    write_store,
)
from phantom_s2v.media.images import open_image

ASSETS = Path(__file__).parents[2] / "assets" / "held-out"
EVALUATED = 100
STORED = 160  # pixels a side of the packaged files
CLIP_LENGTH = 25  # frames packaged of an animation: what one clip shows


@cache
def held_out_families() -> frozenset[str]:
    """The families that training must never see."""
    return frozenset(json.loads((ASSETS / "families.json").read_text()))


@cache
def held_out() -> Sprites:
    """All packaged held-out subjects."""
    subjects, arrays, start = [], [], 0
    for row in json.loads((ASSETS / "subjects.json").read_text()):
        frames = decode_sprites(still_path(row["key"]).read_bytes(), 1)
        clip = ASSETS / "clips" / f"{row['key']}.webp"
        if clip.is_file():
            frames = np.concatenate([frames, decode_sprites(clip.read_bytes(), CLIP_FRAMES)])
        subjects.append(Subject(row["key"], row["name"], row["family"], start, len(frames)))
        arrays.append(frames)
        start += len(frames)
    return Sprites(tuple(subjects), np.concatenate(arrays))


def still_path(key: str) -> Path:
    """File of a held-out still, as a user would give it."""
    return ASSETS / "stills" / f"{key}.webp"


def evaluated(sprites: Sprites) -> tuple[Subject, ...]:
    """The 100 subjects of the evaluation: animated, one a family, one clock, in the order of their keys."""
    first = {"clock face" if s.name.startswith("clock face") else s.family: s for s in reversed(sprites.subjects) if s.animated}
    return tuple(sorted(first.values(), key=lambda s: s.key)[:EVALUATED])


def build(archives: list[Path], scratch: Path) -> None:
    """Choose the families and write the assets; `scratch` takes a full store."""
    rows = list(read_packages(archives, STORED))
    write_store(scratch, iter(rows))
    subjects = tuple(Subject(**row) for row in json.loads((scratch / "subjects.json").read_text()))
    families = split(subjects)
    (ASSETS / "stills").mkdir(parents=True, exist_ok=True)
    (ASSETS / "clips").mkdir(exist_ok=True)
    (ASSETS / "families.json").write_text(json.dumps(sorted(families), indent=0) + "\n")
    kept = [s for s in subjects if s.family in families]
    listed = [{"key": s.key, "name": s.name, "family": s.family} for s in kept]
    (ASSETS / "subjects.json").write_text(json.dumps(listed, indent=0) + "\n")
    clips = {key: clip for key, _, clip in rows}
    packaged = {s.key for s in evaluated(Sprites(tuple(kept), np.empty(0)))}
    stills = _originals(archives)
    for subject in kept:
        image = (
            open_image(io.BytesIO(stills[subject.key]), ("WEBP",))
            .convert("RGBA")
            .resize((STORED, STORED), Image.Resampling.LANCZOS)
        )
        image.save(still_path(subject.key), quality=88, method=4)
        clip = clips[subject.key]
        if subject.key in packaged and clip is not None:
            frames = [Image.frombuffer("RGBa", (STORED, STORED), frame.tobytes()).convert("RGBA") for frame in clip[:CLIP_LENGTH]]
            frames[0].save(
                ASSETS / "clips" / f"{subject.key}.webp",
                save_all=True,
                append_images=frames[1:],
                quality=70,
                method=2,
                duration=66,
            )


def _originals(archives: list[Path]) -> dict[str, bytes]:
    stills = {}
    with tarfile.open(next(a for a in archives if "-3d-" in a.name)) as tar:
        for member in tar:
            if member.name.endswith(".webp") and (handle := tar.extractfile(member)):
                stills[Path(member.name).stem] = handle.read()
    return stills


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        build([Path(a) for a in sys.argv[1:]], Path(folder))
    print(f"{len(held_out_families())} families, {family_of('1f98a') in held_out_families()=}")
