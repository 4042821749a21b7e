"""Clips of emoji with their references and captions: text-image-video triplets with a known truth.

One to four subjects move over a background. A reference is in-pair (cut from the clip itself) or cross-pair (the other
rendering, another scale, turn, background and light). Everything follows from a ClipSpec, and a spec from a seed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from phantom_s2v.data.synthetic.appearance import (
    PLAIN_APPEARANCE,
    WHITE_BACKGROUND,
    Appearance,
    Background,
    color_word,
    random_appearance,
    random_background,
)
from phantom_s2v.data.synthetic.emoji import Sprites, Subject
from phantom_s2v.data.synthetic.render import Tensors, appearance_tensors, apply_appearance, background_tensors, render

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
THIN = 4  # every so many-th row and column of a still is enough to name its color
_ORDINALS = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Cast:
    """One subject of a clip and what it does. Lengths are shares of the image's side."""

    subject: Subject
    appearance: Appearance = PLAIN_APPEARANCE
    size: float = 0.62  # side of the sprite
    center: tuple[float, float] = (0.5, 0.5)  # (y, x) in the middle of the clip
    reach: float = 0.17  # distance from the middle of the clip to either end of the path
    motion: str = "right"
    phase: int = 0  # first frame of the animation


@dataclass(frozen=True)
class Shot:
    """How a reference image is taken of a cast member; in-pair cuts it from the clip and ignores the rest."""

    in_pair: bool = False
    animated: bool = False  # from the animation and not from the still
    phase: int = 0
    scale: float = 1.0
    turn: float = 0.0  # degrees
    gain: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    background: Background = WHITE_BACKGROUND


@dataclass(frozen=True)
class ClipSpec:
    """Everything that makes a clip and its references."""

    casts: tuple[Cast, ...]
    shots: tuple[tuple[Shot, ...], ...]  # views of each cast member
    background: Background
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
    appearance_captions: tuple[str, ...] = ()  # color, pattern and name of each subject


def random_spec(
    rng: np.random.Generator, pool: tuple[Subject, ...], frames: int = 25, side: int = 64, images: int | None = None
) -> ClipSpec:
    """A training clip. `images` fixes how many references it has (0 to 8), so that batches are of one shape."""
    if images is None:
        images = int(rng.choice(5, p=[0.05, 0.6, 0.25, 0.06, 0.04]))
    views = _random_views(rng, images)
    subjects = rng.choice(len(pool), max(1, len(views)), replace=False)
    slots = _slots(rng, len(subjects))
    casts = tuple(_random_cast(rng, pool[i], slot, len(subjects)) for i, slot in zip(subjects, slots, strict=True))
    shots = tuple(tuple(random_shot(rng) for _ in range(count)) for count in views) or ((),)
    named = not images or bool(rng.random() < 0.5)
    return ClipSpec(casts, shots, random_background(rng), named, frames, side)


def plain_spec(
    rng: np.random.Generator, pool: tuple[Subject, ...], frames: int = 25, side: int = 64, images: int = 1
) -> ClipSpec:
    """A training clip as most users ask for it: large subjects, mostly in their own colors, going one way on a plain background.

    `images` is 1 or 2: two are of two subjects side by side or, seldom, two views of one.
    """
    moving = tuple(subject for subject in pool if subject.animated) or pool
    spec = random_spec(rng, moving if rng.random() < 0.85 else pool, frames, side, images)
    casts = tuple(_plain_cast(rng, cast, len(spec.casts)) for cast in spec.casts)
    background = replace(spec.background, kind="plain") if rng.random() < 0.8 else spec.background
    shots = tuple(tuple(Shot() if rng.random() < 0.7 else shot for shot in of) for of in spec.shots)
    return replace(spec, casts=casts, shots=shots, background=background)


def _plain_cast(rng: np.random.Generator, cast: Cast, count: int) -> Cast:
    appearance = Appearance(mirrored=bool(rng.random() < 0.3)) if rng.random() < 0.6 else replace(cast.appearance, pattern="")
    motion = str(rng.choice(list(_DIRECTIONS))) if rng.random() < 0.8 else cast.motion
    low, high, near, far = (0.66, 0.8, 0.13, 0.19) if count == 1 else (0.45, 0.52, 0.08, 0.11)
    return replace(
        cast, appearance=appearance, motion=motion, size=float(rng.uniform(low, high)), reach=float(rng.uniform(near, far))
    )


