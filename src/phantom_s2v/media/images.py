"""Images and videos: files <-> uint8 arrays [H, W, 3] and [F, H, W, 3]."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import av
import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError
from scipy import ndimage

from phantom_s2v.errors import InputError
from phantom_s2v.files.io import writing
from phantom_s2v.files.untrusted import is_file
from phantom_s2v.geometry import fit_inside
from phantom_s2v.media.frames import orientation
from phantom_s2v.media.videos import Video, encode

Segment = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> bool [H, W]
LONGEST_ASPECT = 8
WHITE = (255, 255, 255)
BACKGROUND_TOLERANCE = 24  # of 255, in every channel: what still counts as the color of a plain background
BACKGROUND_SHARE = 0.9  # of an image's border that must have it
SAME_COLOR = 2  # of 255: a profile that changes no more is sRGB's
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # what Pillow may try: others, such as EPS, start programs
CRF = 12  # of x264: what we write is nearly lossless
MAX_VIDEO_BYTES = 4 << 30  # of decoded frames that are held at once: 17 s of 1080p at 40 frames a second


def open_image(source: Path | BinaryIO, formats: tuple[str, ...] = IMAGE_FORMATS) -> Image.Image:
    """The image of a file or an open stream, in one of the documented formats and no other, whatever its name says.

    Raises UnidentifiedImageError for any other content, and DecompressionBombWarning beyond Pillow's limit of pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(source, formats=formats)


def read_image(
    source: Path | bytes | Image.Image,
    released: bool = False,
    cutout: bool = False,
    segment: Segment | None = None,
    name: str = "an image",
) -> tuple[np.ndarray, list[str]]:
    """An image as sRGB uint8 [H, W, 3], upright and composited on white, and notices of what was converted.

    `source` is a file, or a file's content or an image in memory under a `name`. EXIF orientation and ICC profile are obeyed,
    of an animation the first frame is taken, 16 bits and floating point become 8 bits. `released`: as the released code reads
    it, alpha dropped, EXIF and profile ignored (load_ref_images). `cutout`: the background is removed, by `segment` (image ->
    mask) where it is neither transparent nor plain. Raises InputError for what is missing, empty, truncated, no image, beyond
    Pillow's limit or a sliver.
    """
    name = str(source) if isinstance(source, Path) else name
    if isinstance(source, Path) and not is_file(source):
        raise InputError(f"{name} is not a file; a reference must be a PNG, JPEG, WebP or other image file")
    if not (source.stat().st_size if isinstance(source, Path) else isinstance(source, Image.Image) or source):
        raise InputError(f"{name} is empty; a reference must be a PNG, JPEG, WebP or other image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image, notices = _decoded(source, released, cutout, segment)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else "the limit"
        raise InputError(f"{name} has too many pixels (at most {limit})") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not a supported image (PNG, JPEG, WebP, GIF, BMP or TIFF)") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{name} is damaged or truncated ({error}); save it again as PNG or JPEG") from error
    height, width = image.shape[:2]
    if max(height, width) > LONGEST_ASPECT * min(height, width):
        raise InputError(f"the aspect ratio must be at most {LONGEST_ASPECT}:1 (got {width}x{height} for {name})")
    shown = source.name if isinstance(source, Path) else name
    return image, [f"{shown}: {notice}" for notice in notices]


def read_alpha(source: Path) -> np.ndarray | None:
    """Opaque pixels of an image that `read_image` takes, bool [H, W], upright; None where all or none are."""
    try:
        with open_image(source) as opened:
            if not opened.has_transparency_data:
                return None
            alpha = np.asarray(ImageOps.exif_transpose(opened).convert("RGBA").getchannel("A")) >= 128
    except UnidentifiedImageError:  # a TIFF of floating point
        return None
    return alpha if alpha.any() and not alpha.all() else None


def _decoded(
    source: Path | bytes | Image.Image, released: bool, cutout: bool, segment: Segment | None
) -> tuple[np.ndarray, list[str]]:
    """The image of a file, and what was done to it."""
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        opened, notices = file.copy() if isinstance(file, Image.Image) else open_image(file), list[str]()
    except UnidentifiedImageError:
        opened, notices = _open_float_tiff(cast(Any, file))
    with opened:
        if released:
            image = np.asarray(opened.convert("RGB")).copy()
        else:
            image, color_notices = _to_rgb(opened)
            notices += color_notices
        if cutout:
            image, how = _cut_out(opened, image, segment)
            notices.append(how)
    return image, notices


