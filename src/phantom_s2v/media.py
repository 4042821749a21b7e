"""Pictures and videos: files <-> uint8 arrays [H, W, 3] and [F, H, W, 3]."""

import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from PIL import Image, ImageDraw, ImageOps, UnidentifiedImageError

from phantom_s2v.errors import InputError
from phantom_s2v.files import writing
from phantom_s2v.geometry import fit_inside

Segment = Callable[[np.ndarray], np.ndarray]  # uint8 [H, W, 3] -> bool [H, W]
LONGEST_ASPECT = 8
WHITE = (255, 255, 255)
GROUND_TOLERANCE = 24  # of 255, in every channel: what still counts as the colour of a plain ground
GROUND_SHARE = 0.9  # of a picture's border that must have it
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")  # what Pillow may try: others, such as EPS, start programs
CONTAINERS = ("mov", "matroska", "webm", "avi", "mpeg", "mpegts", "gif")  # ffmpeg's names; playlists open other files
MOST_FRAME_PIXELS = 8192 * 4320  # 8K
MOST_VIDEO_BYTES = 4 << 30  # of decoded frames that are held at once: 17 s of 1080p at 40 frames a second


def open_picture(source: Path | BinaryIO, formats: tuple[str, ...] = PICTURE_FORMATS) -> Image.Image:
    """The picture of a file or an open stream, in one of the documented formats and no other, whatever its name says.

    Raises UnidentifiedImageError for any other content, and DecompressionBombWarning beyond Pillow's limit of pixels.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        return Image.open(source, formats=formats)


def open_video(source: Path | BinaryIO) -> InputContainer:
    """A video of a file or an open stream, in one of the documented containers and no other.

    A name is a file's and never a protocol's (concat:, http:), and what the content names is not opened (playlists). Frames
    beyond 8K are refused, also where the size changes later. Raises InputError, and av.FFmpegError for what is no video.
    """
    if isinstance(source, Path) and not source.is_file():
        raise InputError(f"{source} is not a file")
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(CONTAINERS),
        "max_pixels": str(MOST_FRAME_PIXELS),
    }
    name = f"file:{source}" if isinstance(source, Path) else source
    container = av.open(name, "r", options=options, metadata_errors="replace")
    for stream in container.streams.video:
        if stream.width * stream.height > MOST_FRAME_PIXELS:
            container.close()
            raise InputError(f"{source} is {stream.width}x{stream.height}; at most {MOST_FRAME_PIXELS:,} pixels are read")
        stream.codec_context.options = {"max_pixels": str(MOST_FRAME_PIXELS)}
    return container


def bounded(frames: Iterable[av.VideoFrame], name: object) -> Iterator[av.VideoFrame]:
    """Decoded frames as they come, for those who keep all. Raises InputError beyond `MOST_VIDEO_BYTES`, as RGB.

    A file of some kilobytes can decode to any size.
    """
    size = 0
    for number, frame in enumerate(frames, 1):
        size += 3 * frame.width * frame.height
        if size > MOST_VIDEO_BYTES:
            raise InputError(f"{name} is more than {MOST_VIDEO_BYTES >> 30} GB decoded, at frame {number}; cut or shrink it")
        yield frame


def read_picture(
    path: Path, released: bool = False, cutout: bool = False, segment: Segment | None = None
) -> tuple[np.ndarray, list[str]]:
    """A picture as RGB uint8 [H, W, 3], and notices of what was done to it.

    Transparency goes on white, EXIF rotation is applied, of an animation the first frame is taken, 16 bits become 8.
    `released`: as the released code reads it, alpha dropped and EXIF ignored (facts 2.3). `cutout`: the ground is removed,
    by `segment` (picture -> mask) where it is neither transparent nor plain.
    Raises InputError for a file that is missing, empty, truncated, no picture, beyond Pillow's limit or a sliver.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; a reference is a PNG, JPEG, WebP or other picture file")
    if not path.stat().st_size:
        raise InputError(f"{path} is empty; a reference is a PNG, JPEG, WebP or other picture file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with open_picture(path) as image:
                image.load()
                if released:
                    picture, notices = np.asarray(image.convert("RGB")).copy(), []
                else:
                    picture, notices = _to_rgb(image)
                if cutout:
                    picture, said = _cut_out(image, picture, segment)
                    notices.append(said)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        limit = f"{Image.MAX_IMAGE_PIXELS:,}" if Image.MAX_IMAGE_PIXELS else "the limit"
        raise InputError(f"{path} has too many pixels; at most {limit} are read") from error
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not a picture that can be read; PNG, JPEG, WebP, GIF, BMP and TIFF are") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} is damaged or truncated ({error}); save it again as PNG or JPEG") from error
    height, width = picture.shape[:2]
    if max(height, width) > LONGEST_ASPECT * min(height, width):
        raise InputError(f"{path} is {width}x{height}; the longer side may be at most {LONGEST_ASPECT} times the shorter")
    return picture, [f"{path.name}: {notice}" for notice in notices]