def _random_views(rng: np.random.Generator, images: int) -> list[int]:
    """Views of each subject: mostly one each; at most four subjects."""
    if not images:
        return []
    few = -(-images // 2)
    count = min(4, images if rng.random() < 0.8 else few) if images > 1 else 1
    views = [1] * count
    for _ in range(images - count):
        views[int(rng.integers(count))] += 1
    return views


def _slots(rng: np.random.Generator, count: int) -> list[tuple[float, float]]:
    """Centers for `count` subjects, in random order, apart from each other."""
    if count == 1:
        return [(0.5 + float(rng.uniform(-0.1, 0.1)), 0.5 + float(rng.uniform(-0.1, 0.1)))]
    layouts = [[(0.5, 0.27), (0.5, 0.73)], [(0.27, 0.5), (0.73, 0.5)]]
    places = layouts[int(rng.integers(2))] if count == 2 else [(0.27, 0.27), (0.27, 0.73), (0.73, 0.27), (0.73, 0.73)]
    return [places[i] for i in rng.permutation(len(places))[:count]]


def _random_cast(rng: np.random.Generator, subject: Subject, slot: tuple[float, float], count: int) -> Cast:
    motion = str(rng.choice(list(MOTIONS), p=[0.14, 0.14, 0.14, 0.14, 0.14, *[0.06] * 5]))
    size = float(rng.choice([0.42, 0.58, 0.76], p=[0.15, 0.45, 0.4]) if count == 1 else 0.47 if count == 2 else 0.36)
    reach = 0.19 if count == 1 else 0.1
    return Cast(
        subject, random_appearance(rng), size * float(rng.uniform(0.93, 1.07)), slot, reach, motion, int(rng.integers(36))
    )


def random_shot(rng: np.random.Generator) -> Shot:
    """One reference in eight is in-pair; most others stand upright and large on white, as users' images do."""
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
        background=WHITE_BACKGROUND if rng.random() < 0.6 else random_background(rng),
    )


def compose(spec: ClipSpec, sprites: Sprites) -> Clip:
    """One clip, on the CPU."""
    drawn = render(scene_tensors([spec], sprites), sprites.pixels, spec.side)
    video, references, masks = (part[0].numpy() for part in (drawn.video, drawn.references, drawn.masks))
    appearances = tuple(appearance_caption(cast, sprites) for cast in spec.casts)
    return Clip(video, tuple(references), _subject_of(spec), caption(spec, sprites), masks, appearances)


def photograph(cast: Cast, shot: Shot, sprites: Sprites, side: int) -> np.ndarray:
    """One cross-pair reference, uint8 [side, side, 3]."""
    return compose(ClipSpec((cast,), ((shot,),), WHITE_BACKGROUND, False, 1, side), sprites).references[0]


def _subject_of(spec: ClipSpec) -> tuple[int, ...]:
    """Cast member of each reference."""
    return tuple(index for index, shots in enumerate(spec.shots) for _ in shots)


def scene_tensors(specs: Sequence[ClipSpec], sprites: Sprites) -> Tensors:
    """Everything that `render` needs of clips with one size, one length and one number of references, as flat tensors.

    Clips with fewer subjects than the most get invisible ones, so that a batch has one shape.
    """
    side, frames = specs[0].side, specs[0].frames
    count = max(len(spec.casts) for spec in specs)
    nobody = Cast(sprites.subjects[0], size=0.01, center=(-9.0, -9.0), motion="still")
    casts = [cast for spec in specs for cast in (*spec.casts, *[nobody] * (count - len(spec.casts)))]
    orders = [_sprite_order(cast, sprites, frames) for cast in casts]
    paths = [trajectory(cast, frames) * side for cast in casts]
    shape = (len(specs), count, frames)
    return {
        "sprite": torch.from_numpy(np.stack(orders)).view(shape),
        "path": torch.from_numpy(np.stack(paths)).float().view(*shape, 3),
        "subjects": torch.tensor([_subject_of(spec) for spec in specs], dtype=torch.int64).view(len(specs), -1),
        **_prefixed("appearance.", appearance_tensors([cast.appearance for cast in casts])),
        **_prefixed("background.", background_tensors([spec.background for spec in specs])),
        **_shot_tensors(specs, sprites),
    }


