"""Every size of the project, in integers: strides of the autoencoder, latent grids, windows over latent time.

Legend: F frames, H W pixels, T h w latent positions, n reference places, M window size (references included).
"""

from dataclasses import dataclass

from phantom_s2v.errors import InputError

TIME_STRIDE = 4  # Wan's autoencoder: the first frame alone, then one latent frame for every four
SPACE_STRIDE = 8
MAX_SUBJECTS = 4  # Phantom 3.3: one to four
MAX_IMAGES = 8  # our bound on views of all subjects together


@dataclass(frozen=True)
class VideoSize:
    """Size of a video in frames and pixels.

    Raises InputError where a length is not 4n+1 or a side is not a multiple of 8.
    """

    frames: int
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.frames < 1 or (self.frames - 1) % TIME_STRIDE:
            below, above = nearest_frames(self.frames)
            raise InputError(f"number of frames must be 4n+1, such as {below} or {above} (got {self.frames})")
        for name, side in (("height", self.height), ("width", self.width)):
            if side < SPACE_STRIDE or side % SPACE_STRIDE:
                raise InputError(f"{name} must be a positive multiple of {SPACE_STRIDE} pixels (got {side})")

    @property
    def latent(self) -> tuple[int, int, int]:
        """(T, h, w) of the latent."""
        return latent_frames(self.frames), self.height // SPACE_STRIDE, self.width // SPACE_STRIDE


def latent_frames(frames: int) -> int:
    """Latent frames of a clip of `frames` = 4n+1 images."""
    return (frames - 1) // TIME_STRIDE + 1


def nearest_frames(frames: int) -> tuple[int, int]:
    """The valid lengths just below (at least 1) and just above an invalid one."""
    below = max(1, (frames - 1) // TIME_STRIDE * TIME_STRIDE + 1)
    return below, below + TIME_STRIDE


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) of "WxH" or "W*H", as video sizes are usually written."""
    parts = text.lower().replace("*", "x").split("x")
    if len(parts) != 2 or not all(part.strip().isdecimal() and len(part) < 10 for part in parts):
        raise InputError(f"size must be WIDTHxHEIGHT in pixels, such as 64x64 (got {text!r})")
    width, height = (int(part) for part in parts)
    return height, width


def video_places(window: int, references: int) -> int:
    """Video positions that a window of M places keeps beside n references (Phantom, figure 5).

    Raises InputError where fewer than two are left: attention over time would then be cut off.
    """
    places = window - references
    if places < 2:
        raise InputError(
            f"window_size {window} with {references} reference images leaves {max(places, 0)} video positions per window, and "
            f"at least 2 are needed; use at most {window - 2} images or a larger window_size"
        )
    return places


def windows(length: int, window: int, references: int, shifted: bool) -> list[tuple[int, int]]:
    """Half-open ranges of latent time, one a window.

    A window of M places holds n references at its end, so M - n video positions; what they displace moves to the
    start of the next window (Phantom 3.2). `shifted` moves every border by half a window, so that blocks in
    alternation let video cross it (our addition). A clip that fits into one window is never cut.
    """
    places = video_places(window, references)
    if length <= places:
        return [(0, length)]
    borders = list(range(places // 2 if shifted else 0, length, places))
    if borders[0] > 0:
        borders.insert(0, 0)
    return list(zip(borders, [*borders[1:], length], strict=True))


def fit_inside(width: int, height: int, box_width: int, box_height: int) -> tuple[int, int]:
    """Largest (width, height) of the same aspect within a box, integer part, at least one pixel.

    The released code truncates (load_ref_images); the lower bound of one pixel is ours, for slivers.
    """
    if width * box_height > box_width * height:
        return box_width, max(1, int(box_width / (width / height)))
    return max(1, int(box_height * (width / height))), box_height


def iou(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Intersection of two boxes (left, top, right, bottom) over their union, 0..1."""
    shared = _shared(a, b)
    return shared / (_area(a) + _area(b) - shared)


def covered(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    """Intersection of two boxes (left, top, right, bottom) over the smaller of them, 0..1."""
    return _shared(a, b) / max(1, min(_area(a), _area(b)))


def _shared(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    across, down = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return max(0, across) * max(0, down)


def _area(box: tuple[int, ...]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def squares(width: int, height: int, side: int, step: int) -> list[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of squares that cover an image row by row, evenly, at most `step` apart.

    >>> squares(6, 4, 4, 2)
    [(0, 0, 4, 4), (2, 0, 6, 4)]
    """

    def starts(length: int) -> list[int]:
        steps = -(-(length - side) // step)
        return [(length - side) * i // max(1, steps) for i in range(steps + 1)]

    return [(left, top, left + side, top + side) for top in starts(height) for left in starts(width)]
