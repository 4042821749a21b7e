"""Looks and grounds: recolour, pattern, mirror and light a sprite; paint plain, graded and textured backgrounds.

One name must stand for many looks, so that identity is read from the picture and not recalled from the word.
Sprites are float32 premultiplied RGBA in 0..1, [..., H, W, 4].
"""

from dataclasses import dataclass

import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 49),
    "orange": (240, 140, 40),
    "yellow": (248, 215, 70),
    "green": (60, 160, 75),
    "teal": (60, 180, 180),
    "blue": (60, 100, 215),
    "purple": (135, 75, 190),
    "pink": (240, 150, 190),
    "brown": (125, 80, 50),
    "white": (255, 255, 255),
    "gray": (140, 140, 145),
    "black": (35, 35, 40),
}
PATTERNS = ("striped", "dotted", "checked")
TEXTURES = ("stripes", "dots", "checks", "noise")


@dataclass(frozen=True)
class Look:
    """How a subject differs from its emoji. Both renderings of one identity share their look."""

    hue: float = 0.0  # radians of rotation around the grey axis
    tint: str = ""  # a colour's name: the subject in shades of it
    pattern: str = ""  # one of PATTERNS
    pattern_colour: str = "white"
    mirrored: bool = False


@dataclass(frozen=True)
class Ground:
    """A background. kind is plain, graded or one of TEXTURES; `second` is unused where plain."""

    kind: str = "plain"
    colour: str = "white"
    second: str = "white"
    jitter: tuple[int, int, int] = (0, 0, 0)  # shift of the colour, in 0..255
    seed: int = 0  # phase of textures, direction of grades

    @property
    def words(self) -> str:
        """The caption's words."""
        if self.kind == "plain":
            return f"a {self.colour} background"
        if self.kind == "graded":
            return f"a background fading from {self.colour} to {self.second}"
        return f"a {self.colour} background with {self.second} {self.kind}"


PLAIN_LOOK = Look()
WHITE_GROUND = Ground()


def random_look(rng: np.random.Generator) -> Look:
    """Half of the subjects keep their colours; a third carries a pattern; half are mirrored."""
    kind = rng.random()
    names = list(COLOURS)
    return Look(
        hue=float(rng.uniform(0.5, 2 * np.pi - 0.5)) if 0.5 <= kind < 0.85 else 0.0,
        tint=str(rng.choice(names)) if kind >= 0.85 else "",
        pattern=str(rng.choice(PATTERNS)) if rng.random() < 0.33 else "",
        pattern_colour=str(rng.choice(names)),
        mirrored=bool(rng.random() < 0.5),
    )


def random_ground(rng: np.random.Generator) -> Ground:
    """Half plain, a quarter graded, a quarter textured; colours shifted by up to 12."""
    kind = str(rng.choice(["plain", "graded", *TEXTURES], p=[0.5, 0.25, *[0.0625] * 4]))
    colour, second = (str(name) for name in rng.choice(list(COLOURS), 2, replace=False))
    red, green, blue = (int(v) for v in rng.integers(-12, 13, 3))
    return Ground(kind, colour, second, (red, green, blue), int(rng.integers(1 << 30)))


def apply_look(sprite: np.ndarray, look: Look) -> np.ndarray:
    """Mirror, recolour and pattern a sprite [..., H, W, 4]."""
    rgb, alpha = sprite[..., :3], sprite[..., 3:]
    if look.mirrored:
        rgb, alpha = rgb[..., ::-1, :], alpha[..., ::-1, :]
    if look.hue:
        rgb = rgb @ _hue_matrix(look.hue).T
    if look.tint:
        luminance = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
        rgb = (0.35 + 0.9 * luminance[..., None]) * _unit(look.tint) * alpha
    if look.pattern:
        weight = 0.75 * _pattern(look.pattern, *sprite.shape[-3:-1])[..., None]
        rgb = rgb * (1 - weight) + weight * alpha * _unit(look.pattern_colour)
    return np.concatenate([np.clip(rgb, 0, alpha), alpha], -1).astype(np.float32)


def colour_word(sprite: np.ndarray) -> str:
    """Name of the colour nearest to the mean of a sprite's opaque part."""
    return nearest_colour(mean_colour(sprite))


def mean_colour(sprite: np.ndarray) -> np.ndarray:
    """Mean RGB, 0..255, of a sprite's opaque part."""
    return sprite[..., :3].reshape(-1, 3).sum(0) / (sprite[..., 3].sum() + 1e-6) * 255


def nearest_colour(rgb: np.ndarray) -> str:
    """Name in COLOURS nearest to an RGB value in 0..255 (Euclidean)."""
    return min(COLOURS, key=lambda name: float(((np.asarray(COLOURS[name]) - rgb) ** 2).sum()))


def paint(ground: Ground, height: int, width: int) -> np.ndarray:
    """The background as float32 RGB in 0..1, [H, W, 3]."""
    first = np.clip(_unit(ground.colour) + np.array(ground.jitter, np.float32) / 255, 0, 1)
    if ground.kind == "plain":
        return np.broadcast_to(first, (height, width, 3)).copy()
    second = _unit(ground.second)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    rng = np.random.default_rng(ground.seed)
    if ground.kind == "graded":
        ramp = (y / max(1, height - 1)) if rng.random() < 0.5 else (x / max(1, width - 1))
        return first + ramp[..., None] * (second - first)
    return first + 0.5 * _texture(ground.kind, y, x, rng)[..., None] * (second - first)


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
    """Rotation of RGB around the grey axis (Rodrigues), which keeps the sum of the channels."""
    cosine, sine = np.cos(angle), np.sin(angle) / np.sqrt(3)
    third = (1 - cosine) / 3
    return (np.eye(3) * cosine + third + sine * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])).astype(np.float32)


def _unit(name: str) -> np.ndarray:
    return np.array(COLOURS[name], np.float32) / 255