def _sprite_order(cast: Cast, sprites: Sprites, frames: int) -> np.ndarray:
    """Indices of the sprites of every frame, [F]."""
    first, count = sprites.clip_range(cast.subject)
    return first + (cast.phase + np.arange(frames)) % count


def _shot_tensors(specs: Sequence[ClipSpec], sprites: Sprites) -> Tensors:
    """The references' part of `scene_tensors`, [B, n] each."""
    side = specs[0].side
    taken = [(i, cast, shot) for spec in specs for i, cast in enumerate(spec.casts) for shot in spec.shots[i]]
    if not taken:
        return {"shot.sprite": torch.zeros(len(specs), 0, dtype=torch.int64)}
    boxes = [[side * (0.5 + shot.shift[0]), side * (0.5 + shot.shift[1]), side * shot.scale] for _, _, shot in taken]
    each = {
        "sprite": torch.tensor([_shot_sprite(cast, shot, sprites) for _, cast, shot in taken]),
        "subject": torch.tensor([index for index, _, _ in taken]),
        "in_pair": torch.tensor([shot.in_pair for _, _, shot in taken]),
        "turn": torch.tensor([shot.turn for _, _, shot in taken]),
        "gain": torch.tensor([shot.gain for _, _, shot in taken]),
        "box": torch.tensor(boxes),
    }
    rows = {name: value.unflatten(0, (len(specs), -1)) for name, value in each.items()}
    return {
        **_prefixed("shot.", rows),
        **_prefixed("shot_background.", background_tensors([shot.background for _, _, shot in taken])),
    }


def _shot_sprite(cast: Cast, shot: Shot, sprites: Sprites) -> int:
    first, count = sprites.clip_range(cast.subject)
    return first + shot.phase % count if shot.animated else cast.subject.start


def _prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: value for name, value in tensors.items()}


def trajectory(cast: Cast, frames: int) -> np.ndarray:
    """(y, x, size) of every frame, [F, 3], as shares of the side. A full path takes 25 frames, whatever is cut off."""
    s = np.arange(frames) / 24 * 2 - 1  # -1 to 1 over a standard clip
    path = np.tile(np.array([*cast.center, cast.size]), (frames, 1))
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


def appearance_caption(cast: Cast, sprites: Sprites) -> str:
    """Color, pattern and name: "a green dotted fox"."""
    appearance = cast.appearance
    small = sprites.still(cast.subject)[::THIN, ::THIN].astype(np.float32) / 255
    color = appearance.tint or color_word(apply_appearance(small, replace(appearance, pattern="")))
    pattern = f" {appearance.pattern_color} {appearance.pattern}" if appearance.pattern else ""
    return f"a {color}{pattern} {cast.subject.name}"


def caption(spec: ClipSpec, sprites: Sprites) -> str:
    """What happens, in one or two sentences."""
    if len(spec.casts) == 1:
        cast = spec.casts[0]
        who = appearance_caption(cast, sprites).removeprefix("a ") if spec.named else "subject"
        size = "large " if cast.size > 0.67 else "small " if cast.size < 0.47 else ""
        return f"The {size}{who} {MOTIONS[cast.motion]} on {spec.background.words}."
    names = [
        f"the {appearance_caption(cast, sprites).removeprefix('a ')}" if spec.named else f"the {_ORDINALS[i]} subject"
        for i, cast in enumerate(spec.casts)
    ]
    acts = [f"{name} {_place_words(cast)}{MOTIONS[cast.motion]}" for name, cast in zip(names, spec.casts, strict=True)]
    return f"{', '.join(acts)}, on {spec.background.words}.".capitalize()


def _place_words(cast: Cast) -> str:
    y, x = cast.center
    words = [
        w for w in ("top" if y < 0.4 else "bottom" if y > 0.6 else "", "left" if x < 0.4 else "right" if x > 0.6 else "") if w
    ]
    return f"at the {' '.join(words)} " if words else ""
