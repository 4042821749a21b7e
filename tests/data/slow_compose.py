"""The composition of clips written once more, clip by clip in numpy and Pillow: the oracle of data/render.py."""

import numpy as np
from PIL import Image

from phantom_s2v.data.synthetic.appearance import COLORS, Appearance, Background
from phantom_s2v.data.synthetic.compose import Cast, Clip, ClipSpec, Shot, appearance_caption, caption, trajectory
from phantom_s2v.data.synthetic.emoji import Sprites


def compose(spec: ClipSpec, sprites: Sprites) -> Clip:
    """Render a spec."""
    canvas = np.repeat(paint(spec.background, spec.side, spec.side)[None], spec.frames, 0)
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
    appearances = tuple(appearance_caption(cast, sprites) for cast in spec.casts)
    return Clip(video, tuple(references), tuple(subject_of), caption(spec, sprites), _to_uint8(masks), appearances)


def _animate(cast: Cast, sprites: Sprites, frames: int, side: int) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Layers [F, side, side, 4] of a subject along its path, and its first box (y, x, size) in pixels."""
    images = sprites.clip(cast.subject)
    order = (cast.phase + np.arange(frames)) % len(images)
    looked = {i: apply_appearance(images[i].astype(np.float32) / 255, cast.appearance) for i in dict.fromkeys(order.tolist())}
    layers = np.zeros((frames, side, side, 4), np.float32)
    path = trajectory(cast, frames)
    for frame, (y, x, size) in enumerate(path * side):
        _place(layers[frame], looked[int(order[frame])], y, x, size)
    y, x, size = path[0] * side
    return layers, (float(y), float(x), float(size))


def _place(layer: np.ndarray, sprite: np.ndarray, y: float, x: float, size: float) -> None:
    """Draw a sprite of `size` pixels with its center at (y, x), antialiased and at fractions of a pixel."""
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
    image = clip[shot.phase % len(clip)] if shot.animated else sprites.still(cast.subject)
    sprite = apply_appearance(image.astype(np.float32) / 255, cast.appearance)
    if shot.turn:
        sprite = np.stack(
            [np.asarray(Image.fromarray(sprite[..., c]).rotate(shot.turn, Image.Resampling.BILINEAR)) for c in range(4)], -1
        )
    layer = np.zeros((side, side, 4), np.float32)
    center = [side * (0.5 + share) for share in shot.shift]
    _place(layer, sprite, center[0], center[1], shot.scale * side)
    image = paint(shot.background, side, side) * (1 - layer[..., 3:]) + np.clip(layer[..., :3] * shot.gain, 0, 1)
    return _to_uint8(image)


def _crop(frame: np.ndarray, box: tuple[float, float, float]) -> np.ndarray:
    """The subject's square in a frame, resized to the frame's size; beyond the frame its border is repeated."""
    y, x, size = box
    margin, half = frame.shape[0], size * 0.55
    padded = Image.fromarray(np.pad(frame, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    corners = (x - half + margin, y - half + margin, x + half + margin, y + half + margin)
    return np.asarray(
        padded.transform((frame.shape[1], frame.shape[0]), Image.Transform.EXTENT, corners, Image.Resampling.BILINEAR)
    )


def _to_uint8(image: np.ndarray) -> np.ndarray:
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def apply_appearance(sprite: np.ndarray, appearance: Appearance) -> np.ndarray:
    """Mirror, recolor and pattern a sprite [..., H, W, 4]."""
    rgb, alpha = sprite[..., :3], sprite[..., 3:]
    if appearance.mirrored:
        rgb, alpha = rgb[..., ::-1, :], alpha[..., ::-1, :]
    if appearance.hue:
        rgb = rgb @ _hue_matrix(appearance.hue).T
    if appearance.tint:
        luminance = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
        rgb = (0.35 + 0.9 * luminance[..., None]) * _unit(appearance.tint) * alpha
    if appearance.pattern:
        weight = 0.75 * _pattern(appearance.pattern, *sprite.shape[-3:-1])[..., None]
        rgb = rgb * (1 - weight) + weight * alpha * _unit(appearance.pattern_color)
    return np.concatenate([np.clip(rgb, 0, alpha), alpha], -1).astype(np.float32)


def paint(background: Background, height: int, width: int) -> np.ndarray:
    """The background as float32 RGB in 0..1, [H, W, 3]."""
    first = np.clip(_unit(background.color) + np.array(background.jitter, np.float32) / 255, 0, 1)
    if background.kind == "plain":
        return np.broadcast_to(first, (height, width, 3)).copy()
    second = _unit(background.second)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    rng = np.random.default_rng(background.seed)
    if background.kind == "graded":
        ramp = (y / max(1, height - 1)) if rng.random() < 0.5 else (x / max(1, width - 1))
        return first + ramp[..., None] * (second - first)
    return first + 0.5 * _texture(background.kind, y, x, rng)[..., None] * (second - first)


def _texture(kind: str, y: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    period, phase = rng.uniform(10, 18), rng.uniform(0, 16, 2)
    y, x = (y + phase[0]) * 2 * np.pi / period, (x + phase[1]) * 2 * np.pi / period
    if kind == "stripes":
        return _step(np.sin(x + y if rng.random() < 0.5 else (x if rng.random() < 0.5 else y)))
    if kind == "dots":
        return _step(2 * (np.cos(x) + np.cos(y) - 0.9))
    if kind == "checks":
        return _step(3 * np.sin(x) * np.sin(y))
    coarse = rng.random((9, 9)).astype(np.float32)
    rows, columns = (np.linspace(0, 7.99, n) for n in y.shape)
    return _bilinear(coarse, rows, columns)


def _bilinear(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    r, c = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r)[:, None], (columns - c)[None]
    upper = grid[r][:, c] * (1 - fc) + grid[r][:, c + 1] * fc
    lower = grid[r + 1][:, c] * (1 - fc) + grid[r + 1][:, c + 1] * fc
    return upper * (1 - fr) + lower * fr


def _step(wave: np.ndarray) -> np.ndarray:
    """A soft step from 0 to 1 around zero, about one pixel wide, so that textures are not aliased."""
    return np.clip(wave * 1.6 + 0.5, 0, 1)


def _pattern(kind: str, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width].astype(np.float32) * (2 * np.pi / (height / 4.5))
    if kind == "striped":
        return _step(1.5 * np.sin(x + y))
    if kind == "dotted":
        return _step(2 * (np.cos(x) + np.cos(y) - 0.8))
    return _step(3 * np.sin(x / 1.3) * np.sin(y / 1.3))


def _hue_matrix(angle: float) -> np.ndarray:
    """Rotation of RGB around the gray axis (Rodrigues), which keeps the sum of the channels."""
    cosine, sine = np.cos(angle), np.sin(angle) / np.sqrt(3)
    third = (1 - cosine) / 3
    return (np.eye(3) * cosine + third + sine * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])).astype(np.float32)


def _unit(name: str) -> np.ndarray:
    return np.array(COLORS[name], np.float32) / 255
