"""Clips of emoji with their references and captions: text-image-video triplets with a known truth.

One to four subjects move over a background. A reference is in-pair (cut from the clip itself) or cross-pair (the other
rendering, another scale, turn, background and light). Everything follows from a ClipSpec, and a spec from a seed.
"""

from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from phantom_s2v.data.emoji import Sprites, Subject
from phantom_s2v.data.looks import (
    PLAIN_LOOK,
    WHITE_GROUND,
    Ground,
    Look,
    apply_look,
    colour_word,
    paint,
    random_ground,
    random_look,
)

MOTIONS = {
    "left": "moves to the left",
    "right": "moves to the right",
    "up": "moves up",
    "down": "moves down",
    "still": "stays in place",
    "bounce": "bounces up and down",
    "sway": "sways from side to side",
    "circle": "moves in a circle",
    "grow": "comes closer",
    "shrink": "moves away",
}
_DIRECTIONS = {"left": (0.0, -1.0), "right": (0.0, 1.0), "up": (-1.0, 0.0), "down": (1.0, 0.0)}
_ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Cast:
    """One subject of a clip and what it does. Lengths are shares of the picture's side."""

    subject: Subject
    look: Look = PLAIN_LOOK
    size: float = 0.62  # side of the sprite
    centre: tuple[float, float] = (0.5, 0.5)  # (y, x) in the middle of the clip
    reach: float = 0.17  # distance from the middle of the clip to either end of the path
    motion: str = "right"
    phase: int = 0  # first frame of the animation


@dataclass(frozen=True)
class Shot:
    """How a reference picture is taken of a cast member; in-pair cuts it from the clip and ignores the rest."""

    in_pair: bool = False
    animated: bool = False  # from the animation and not from the still
    phase: int = 0
    scale: float = 1.0
    turn: float = 0.0  # degrees
    gain: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    ground: Ground = WHITE_GROUND


@dataclass(frozen=True)
class ClipSpec:
    """Everything that makes a clip and its references."""

    casts: tuple[Cast, ...]
    shots: tuple[tuple[Shot, ...], ...]  # views of each cast member
    ground: Ground
    named: bool  # whether the caption names the subjects
    frames: int = 25
    side: int = 64


@dataclass(frozen=True)
class Clip:
    """A composed triplet."""

    video: np.ndarray  # uint8 [F, H, W, 3]
    references: tuple[np.ndarray, ...]  # uint8 [H, W, 3], views of the first subject first
    subject_of: tuple[int, ...]  # cast member of each reference
    caption: str
    masks: np.ndarray = field(repr=False)  # uint8 [subjects, F, H, W], alpha of each before occlusion
    look_captions: tuple[str, ...] = ()  # colour, pattern and name of each subject


def random_spec(
    rng: np.random.Generator, pool: tuple[Subject, ...], frames: int = 25, side: int = 64, pictures: int | None = None
) -> ClipSpec:
    """A training clip. `pictures` fixes how many references it has (0 to 8), so that batches are of one shape."""
    if pictures is None:
        pictures = int(rng.choice(5, p=[0.05, 0.6, 0.25, 0.06, 0.04]))
    views = _random_views(rng, pictures)
    subjects = rng.choice(len(pool), max(1, len(views)), replace=False)
    slots = _slots(rng, len(subjects))
    casts = tuple(_random_cast(rng, pool[i], slot, len(subjects)) for i, slot in zip(subjects, slots, strict=True))
    shots = tuple(tuple(random_shot(rng) for _ in range(count)) for count in views) or ((),)
    named = not pictures or bool(rng.random() < 0.5)
    return ClipSpec(casts, shots, random_ground(rng), named, frames, side)


