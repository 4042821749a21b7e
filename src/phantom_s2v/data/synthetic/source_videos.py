"""Source videos of emoji whose every cut, subject and identity is known: the corpus that the data pipeline is measured on.

A source video is a row of shots of recurring subjects, one or two a shot. Some source videos have planted faults: a decoy (the
same emoji in another appearance, or another emoji in the same color), a near-duplicate of a shot, a static shot, burnt-in
text, black borders. Everything follows from a seed. `write_source_videos` writes NAME.mp4 and its truth NAME.truth.json.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from phantom_s2v.data.synthetic.appearance import COLORS, Appearance, color_word, random_appearance, random_background
from phantom_s2v.data.synthetic.compose import Cast, ClipSpec, compose
from phantom_s2v.data.synthetic.emoji import Sprites, Subject, sprites_hash
from phantom_s2v.data.synthetic.render import apply_appearance
from phantom_s2v.errors import InputError
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.files.io import read_json, write_json
from phantom_s2v.files.reuse import claim, code_version
from phantom_s2v.media import images

SIDE = 128  # pixels
FPS = 12
MOTIONS = ("left", "right", "up", "down", "bounce", "sway", "circle", "grow", "shrink")
VISIBLE = 30.0  # of 255: min mean difference of color between a subject and its decoy
WORDS = ("Breaking News at Nine", "Subscribe for more", "The End of Part One", "www.example.org", "Two weeks later")


@dataclass(frozen=True)
class Identity:
    """Who appears: an emoji in one appearance. `decoy_of` is the identity that it must not be taken for."""

    subject: Subject
    appearance: Appearance
    decoy_of: int = -1


@dataclass(frozen=True)
class ShotSpec:
    """One shot: which identities, how it is composed, and what is wrong with it."""

    kind: str  # plain, static, text, duplicate or borders
    clip: ClipSpec
    identities: tuple[int, ...]
    of: int = -1  # the shot that a duplicate repeats
    words: str = ""


@dataclass(frozen=True)
class SourceVideo:
    """A source video's frames, uint8 [F, H, W, 3], and its truth, as JSON."""

    frames: np.ndarray
    truth: dict


def random_source_video(rng: np.random.Generator, sprites: Sprites) -> tuple[tuple[Identity, ...], tuple[ShotSpec, ...]]:
    """Who appears in a source video, and its shots. Neighbors differ, so that every cut can be seen."""
    chosen = rng.choice(len(sprites.subjects), 4, replace=False)
    people = [Identity(sprites.subjects[i], random_appearance(rng)) for i in chosen[:3]]
    decoy = _random_decoy(rng, people[0], sprites, sprites.subjects[chosen[3]]) if rng.random() < 0.7 else None
    people += [decoy] if decoy else []
    shots: list[ShotSpec] = []
    borders = rng.random() < 0.08
    for number in range(int(rng.integers(6, 9))):
        if decoy and number == 2:
            who = (3,)
        elif rng.random() < 0.6:
            who = (number % 3,)
        else:
            who = tuple(int(i) for i in rng.permutation(3)[:2])
        shots.append(ShotSpec("borders" if borders else "plain", _random_clip(rng, [people[i] for i in who]), who))
    if not borders:
        shots = _with_faults(rng, shots, people)
    return tuple(people), tuple(shots)


def _with_faults(rng: np.random.Generator, shots: list[ShotSpec], people: list[Identity]) -> list[ShotSpec]:
    """Shots with, each in half of the source videos, one that is static, one with text, and one that repeats an earlier one."""
    if rng.random() < 0.5:
        shots.insert(3, ShotSpec("static", _random_clip(rng, people[:1]), (0,)))
    if rng.random() < 0.5:
        shots.insert(5, ShotSpec("text", _random_clip(rng, people[1:2]), (1,), words=str(rng.choice(WORDS))))
    if rng.random() < 0.5:
        shots.append(replace(shots[0], kind="duplicate", of=0))
    return shots


def _random_decoy(rng: np.random.Generator, real: Identity, sprites: Sprites, other: Subject) -> Identity | None:
    """Half: the same emoji, visibly of another color. Half: another emoji in the same color. None where neither comes up."""
    still = sprites.still(real.subject).astype(np.float32) / 255
    if rng.random() < 0.5:
        word = real.appearance.tint or color_word(apply_appearance(still, real.appearance))
        return Identity(other, replace(real.appearance, tint=word, hue=0.0), 0)
    before = apply_appearance(still, real.appearance)
    for _ in range(8):
        appearance = replace(real.appearance, tint=str(rng.choice(list(COLORS))), hue=0.0)
        after = apply_appearance(still, appearance)
        difference = np.abs(after - before)[..., :3].sum() / (3 * max(1.0, before[..., 3].sum())) * 255
        if difference > VISIBLE:
            return Identity(real.subject, appearance, 0)
    return None


