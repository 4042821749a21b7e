"""The robustness suite: held-out emoji whose references were made hard, each held against the clean image.

The same subjects and prompts come with the image as it is (plain), and as true clips: the upper bound. The control is the
similarity to another subject's reference.
"""

from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from phantom_s2v.data.synthetic.compose import Shot, caption, compose
from phantom_s2v.data.synthetic.emoji import Sprites
from phantom_s2v.data.synthetic.heldout import evaluated, held_out, still_path
from phantom_s2v.evaluation.instruments import Embed
from phantom_s2v.evaluation.metrics.subjects import cut_reference
from phantom_s2v.evaluation.suites.emoji import EmojiCase, emoji_cases, pair_case
from phantom_s2v.evaluation.suites.own import Case
from phantom_s2v.files.reuse import Origin, code_version
from phantom_s2v.media import images

ONE = ("plain", "turned", "dark", "backlit", "cropped", "blurred", "small", "overlapping")
KINDS = ("true clip", *ONE, "look-alikes")
SUBJECTS = 12
WHITE = 255


def hardened(kind: str, image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A reference on white, uint8 [H, W, 3], made hard; `other` is a subject that covers a part of it where they overlap."""
    pil_image, side = Image.fromarray(image), max(image.shape[:2])
    subject = (image < WHITE - 5).any(-1, keepdims=True)
    if kind == "turned":
        return np.asarray(pil_image.rotate(40, Image.Resampling.BICUBIC, expand=True, fillcolor=(WHITE,) * 3))
    if kind == "dark":
        return (image * 0.3).astype(np.uint8)
    if kind == "backlit":
        shaded = np.where(subject, (image * 0.35).astype(np.uint8), WHITE).astype(np.uint8)
        bloom = np.asarray(Image.fromarray(shaded).filter(ImageFilter.GaussianBlur(0.05 * side)), float)
        return np.clip(np.maximum(shaded, 0.6 * bloom), 0, WHITE).astype(np.uint8)
    if kind == "cropped":
        return image[:, : round(0.55 * image.shape[1])]
    if kind == "blurred":
        return np.asarray(pil_image.filter(ImageFilter.GaussianBlur(0.03 * side)))
    if kind == "small":
        canvas = Image.new("RGB", (4 * pil_image.width, 4 * pil_image.height), (WHITE,) * 3)
        canvas.paste(pil_image, (round(1.5 * pil_image.width), round(1.5 * pil_image.height)))
        return np.asarray(canvas)
    if kind == "overlapping":
        width = round(0.6 * image.shape[1])
        over = images.letterbox(other, width, width)
        covered = image.copy()
        place = covered[-width:, -width:]
        place[:] = np.where((over < WHITE - 5).any(-1, keepdims=True), over[: len(place), : place.shape[1]], place)
        return covered
    return image


def robustness_cases(folder: Path, embed: Embed, limit: int | None) -> tuple[list[Case], dict[str, np.ndarray]]:
    """Cases with their hard references written into `folder`, and the frames of those that are true clips, by id."""
    sprites = held_out()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [c for c in emoji_cases(sprites, limit or SUBJECTS) if c.kind == "unnamed"]
    stills = {case.subjects[0].key: images.read_image(still_path(case.subjects[0].key))[0] for case in chosen}
    cases, clips = [], {}
    for number, case in enumerate(chosen):
        key = case.subjects[0].key
        clean = (("subject", still_path(key)),)
        other = stills[chosen[(number + 1) % len(chosen)].subjects[0].key]
        options = {"seed": case.seed}
        cases.append(Case(f"true-clip-{key}", caption(case.spec, sprites), clean, kind="true clip"))
        clips[cases[-1].id] = compose(case.spec, sprites).video
        for kind in ONE:
            file = folder / f"{kind}-{key}.png"
            images.write_image(file, hardened(kind, stills[key], other))
            cases.append(Case(f"{kind}-{key}", caption(case.spec, sprites), (("subject", file),), clean, kind, options))
        cases.append(_look_alikes(case, number, stills[key], embed, sprites))
    return sorted(cases, key=lambda c: KINDS.index(c.kind)), clips


def clip_origin(clip: np.ndarray, fps: int) -> Origin:
    """What makes the video of a true clip: its frames, and how they are written."""
    return {
        "frames": sha256(clip.tobytes()).hexdigest(),
        "shape": list(clip.shape),
        "fps": fps,
        "code": code_version("media.images"),
    }


def _look_alikes(case: EmojiCase, number: int, still: np.ndarray, embed: Embed, sprites: Sprites) -> Case:
    """A video of a subject and of the other held-out subject that is most like it."""
    subject = case.subjects[0]
    others = [s for s in evaluated(sprites) if s.key != subject.key]
    other_images = [images.read_image(still_path(s.key))[0] for s in others]
    vectors = embed([part if (part := cut_reference(p)) is not None else p for p in (still, *other_images)])
    twin = others[int((vectors[1:] @ vectors[0]).argmax())]
    pair = pair_case((subject, twin), number, sprites)
    spec = replace(pair.spec, shots=((Shot(),), (Shot(),)), named=False)
    named = tuple((f"{word} subject", still_path(s.key)) for word, s in (("first", subject), ("second", twin)))
    return Case(f"look-alikes-{subject.key}", caption(spec, sprites), named, kind="look-alikes", options={"seed": pair.seed})
