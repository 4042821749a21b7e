"""A decoded frame -> the image that a player shows: upright, of square pixels, BT.709 of 8 bits, composited on white."""

from fractions import Fraction

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from phantom_s2v.geometry import fit_inside
from phantom_s2v.media import color

MAX_FRAME_PIXELS = 8192 * 4320  # 8K
LONGEST_PIXEL = 8  # shape of a pixel, of which more is a fault of the file
LIMITED, FULL = 1, 2  # ranges
ALL_PIXELS = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
TURNS = (
    "",
    "rotated by 270 degrees",
    "rotated by 180 degrees",
    "rotated by 90 degrees",
)  # of quarters counterclockwise: clockwise
TRANSFERS = {color.PQ: "HDR (PQ)", color.HLG: "HDR (HLG)", color.LINEAR: "linear light"}


class Unfit(ValueError):  # noqa: N818 - its text is a reason
    """A reason that needs no more words."""


def check_pixels(width: int, height: int) -> None:
    """Raise Unfit for a frame beyond 8K."""
    if width * height > MAX_FRAME_PIXELS:
        raise Unfit(f"{width}x{height}; at most {MAX_FRAME_PIXELS:,} pixels are supported")


class Look:
    """How a frame has to be shown: its size upright and with square pixels, its turn, and what its colors are."""

    def __init__(self, frame: av.VideoFrame, pixel: Fraction | None) -> None:
        self.turn, self.mirrored = orientation(frame)
        self.pixel = Fraction(pixel) if pixel and Fraction(1, LONGEST_PIXEL) <= pixel <= LONGEST_PIXEL else Fraction(1)
        height, width = round(frame.height / min(self.pixel, 1)), round(frame.width * max(self.pixel, 1))
        self.shape = (width, height) if self.turn % 2 else (height, width)
        form = frame.format
        self.alpha = form.has_palette or any(c.is_alpha for c in form.components)
        self.coded = not form.is_rgb and sum(not c.is_alpha for c in form.components) == 3  # Y'CbCr
        self.full = frame.color_range == FULL or form.name.startswith("yuvj")
        unknown = frame.colorspace in (2, 3)
        self.matrix = color.guess_matrix(frame.height, frame.width) if unknown else frame.colorspace
        self.transfer, self.primaries = frame.color_trc, frame.color_primaries
        self.wide = color.needs_conversion(self.transfer, self.primaries)
        check_pixels(width, height)
        if self.coded and self.matrix not in color.MATRICES:
            raise Unfit(f"coded with color matrix {self.matrix} of ITU-T H.273, which is not supported")


def notices_of(frame: av.VideoFrame, pixel: Fraction | None) -> list[str]:
    """What is converted in frames like this one."""
    look, bits = Look(frame, pixel), max(c.bits for c in frame.format.components)
    ratio = f"{pixel.numerator}:{pixel.denominator}" if pixel else ""
    notices = [
        TURNS[look.turn],
        "mirrored" if look.mirrored else "",
        f"pixels of {ratio} made square" if look.pixel != 1 else "",
        f"pixels of {ratio} are not possible and taken as square" if pixel and pixel != look.pixel else "",
        f"{TRANSFERS.get(look.transfer, 'wide color gamut')} converted to BT.709" if look.wide else "",
        f"{bits} bits reduced to 8" if bits > 8 else "",
        "transparency composited on white" if look.alpha and _transparent(frame) else "",
    ]
    return [each for each in notices if each]


def _transparent(frame: av.VideoFrame) -> bool:
    return bool((frame.reformat(format="rgba").to_ndarray()[..., 3] < 255).any())


def orientation(frame: av.VideoFrame) -> tuple[int, bool]:
    """(quarter turns counterclockwise, whether it is mirrored left to right before them), by the display matrix."""
    try:
        data = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # of a frame with data that PyAV has no name for, such as EXIF, it gives the rotation alone
        return round(frame.rotation / 90) % 4, False
    if data is None:
        return 0, False
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32).astype(float).tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):  # the nearest quarter
        across, down, swapped = a < 0, d < 0, False
    else:
        across, down, swapped = c < 0, b < 0, True
    if swapped:  # a transposition, then flips: without a flip, or with both, it mirrors
        return (3 if across else 1), across == down
    return (2 if down else 0), across != down


class Painter:
    """Decoded frames -> images of one size. It keeps ffmpeg's scaler from frame to frame."""

    def __init__(self, size: tuple[int, int], shape: tuple[int, int], pixel: Fraction | None) -> None:
        self.size, self.shape, self.pixel, self.scaler = size, shape, pixel, VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """The frame as it is shown, uint8 [H, W, 3]; of another shape than (height, width) `shape` it has black bars."""
        look = Look(frame, self.pixel)
        height, width = self.size
        if look.shape[0] * self.shape[1] != look.shape[1] * self.shape[0]:
            width, height = fit_inside(look.shape[1], look.shape[0], width, height)
        stored = (width, height) if look.turn % 2 else (height, width)
        image = self._rgb(frame, look, *stored)
        image = np.rot90(image[:, ::-1] if look.mirrored else image, look.turn)
        if (height, width) != self.size:
            canvas = np.zeros((*self.size, 3), np.uint8)
            top, left = (self.size[0] - height) // 2, (self.size[1] - width) // 2
            canvas[top : top + height, left : left + width] = image
            image = canvas
        return np.ascontiguousarray(image)

    def _rgb(self, frame: av.VideoFrame, look: Look, height: int, width: int) -> np.ndarray:
        """uint8 [height, width, 3] in BT.709 on white, as it is stored."""
        if look.coded:
            frame.colorspace, frame.color_range = look.matrix, FULL if look.full else LIMITED
        smaller = width < frame.width or height < frame.height
        flags = Interpolation.AREA | Interpolation.ACCURATE_RND if smaller else ALL_PIXELS
        alpha = None
        if look.coded and (look.wide or look.matrix == color.YCGCO):
            values = self._scaled(frame, width, height, "yuva444p16le" if look.alpha else "yuv444p16le", flags)
            signal = color.decode_yuv(values, look.matrix, look.full)
            alpha = values[..., 3:] / np.float32(65535) if look.alpha else None
        elif look.wide:
            values = self._scaled(frame, width, height, "rgba64le", flags)
            signal, alpha = values[..., :3] / np.float32(65535), values[..., 3:] / np.float32(65535)
        else:
            rgb = self._scaled(frame, width, height, "rgba" if look.alpha else "rgb24", flags)
            return _on_white(rgb[..., :3], rgb[..., 3:] / np.float32(255)) if look.alpha else rgb
        rgb = color.to_bt709(signal, look.transfer, look.primaries) if look.wide else (signal * 255 + 0.5).astype(np.uint8)
        return rgb if alpha is None else _on_white(rgb, alpha)

    def _scaled(self, frame: av.VideoFrame, width: int, height: int, form: str, flags: Interpolation) -> np.ndarray:
        return self.scaler.reformat(frame, width, height, form, interpolation=flags, threads=1).to_ndarray()


def _on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return (rgb * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
