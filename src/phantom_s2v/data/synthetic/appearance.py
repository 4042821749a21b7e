"""Appearances and backgrounds as data: colors, patterns, plain, graded and textured backgrounds; render.py draws them.

One name must stand for many appearances, so that identity is read from the image and not recalled from the word.
Sprites are float32 premultiplied RGBA in 0..1, [..., H, W, 4].
"""

from dataclasses import dataclass

import numpy as np

COLORS: dict[str, tuple[int, int, int]] = {
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
class Appearance:
    """How a subject differs from its emoji. Both renderings of one identity share their appearance."""

    hue: float = 0.0  # radians of rotation around the gray axis
    tint: str = ""  # a color's name: the subject in shades of it
    pattern: str = ""  # one of PATTERNS
    pattern_color: str = "white"
    mirrored: bool = False


@dataclass(frozen=True)
class Background:
    """A background. kind is plain, graded or one of TEXTURES; `second` is unused where plain."""

    kind: str = "plain"
    color: str = "white"
    second: str = "white"
    jitter: tuple[int, int, int] = (0, 0, 0)  # shift of the color, in 0..255
    seed: int = 0  # phase of textures, direction of grades

    @property
    def words(self) -> str:
        """The caption's words."""
        if self.kind == "plain":
            return f"a {self.color} background"
        if self.kind == "graded":
            return f"a background fading from {self.color} to {self.second}"
        return f"a {self.color} background with {self.second} {self.kind}"


PLAIN_APPEARANCE = Appearance()
WHITE_BACKGROUND = Background()


def random_appearance(rng: np.random.Generator) -> Appearance:
    """Half of the subjects keep their colors; a third carries a pattern; half are mirrored."""
    kind = rng.random()
    names = list(COLORS)
    return Appearance(
        hue=float(rng.uniform(0.5, 2 * np.pi - 0.5)) if 0.5 <= kind < 0.85 else 0.0,
        tint=str(rng.choice(names)) if kind >= 0.85 else "",
        pattern=str(rng.choice(PATTERNS)) if rng.random() < 0.33 else "",
        pattern_color=str(rng.choice(names)),
        mirrored=bool(rng.random() < 0.5),
    )


def random_background(rng: np.random.Generator) -> Background:
    """Half plain, a quarter graded, a quarter textured; colors shifted by up to 12."""
    kind = str(rng.choice(["plain", "graded", *TEXTURES], p=[0.5, 0.25, *[0.0625] * 4]))
    color, second = (str(name) for name in rng.choice(list(COLORS), 2, replace=False))
    red, green, blue = (int(v) for v in rng.integers(-12, 13, 3))
    return Background(kind, color, second, (red, green, blue), int(rng.integers(1 << 30)))


def color_word(sprite: np.ndarray) -> str:
    """Name of the color nearest to the mean of a sprite's opaque part."""
    return nearest_color(mean_color(sprite))


def mean_color(sprite: np.ndarray) -> np.ndarray:
    """Mean RGB, 0..255, of a sprite's opaque part."""
    return sprite[..., :3].reshape(-1, 3).sum(0) / (sprite[..., 3].sum() + 1e-6) * 255


def nearest_color(rgb: np.ndarray) -> str:
    """Name in COLORS nearest to an RGB value in 0..255 (Euclidean)."""
    return min(COLORS, key=lambda name: float(((np.asarray(COLORS[name]) - rgb) ** 2).sum()))