def _open_float_tiff(file: Path | BinaryIO) -> tuple[Image.Image, list[str]]:
    """A TIFF of several floating-point channels, which ffmpeg reads and Pillow does not, upright and as 8 bits.

    Raises UnidentifiedImageError for anything else.
    """
    try:
        with av.open(f"file:{file}" if isinstance(file, Path) else file, "r", format="tiff_pipe") as container:
            stream = container.streams.video[0]
            stream.codec_context.options = {"max_pixels": str(Image.MAX_IMAGE_PIXELS or 2**31 - 1)}
            frame = next(container.decode(stream))
    except (av.FFmpegError, IndexError, StopIteration, OSError) as error:
        raise UnidentifiedImageError from error
    if frame.format.name.removeprefix("rgba").removeprefix("rgb") not in ("f32le", "f32be"):
        raise UnidentifiedImageError
    turn, mirrored = orientation(frame)
    values = _to_bytes(frame.to_ndarray(), "F")
    upright = np.rot90(values[:, ::-1] if mirrored else values, turn)
    notices = ["rotated according to EXIF"] if turn or mirrored else []
    return Image.fromarray(np.ascontiguousarray(upright)), ["reduced to 8 bits", *notices]


def _to_rgb(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """The image in sRGB, upright and on white, and what was done to it."""
    notices = []
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a photograph with its previews
        image.seek(0)
        notices.append("animated image, only the first frame is used")
    if image.getexif().get(0x0112, 1) != 1:
        notices.append("rotated according to EXIF")
    deep = any(
        "16" in str(getattr(tile, "args", "")) for tile in getattr(image, "tile", ())
    )  # Pillow itself reduces what has three channels
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        upright, deep = Image.fromarray(_to_bytes(np.asarray(upright, np.float64), upright.mode)), True
    if deep:
        notices.append("reduced to 8 bits")
    if upright.mode == "CMYK":
        notices.append("CMYK, converted to RGB")
    alpha = upright.convert("RGBA").getchannel("A") if upright.has_transparency_data else None
    opaque, profile_notices = _in_srgb(upright)
    notices += profile_notices
    if alpha:
        opaque.paste(Image.new("RGB", opaque.size, WHITE), mask=ImageChops.invert(alpha))
        notices.append("transparency composited on white")
    return np.asarray(opaque).copy(), notices


def _to_bytes(values: np.ndarray, mode: str) -> np.ndarray:
    """Values of 16 or 32 bits or floating point (Pillow's `mode` I;16, I or F) as uint8. Raises ValueError for NaN and infinity.

    Of floating point 1 is white where nothing is above 16 (what is brighter is clipped), else 255 or 65,535.
    """
    if not np.isfinite(values).all():
        raise ValueError("it contains values that are not finite")
    tops = {"F": ((16.0, 1.0), (255.0, 255.0)), "I": ((255.0, 255.0),)}.get(mode, ())  # at most, then white
    white = next((white for maximum, white in tops if values.max() <= maximum), 65535.0)
    return np.clip(values / white * 255 + 0.5, 0, 255).astype(np.uint8)


def _in_srgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The colors of an image, without alpha, as RGB in sRGB, by its ICC profile where it has one, and what was done."""
    lab, profile = image.mode == "LAB", image.info.get("icc_profile")
    flat = image.convert("RGBA") if image.mode == "P" else image  # Pillow warns of palettes with transparency otherwise
    flat = flat if flat.mode in ("L", "CMYK", "LAB") else flat.convert("L" if flat.mode == "LA" else "RGB")
    if not profile and not lab:
        return flat.convert("RGB"), []
    try:
        source = ImageCms.createProfile("LAB") if lab else ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        target = ImageCms.createProfile("sRGB")
        done = ImageCms.profileToProfile(flat, source, target, ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB")
        assert done
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return flat.convert("RGB"), ["its color profile cannot be used and is ignored"]
    if flat.mode in ("L", "RGB"):
        plain = flat.convert("RGB")
        if np.abs(np.asarray(plain, np.int16) - np.asarray(done)).max() <= SAME_COLOR:
            return plain, []  # sRGB by another name
    return done, ["color profile converted to sRGB"]


def cut_out_alpha(source: Path, image: np.ndarray) -> np.ndarray:
    """What is left of an image without its background, bool [H, W], by its transparency or its plain background.

    Raises InputError where it has neither.
    """
    alpha = read_alpha(source)
    if alpha is None and (background := _plain_background(image)) is not None:
        alpha = ~background
    if alpha is None or not alpha.any():
        raise InputError("it is neither transparent nor on a uniform background")
    return alpha


def _cut_out(opened: Image.Image, image: np.ndarray, segment: Segment | None) -> tuple[np.ndarray, str]:
    """The image with its background white, and how: by alpha, by a plain background at the borders, or by `segment`."""
    if opened.has_transparency_data:
        return image, "cut out by its transparency"
    background = _plain_background(image)
    if background is not None:
        return np.where(background[..., None], np.uint8(255), image), "cut out of its plain background"
    if segment:
        return np.where(segment(image)[..., None], image, np.uint8(255)), "cut out by SAM2"
    raise InputError(
        "cannot remove the background: it is neither transparent nor uniform; use an image with transparency or a "
        "uniform background, give a SAM2 model with --segmenter, or omit --cutout"
    )


def _plain_background(image: np.ndarray) -> np.ndarray | None:
    """The background of one color that reaches the borders, bool [H, W]; None where most of the border has another."""
    rim = border(image).astype(np.float32)
    background = np.median(rim, 0)
    if np.mean(np.abs(rim - background).max(1) <= BACKGROUND_TOLERANCE) < BACKGROUND_SHARE:
        return None
    alike = np.ones(image.shape[:2], bool)
    for channel, value in enumerate(background.tolist()):  # one after the other: a large image is not held in float
        shades = image[..., channel]
        alike &= (shades >= value - BACKGROUND_TOLERANCE) & (shades <= value + BACKGROUND_TOLERANCE)
    return _outside(alike)


def _outside(alike: np.ndarray) -> np.ndarray:
    """What the borders of bool [H, W] reach over what is true, bool [H, W]; a hole inside stays. One pass, whatever its shape."""
    labels, _ = cast(tuple[np.ndarray, int], ndimage.label(np.pad(alike, 1, constant_values=True)))
    return (labels == labels[0, 0])[1:-1, 1:-1]


def border(image: np.ndarray, width: int = 1) -> np.ndarray:
    """The outermost `width` pixels on all sides of [H, W, C], as [n, C]; corners count twice."""
    sides = (image[:width], image[-width:], image[:, :width], image[:, -width:])
    return np.concatenate([side.reshape(-1, image.shape[-1]) for side in sides])


def evenly_spaced(length: int, count: int) -> list[int]:
    """`count` numbers from 0 to `length` - 1, the first and the last among them; all of them where there are fewer."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


def letterbox(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fit an image into [height, width, 3] on white, centered, the odd pixel right and below (Phantom-Wan's released code)."""
    new_width, new_height = fit_inside(image.shape[1], image.shape[0], width, height)
    resized = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, height), WHITE)
    canvas.paste(resized, ((width - new_width) // 2, (height - new_height) // 2))
    return np.asarray(canvas)


def encode_video(frames: np.ndarray, fps: float) -> bytes:
    """H.264 in mp4, nearly lossless, with BT.709's color tags; sides must be even. The same frames give the same bytes."""
    target = io.BytesIO()
    encode(target, frames, fps, CRF)
    return target.getvalue()


def write_video(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write what `encode_video` gives to a file that is sealed as ours, without holding it in memory."""
    with writing(path, sealed=True) as file:
        encode(file, frames, fps, CRF)


def read_video(source: Path | BinaryIO, name: str = "a video") -> tuple[np.ndarray, float]:
    """All frames, uint8 [F, H, W, 3], and frames a second, as `Video` gives them one by one. Raises InputError where it is none.

    A file of some kilobytes can decode to any size, so more than `MAX_VIDEO_BYTES` are refused.
    """
    video = Video(source, name)
    frames, size = [], 0
    for _, frame in video.frames():
        size += frame.nbytes
        if size > MAX_VIDEO_BYTES:
            limit = f"{MAX_VIDEO_BYTES >> 30} GB"
            raise InputError(f"{video.name} is larger than {limit} decoded, at frame {len(frames) + 1}; shorten or downscale it")
        frames.append(frame)
    return np.stack(frames), video.facts.fps


def write_image(path: Path, image: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as PNG, to a file that is sealed as ours."""
    with writing(path, sealed=True) as file:
        Image.fromarray(image).save(file, "PNG")


def contact_sheet(references: list[np.ndarray], frames: np.ndarray, columns: int = 7, side: int = 128) -> np.ndarray:
    """References, then evenly spaced frames, in one row of squares of `side` pixels, uint8 [side, n side, 3]."""
    chosen = [frames[i] for i in evenly_spaced(len(frames), columns)]
    tiles = [np.asarray(Image.fromarray(letterbox(p, side, side))) for p in (*references, *chosen)]
    gap = np.full((side, 8, 3), 255, np.uint8)
    split = len(references)
    return np.concatenate([*tiles[:split], *([gap] if split else []), *tiles[split:]], 1)