def plain_spec(
    rng: np.random.Generator, pool: tuple[Subject, ...], frames: int = 25, side: int = 64, pictures: int = 1
) -> ClipSpec:
    """A training clip as most users ask for it: large subjects, mostly in their own colours, going one way on a plain ground.

    `pictures` is 1 or 2: two are of two subjects side by side or, seldom, two views of one.
    """
    moving = tuple(subject for subject in pool if subject.animated) or pool
    spec = random_spec(rng, moving if rng.random() < 0.85 else pool, frames, side, pictures)
    casts = tuple(_plain_cast(rng, cast, len(spec.casts)) for cast in spec.casts)
    ground = replace(spec.ground, kind="plain") if rng.random() < 0.8 else spec.ground
    shots = tuple(tuple(Shot() if rng.random() < 0.7 else shot for shot in of) for of in spec.shots)
    return replace(spec, casts=casts, shots=shots, ground=ground)


def _plain_cast(rng: np.random.Generator, cast: Cast, count: int) -> Cast:
    look = Look(mirrored=bool(rng.random() < 0.3)) if rng.random() < 0.6 else replace(cast.look, pattern="")
    motion = str(rng.choice(list(_DIRECTIONS))) if rng.random() < 0.8 else cast.motion
    low, high, near, far = (0.66, 0.8, 0.13, 0.19) if count == 1 else (0.45, 0.52, 0.08, 0.11)
    return replace(cast, look=look, motion=motion, size=float(rng.uniform(low, high)), reach=float(rng.uniform(near, far)))


