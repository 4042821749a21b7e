"""Clips in which the subject of a few images moves, composed as phantom-mini's world is: stills alone teach nothing of motion.

The subject is cut out of its image where that is transparent or has a plain background, and moves over a background on its own.
"""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from phantom_s2v.data.clips import encoded
from phantom_s2v.data.formats.items import Reading
from phantom_s2v.data.synthetic.appearance import PLAIN_APPEARANCE
from phantom_s2v.data.synthetic.compose import ClipSpec, compose, plain_spec
from phantom_s2v.data.synthetic.emoji import Sprites, Subject
from phantom_s2v.data.triplets import Triplet, TripletReference
from phantom_s2v.errors import InputError
from phantom_s2v.media.images import cut_out_alpha, read_image

SIDE, FRAMES = 128, 25  # of clips; sprites have the same side
SUBJECT = "subject"  # what captions of composed clips call it


def moving(files: list[Path], name: str, count: int, reading: Reading, seed: int = 0) -> Iterator[Triplet]:
    """`count` clips of the subject that images show, in turn, each with another of them as its reference.

    Raises InputError where the subject can be cut out of none of them.
    """
    sprites, rng = _sprites(files, name, reading), np.random.default_rng([5, seed])

    def clips() -> Iterator[Triplet]:
        for number in range(count):
            spec = plain_spec(rng, (sprites.subjects[number % len(sprites.subjects)],), FRAMES, SIDE)
            cast = replace(spec.casts[0], appearance=PLAIN_APPEARANCE)
            yield _triplet(replace(spec, casts=(cast,), named=False), sprites, files, name, number, reading)
        shown = f"{FRAMES} frames at {reading.fps:g} fps, {SIDE}x{SIDE}"
        reading.kept(f"kept: {count} composed clips of {len(sprites.subjects)} images, {shown}")

    return clips()


def _triplet(spec: ClipSpec, sprites: Sprites, files: list[Path], name: str, number: int, reading: Reading) -> Triplet:
    """A composed clip; every other one has a reference that was composed too, the rest an image as it is."""
    clip = compose(spec, sprites)
    video = encoded(iter(clip.video), reading.fps)
    own = int(spec.casts[0].subject.key)
    if number % 2:
        image = clip.references[0]
    else:
        image = read_image(files[(own + 1 + number // 2 % max(1, len(files) - 1)) % len(files)])[0]
    target = io.BytesIO()
    Image.fromarray(image).save(target, "PNG")
    reference = TripletReference(target.getvalue(), name, "cross-pair", rights=reading.rights)
    caption = f"{reading.trigger} {clip.caption.replace(SUBJECT, name, 1)}".strip()
    shape = (video.fps, video.count, video.height, video.width)
    return Triplet(video.video, caption, (reference,), *shape, rights=reading.rights, repeats=reading.repeats)


def _sprites(files: list[Path], name: str, reading: Reading) -> Sprites:
    """Sprites of the images that the subject can be cut out of; the key of each is the number of its file."""
    subjects, pixels = list[Subject](), list[np.ndarray]()
    for number, path in enumerate(files):
        try:
            image, _ = read_image(path)
            alpha = cut_out_alpha(path, image)
        except InputError as error:
            reading.notify(f"{path.name}: its subject does not move: {error}")
            continue
        subjects.append(Subject(str(number), name, name, len(pixels), 1))
        pixels.append(_sprite(image, alpha))
    if not subjects:
        raise InputError(
            "the subject can be cut out of no image, so nothing can move; use images that are transparent or have a uniform "
            "background, or no --moving (of the example: MOVING=0)"
        )
    return Sprites(tuple(subjects), np.stack(pixels))


def _sprite(image: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The opaque part of an image in the middle of a square, premultiplied uint8 [SIDE, SIDE, 4]."""
    rows, columns = (np.flatnonzero(alpha.any(axis)) for axis in (1, 0))
    box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    cut = np.concatenate([image * alpha[..., None], (alpha * 255)[..., None].astype(np.uint8)], -1)[box]
    height, width = cut.shape[:2]
    side = max(height, width)
    square = np.zeros((side, side, 4), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = cut
    small = [Image.fromarray(square[..., c]).resize((SIDE, SIDE), Image.Resampling.LANCZOS) for c in range(4)]
    return np.stack([np.asarray(channel) for channel in small], -1)
