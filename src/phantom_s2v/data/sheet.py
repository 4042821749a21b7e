"""A contact sheet of what a training will see of a dataset: references, then frames as they are cut, darker where a mask is."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from phantom_s2v.data.buckets import Plan, Target, fitted, mask_of, shown
from phantom_s2v.data.loader import decode
from phantom_s2v.data.triplets import TripletStore
from phantom_s2v.files.untrusted import printable
from phantom_s2v.media.images import contact_sheet, evenly_spaced, write_image

ROWS = 24  # triplets that are shown, evenly spaced over the dataset
SIDE, LINE, FRAMES, REFERENCES = 128, 16, 5, 4  # pixels of a tile and of a line of text; tiles of a row
DARK = 0.25  # of the light that is left where a mask is black


def write_sheet(store: TripletStore, planned: Plan, target: Target, out: Path) -> int:
    """Write the sheet as PNG; returns how many triplets it shows."""
    keys = store.ids()
    usable = [row for row, key in enumerate(keys) if key in planned.buckets]
    chosen = [usable[i] for i in evenly_spaced(len(usable), ROWS)] if usable else []
    rows = list(_rows(store, chosen, planned, target))
    if not rows:
        return 0
    width = max(row.shape[1] for row in rows)
    write_image(out, np.concatenate([np.pad(r, ((0, 0), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]))
    return len(rows)


def _rows(store: TripletStore, chosen: list[int], planned: Plan, target: Target) -> Iterator[np.ndarray]:
    for row in chosen:
        (triplet,) = store.take([row])
        bucket = planned.buckets[triplet.id]
        sample = decode(triplet, partial(fitted, fps=triplet.fps, bucket=bucket, target=target))
        frames = sample.video
        if (mask := mask_of(triplet, bucket, target)) is not None:
            light = DARK + (1 - DARK) * mask[..., None] / 255
            frames = (frames * light).astype(np.uint8)
        pairs = list(zip(triplet.references, sample.references, strict=True))[:REFERENCES]
        tiles = contact_sheet([shown(r, image, target.references) for r, image in pairs], frames, FRAMES, SIDE)
        kind = "regularization, " if triplet.regularization else ""
        text = f"{triplet.caption}  ({kind}{bucket.width}x{bucket.height}, {bucket.frames} frames, x{triplet.repeats})"
        yield np.concatenate([_line(text, tiles.shape[1]), tiles])


def _line(text: str, width: int) -> np.ndarray:
    """A line of text, uint8 [LINE, width, 3]."""
    image = Image.new("RGB", (width, LINE), (255, 255, 255))
    ImageDraw.Draw(image).text((2, 1), printable(text)[: width // 6], fill=(0, 0, 0))
    return np.asarray(image)