def _random_views(rng: np.random.Generator, pictures: int) -> list[int]:
    """Views of each subject: mostly one each; at most four subjects."""
    if not pictures:
        return []
    few = -(-pictures // 2)
    count = min(4, pictures if rng.random() < 0.8 else few) if pictures > 1 else 1
    views = [1] * count
    for _ in range(pictures - count):
        views[int(rng.integers(count))] += 1
    return views


def _slots(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Centres for `count` subjects, in random order, apart from each other."""
    if count == 1:
        return [(0.5 + float(rng.uniform(-0.1, 0.1)), 0.5 + float(rng.uniform(-0.1, 0.1)))]
    layouts = [[(0.5, 0.27), (0.5, 0.73)], [(0.27, 0.5), (0.73, 0.5)]]
    places = layouts[int(rng.integers(2))] if count == 2 else [(0.27, 0.27), (0.27, 0.73), (0.73, 0.27), (0.73, 0.73)]
    return [places[i] for i in rng.permutation(len(places))[:count]]


def _random_cast(rng: np.random.Generator, subject: Subject, slot: tuple[float, float], count: int) -> Cast:
    motion = str(rng.choice(list(MOTIONS), p=[0.14, 0.14, 0.14, 0.14, 0.14, *[0.06] * 5]))
    size = float(rng.choice([0.42, 0.58, 0.76], p=[0.15, 0.45, 0.4]) if count == 1 else 0.47 if count == 2 else 0.36)
    reach = 0.19 if count == 1 else 0.1
    return Cast(subject, random_look(rng), size * float(rng.uniform(0.93, 1.07)), slot, reach, motion, int(rng.integers(36)))


def random_shot(rng: np.random.Generator) -> Shot:
    """One reference in eight is in-pair; most others stand upright and large on white, as users' pictures do."""
    if rng.random() < 0.125:
        return Shot(in_pair=True)
    plain = rng.random() < 0.5
    return Shot(
        animated=bool(rng.random() < 0.3),
        phase=int(rng.integers(36)),
        scale=1.0 if plain else float(rng.uniform(0.6, 1.0)),
        turn=0.0 if plain else float(rng.uniform(-15, 15)),
        gain=1.0 if plain else float(rng.uniform(0.75, 1.15)),
        shift=(0.0, 0.0) if plain else (float(rng.uniform(-0.1, 0.1)), float(rng.uniform(-0.1, 0.1))),
        ground=WHITE_GROUND if rng.random() < 0.6 else random_ground(rng),
    )


def compose(spec: ClipSpec, sprites: Sprites) -> Clip:
    """Render a spec."""
    canvas = np.repeat(paint(spec.ground, spec.side, spec.side)[None], spec.frames, 0)
    masks = np.zeros((len(spec.casts), spec.frames, spec.side, spec.side), np.float32)
    boxes = []
    for index, cast in enumerate(spec.casts):
        layers, box = _animate(cast, sprites, spec.frames, spec.side)
        masks[index] = layers[..., 3]
        canvas = canvas * (1 - layers[..., 3:]) + layers[..., :3]
        boxes.append(box)
    video = _to_uint8(canvas)
    references, subject_of = [], []
    for index, (cast, shots) in enumerate(zip(spec.casts, spec.shots, strict=True)):
        for shot in shots:
            references.append(_crop(video[0], boxes[index]) if shot.in_pair else photograph(cast, shot, sprites, spec.side))
            subject_of.append(index)
    looks = tuple(look_caption(cast, sprites) for cast in spec.casts)
    return Clip(video, tuple(references), tuple(subject_of), caption(spec, sprites), _to_uint8(masks), looks)


def _animate(cast: Cast, sprites: Sprites, frames: int, side: int) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Layers [F, side, side, 4] of a subject along its path, and its first box (y, x, size) in pixels."""
    pictures = sprites.clip(cast.subject)
    order = (cast.phase + np.arange(frames)) % len(pictures)
    looked = {i: apply_look(pictures[i].astype(np.float32) / 255, cast.look) for i in dict.fromkeys(order.tolist())}
    layers = np.zeros((frames, side, side, 4), np.float32)
    path = trajectory(cast, frames)
    for frame, (y, x, size) in enumerate(path * side):
        _place(layers[frame], looked[int(order[frame])], y, x, size)
    y, x, size = path[0] * side
    return layers, (float(y), float(x), float(size))


def trajectory(cast: Cast, frames: int) -> np.ndarray:
    """(y, x, size) of every frame, [F, 3], as shares of the side. A full path takes 25 frames, whatever is cut off."""
    s = np.arange(frames) / 24 * 2 - 1  # -1 to 1 over a standard clip
    path = np.tile(np.array([*cast.centre, cast.size]), (frames, 1))
    if cast.motion in _DIRECTIONS:
        path[:, :2] += s[:, None] * cast.reach * np.array(_DIRECTIONS[cast.motion])
    elif cast.motion == "bounce":
        path[:, 0] += cast.reach * (0.5 - np.abs(np.sin(np.pi * (s + 1) * 1.5)))
    elif cast.motion == "sway":
        path[:, 1] += cast.reach * np.sin(np.pi * (s + 1) * 1.5)
    elif cast.motion == "circle":
        angle = np.pi * (s + 1)
        path[:, :2] += cast.reach * np.stack([np.sin(angle), np.cos(angle)], 1)
    elif cast.motion in ("grow", "shrink"):
        path[:, 2] *= np.exp(0.35 * s * (1 if cast.motion == "grow" else -1))
    return path


def _place(layer: np.ndarray, sprite: np.ndarray, y: float, x: float, size: float) -> None:
    """Draw a sprite of `size` pixels with its centre at (y, x), antialiased and at fractions of a pixel."""
    top, left = y - size / 2, x - size / 2
    pixels = max(1, int(np.ceil(size)) + 1)
    row, column = int(np.floor(top)), int(np.floor(left))
    scale = sprite.shape[0] / size
    resized = _resample(sprite, ((column - left) * scale, (row - top) * scale, scale), pixels)
    height, width = layer.shape[:2]
    r0, r1, c0, c1 = max(0, row), min(height, row + pixels), max(0, column), min(width, column + pixels)
    if r0 < r1 and c0 < c1:
        layer[r0:r1, c0:c1] = resized[r0 - row : r1 - row, c0 - column : c1 - column]


def _resample(sprite: np.ndarray, offset: tuple[float, float, float], pixels: int) -> np.ndarray:
    """Sample [pixels, pixels, 4] at (x0 + i s, y0 + j s), box-filtered: sprites are about twice as fine as the clip."""
    x0, y0, scale = offset
    rows = _coverage(sprite.shape[0], y0, scale, pixels)
    columns = _coverage(sprite.shape[1], x0, scale, pixels)
    half = (rows @ sprite.reshape(sprite.shape[0], -1)).reshape(len(rows), sprite.shape[1], 4)
    return np.matmul(columns, half)


def _coverage(length: int, start: float, scale: float, pixels: int) -> np.ndarray:
    """Weights [pixels, length]: the share of source cell j in output pixel i, which spans [start + i s, + s)."""
    low = start + np.arange(pixels)[:, None] * scale
    cells = np.arange(length)[None]
    overlap = np.minimum(low + scale, cells + 1) - np.maximum(low, cells)
    return (np.clip(overlap, 0, None) / scale).astype(np.float32)


def photograph(cast: Cast, shot: Shot, sprites: Sprites, side: int) -> np.ndarray:
    """A cross-pair reference, uint8 [side, side, 3]."""
    clip = sprites.clip(cast.subject)
    picture = clip[shot.phase % len(clip)] if shot.animated else sprites.still(cast.subject)
    sprite = apply_look(picture.astype(np.float32) / 255, cast.look)
    if shot.turn:
        sprite = np.stack(
            [np.asarray(Image.fromarray(sprite[..., c]).rotate(shot.turn, Image.Resampling.BILINEAR)) for c in range(4)], -1
        )
    layer = np.zeros((side, side, 4), np.float32)
    centre = [side * (0.5 + share) for share in shot.shift]
    _place(layer, sprite, centre[0], centre[1], shot.scale * side)
    picture = paint(shot.ground, side, side) * (1 - layer[..., 3:]) + np.clip(layer[..., :3] * shot.gain, 0, 1)
    return _to_uint8(picture)


def _crop(frame: np.ndarray, box: tuple[float, float, float]) -> np.ndarray:
    """The subject's square in a frame, resized to the frame's size; beyond the frame its border is repeated."""
    y, x, size = box
    margin, half = frame.shape[0], size * 0.55
    padded = Image.fromarray(np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    corners = (x - half + margin, y - half + margin, x + half + margin, y + half + margin)
    return np.asarray(
        padded.transform((frame.shape[1], frame.shape[0]), Image.Transform.EXTENT, corners, Image.Resampling.BILINEAR)
    )


def _to_uint8(picture: np.ndarray) -> np.ndarray:
    return np.clip(picture * 255 + 0.5, 0, 255).astype(np.uint8)


def look_caption(cast: Cast, sprites: Sprites) -> str:
    """Colour, pattern and name: "a green dotted fox"."""
    look = cast.look
    colour = look.tint or colour_word(apply_look(sprites.still(cast.subject).astype(np.float32) / 255, replace(look, pattern="")))
    pattern = f" {look.pattern_colour} {look.pattern}" if look.pattern else ""
    return f"a {colour}{pattern} {cast.subject.name}"


def caption(spec: ClipSpec, sprites: Sprites) -> str:
    """What happens, in one or two sentences."""
    if len(spec.casts) == 1:
        cast = spec.casts[0]
        who = look_caption(cast, sprites).removeprefix("a ") if spec.named else "subject"
        size = "large " if cast.size > 0.67 else "small " if cast.size < 0.47 else ""
        return f"The {size}{who} {MOTIONS[cast.motion]} on {spec.ground.words}."
    names = [
        f"the {look_caption(cast, sprites).removeprefix('a ')}" if spec.named else f"the {_ORDINALS[i]} subject"
        for i, cast in enumerate(spec.casts)
    ]
    acts = [f"{name} {_place_words(cast)}{MOTIONS[cast.motion]}" for name, cast in zip(names, spec.casts, strict=True)]
    return f"{', '.join(acts)}, on {spec.ground.words}.".capitalize()


def _place_words(cast: Cast) -> str:
    y, x = cast.centre
    words = [
        w for w in ("top" if y < 0.4 else "bottom" if y > 0.6 else "", "left" if x < 0.4 else "right" if x > 0.6 else "") if w
    ]
    return f"at the {' '.join(words)} " if words else ""
