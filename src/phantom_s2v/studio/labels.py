"""The visible label of an exported video: words on a dark plate at its lower left, in every frame."""

from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

FALLBACK = "AI-generated"  # where no font here has the letters of the label
SHARE, SMALLEST = 0.045, 9  # of the shorter side; pixels of the letters
FONTS = (  # those of distributions that have Japanese
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/opentype/ipaexfont-gothic/ipaexg.ttf",
    "/usr/share/fonts/truetype/vlgothic/VL-Gothic-Regular.ttf",
    "/System/Library/Fonts/ヒラギノ角ゴシック W3.ttc",
    "C:/Windows/Fonts/meiryo.ttc",
)
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def drawn_text(text: str, font_file: str) -> str:
    """The label as it is drawn here: itself, or FALLBACK."""
    return text if text and _font(text, font_file, 16) is not None else FALLBACK


def labelled(frames: Iterable[np.ndarray], text: str, font_file: str = "") -> Iterator[np.ndarray]:
    """Frames, uint8 [H, W, 3], with the label. Where it is wider than the frame it is "AI" alone."""
    plate = None
    for frame in frames:
        if plate is None:
            plate = _plate(drawn_text(text, font_file), font_file, frame.shape[0], frame.shape[1])
        height, width = plate.shape[:2]
        marked, margin = frame.copy(), max(1, min(frame.shape[:2]) // 60)
        below = marked.shape[0] - margin
        marked[below - height : below, margin : margin + width] = plate
        yield marked


def _plate(text: str, font_file: str, height: int, width: int) -> np.ndarray:
    """The label alone, uint8 [h, w, 3]."""
    size = max(SMALLEST, round(SHARE * min(height, width)))
    for words in (text, "AI"):
        font = _font(words, font_file, size)
        assert font is not None
        left, top, right, bottom = (round(each) for each in ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), words, font))
        gap = max(2, size // 3)
        image = Image.new("RGB", (right - left + 2 * gap, bottom - top + 2 * gap), (20, 20, 20))
        ImageDraw.Draw(image).text((gap - left, gap - top), words, (255, 255, 255), font)
        if image.width <= 0.9 * width and image.height <= 0.9 * height:
            break
    return np.asarray(image)[: height - 2, : width - 2]


@cache
def _font(text: str, font_file: str, size: int) -> Font | None:
    """A font that has all letters of a text: the one named, Pillow's own, or one of FONTS."""
    if text.isascii() and not font_file:
        return ImageFont.load_default(size)
    for name in ([font_file] if font_file else []) + list(FONTS):
        if Path(name).is_file():
            font = ImageFont.truetype(name, size)
            missing = _drawn("\U0010ffff", font)
            if text.isascii() or all(_drawn(letter, font) != missing for letter in text if not letter.isspace()):
                return font
    return ImageFont.load_default(size) if text.isascii() else None


def _drawn(letter: str, font: Font) -> bytes:
    image = Image.new("L", (64, 64))
    ImageDraw.Draw(image).text((8, 8), letter, 255, font)
    return image.tobytes()