def _to_rgb(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    notices = []
    if getattr(image, "n_frames", 1) > 1:
        image.seek(0)
        notices.append("animation, the first frame is used")
    if image.getexif().get(0x0112, 1) != 1:
        notices.append("turned as its EXIF data say")
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I") or upright.mode == "F":
        values = np.asarray(upright, np.float64)
        top = 65535.0 if values.max() > 255 else 255.0
        upright = Image.fromarray(np.clip(values / top * 255 + 0.5, 0, 255).astype(np.uint8))
        notices.append("more than 8 bits, reduced to 8")
    if upright.mode == "CMYK":
        notices.append("CMYK, converted to RGB")
    if upright.has_transparency_data:
        ground = Image.new("RGBA", upright.size, (*WHITE, 255))
        upright = Image.alpha_composite(ground, upright.convert("RGBA"))
        notices.append("transparent, put on white")
    return np.asarray(upright.convert("RGB")).copy(), notices


def _cut_out(image: Image.Image, picture: np.ndarray, segment: Segment | None) -> tuple[np.ndarray, str]:
    """The picture with its ground white, and how: by alpha, by a plain ground at the borders, or by `segment`."""
    if image.has_transparency_data:
        return picture, "cut out by its transparency"
    rim = border(picture).astype(np.float32)
    ground = np.median(rim, 0)
    if np.mean(np.abs(rim - ground).max(1) <= GROUND_TOLERANCE) < GROUND_SHARE:
        if segment:
            return np.where(segment(picture)[..., None], picture, np.uint8(255)), "cut out by SAM2"
        raise InputError(
            "the ground of a reference is neither transparent nor plain, so it cannot be cut out without a model; "
            "give a picture with transparency or on one colour, name SAM2's folder with --segmenter, or leave out --cutout"
        )
    alike = (np.abs(picture - ground).max(2) <= GROUND_TOLERANCE).astype(np.uint8) * 255
    framed = Image.fromarray(np.pad(alike, 1, constant_values=255)).copy()  # an array's own memory is read-only
    ImageDraw.floodfill(framed, (0, 0), 128)  # what the borders reach; a hole of the ground's colour inside stays
    outside = np.asarray(framed)[1:-1, 1:-1] == 128
    return np.where(outside[..., None], np.uint8(255), picture), "cut out of its plain ground"


def border(picture: np.ndarray, width: int = 1) -> np.ndarray:
    """The outermost `width` pixels on all sides of [H, W, C], as [n, C]; corners count twice."""
    sides = (picture[:width], picture[-width:], picture[:, :width], picture[:, -width:])
    return np.concatenate([side.reshape(-1, picture.shape[-1]) for side in sides])


def evenly_spaced(length: int, count: int) -> list[int]:
    """`count` numbers from 0 to `length` - 1, the first and the last among them; all of them where there are fewer."""
    return np.linspace(0, length - 1, min(count, length)).round().astype(int).tolist()


def letterbox(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """Fit a picture into [height, width, 3] on white, centred, the odd pixel right and below (facts 2.3)."""
    new_width, new_height = fit_inside(picture.shape[1], picture.shape[0], width, height)
    image = Image.fromarray(picture).resize((new_width, new_height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (width, height), WHITE)
    canvas.paste(image, ((width - new_width) // 2, (height - new_height) // 2))
    return np.asarray(canvas)


def encode_video(frames: np.ndarray, fps: int) -> bytes:
    """H.264 in mp4, nearly lossless; sides must be even. The same frames give the same bytes."""
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        # With macroblock-tree rate control x264 gives other bits for the same small frames from run to run.
        options = {"crf": "12", "threads": "1", "x264-params": "mbtree=0"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return target.getvalue()


def write_video(path: Path, frames: np.ndarray, fps: int) -> None:
    """Write `encode_video` to a file that is sealed as ours."""
    with writing(path, sealed=True) as file:
        file.write(encode_video(frames, fps))


def read_video(path: Path | BinaryIO) -> tuple[np.ndarray, float]:
    """Frames uint8 [F, H, W, 3] and frames a second, of a file or an open stream. Raises InputError where it is no video."""
    try:
        with open_video(path) as container:
            stream = container.streams.video[0]
            frames = [frame.to_ndarray(format="rgb24") for frame in bounded(container.decode(stream), path)]
            rate = float(stream.average_rate or 0)
    except (av.FFmpegError, IndexError, OSError) as error:
        raise InputError(f"{path} is not a video that can be read ({error})") from error
    if not frames:
        raise InputError(f"{path} holds no frame")
    return np.stack(frames), rate


def write_picture(path: Path, picture: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as PNG, to a file that is sealed as ours."""
    with writing(path, sealed=True) as file:
        Image.fromarray(picture).save(file, "PNG")


def contact_sheet(references: list[np.ndarray], frames: np.ndarray, columns: int = 7, side: int = 128) -> np.ndarray:
    """References, then evenly spaced frames, in one row of squares of `side` pixels, uint8 [side, n side, 3]."""
    chosen = [frames[i] for i in evenly_spaced(len(frames), columns)]
    tiles = [np.asarray(Image.fromarray(letterbox(p, side, side))) for p in (*references, *chosen)]
    gap = np.full((side, 8, 3), 255, np.uint8)
    split = len(references)
    return np.concatenate([*tiles[:split], *([gap] if split else []), *tiles[split:]], 1)