def _random_clip(rng: np.random.Generator, people: list[Identity]) -> ClipSpec:
    casts = []
    places = [(0.5, 0.45)] if len(people) == 1 else [(0.5, 0.26), (0.5, 0.7)]
    for person, place in zip(people, places, strict=True):
        size = float(rng.uniform(0.42, 0.6) if len(people) == 1 else rng.uniform(0.34, 0.4))
        motion = str(rng.choice(MOTIONS))
        reach = 0.07 if len(people) == 1 else 0.03
        casts.append(Cast(person.subject, person.appearance, size, place, reach, motion, int(rng.integers(36))))
    return ClipSpec(tuple(casts), tuple(() for _ in casts), random_background(rng), True, int(rng.integers(24, 37)), SIDE)


def render(rng: np.random.Generator, people: tuple[Identity, ...], shots: tuple[ShotSpec, ...], sprites: Sprites) -> SourceVideo:
    """Frames and truth of a source video."""
    parts, shot_metadata, start = [], [], 0
    for shot in shots:
        clip = compose(shot.clip, sprites)
        video, masks = clip.video, clip.masks
        if shot.kind == "static":
            video, masks = np.repeat(video[:1], len(video), 0), np.repeat(masks[:, :1], len(video), 1)
        if shot.kind == "text":
            video = _write_over(video, shot.words)
        if shot.kind == "duplicate":
            video = np.clip(video[: len(video) - 2] * float(rng.uniform(0.92, 0.98)) + 3, 0, 255).astype(np.uint8)
            masks = masks[:, : len(video)]
        subjects = [{"identity": who, "boxes": _boxes(masks, index)} for index, who in enumerate(shot.identities)]
        shot_metadata.append(
            {"start": start, "stop": start + len(video), "kind": shot.kind, "of": shot.of, "caption": clip.caption}
            | {"subjects": subjects}
        )
        parts.append(video)
        start += len(video)
    frames = np.concatenate(parts)
    band = 16 if shots[0].kind == "borders" else 0
    if band:
        frames = np.pad(frames, ((0, 0), (band, band), (0, 0), (0, 0)))
        for shot in shot_metadata:
            for subject in shot["subjects"]:
                subject["boxes"] = [box and [box[0], box[1] + band, box[2], box[3] + band] for box in subject["boxes"]]
    identities = [{"key": p.subject.key, "appearance": asdict(p.appearance), "decoy_of": p.decoy_of} for p in people]
    return SourceVideo(frames, {"fps": FPS, "identities": identities, "shots": shot_metadata})


def _boxes(masks: np.ndarray, index: int) -> list[list[int] | None]:
    """Box (left, top, right, bottom) in pixels of a subject in every frame; None where it is cut by the frame or covered."""
    boxes: list[list[int] | None] = []
    for frame in range(masks.shape[1]):
        own = masks[index, frame] > 127
        covered = (masks[index + 1 :, frame] > 127).any(0) if index + 1 < len(masks) else np.zeros_like(own)
        rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
        whole = len(rows) and rows[0] > 1 and columns[0] > 1 and rows[-1] < own.shape[0] - 2 and columns[-1] < own.shape[1] - 2
        if not whole or (own & covered).sum() > 0.05 * own.sum():
            boxes.append(None)
        else:
            boxes.append([int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1])
    return boxes


def _write_over(video: np.ndarray, words: str) -> np.ndarray:
    """White words with a dark edge near the lower border, as subtitles are."""
    layer = Image.new("RGBA", (video.shape[2], video.shape[1]))
    draw, font = ImageDraw.Draw(layer), ImageFont.load_default(11)
    width = draw.textlength(words, font=font)
    place = ((video.shape[2] - width) / 2, video.shape[1] - 20)
    draw.text(place, words, fill="white", font=font, stroke_width=1, stroke_fill="black")
    overlay = np.asarray(layer).astype(np.float32)
    alpha = overlay[..., 3:] / 255
    return (video * (1 - alpha) + overlay[..., :3] * alpha).astype(np.uint8)


def write_source_videos(
    folder: Path, sprites: Sprites, count: int, seed: int, progress: Callable[[], None] = lambda: None
) -> None:
    """Compose `count` source videos into `folder`; those that are there already are kept. Source video i follows from the seed
    and i alone.

    Raises DataError where the folder holds source videos of another seed, of other subjects, or made by other code.
    """
    origin = {"seed": seed, "subjects": sprites_hash(sprites), "code": code_version("data.synthetic.source_videos")}
    claim(folder, origin, "video-*.mp4", "source videos")
    for number in range(count):
        path, truth = folder / f"video-{number:04d}.mp4", folder / f"video-{number:04d}.truth.json"
        if not _whole(path, truth):
            rng = np.random.default_rng([seed, 9, number])
            source_video = render(rng, *random_source_video(rng, sprites), sprites)
            images.write_video(path, source_video.frames, FPS)
            write_json(truth, {**source_video.truth, "source_video": content_hash(path)}, sealed=True, indent=None)
        progress()


def _whole(path: Path, truth: Path) -> bool:
    """Whether a source video is there, and is the one that its truth is of."""
    try:
        return read_json(truth)["source_video"] == content_hash(path)
    except (InputError, OSError, KeyError, TypeError):
        return False
