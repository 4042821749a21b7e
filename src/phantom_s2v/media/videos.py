"""Videos: files -> frames as a player shows them, uint8 [H, W, 3], one after the other; frames -> H.264 with its color tags.

media.frames gives the image of a frame. Times are seconds since the first frame; where timestamps restart, jump or are missing,
time goes on by one frame.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import Colorspace, VideoReformatter
from av.video.stream import VideoStream

from phantom_s2v.errors import InputError
from phantom_s2v.files.untrusted import is_file
from phantom_s2v.media.frames import ALL_PIXELS, LIMITED, MAX_FRAME_PIXELS, Look, Painter, Unfit, check_pixels, notices_of

CONTAINERS = ("mov", "matroska", "webm", "avi", "mpeg", "mpegts", "gif")  # ffmpeg's names; playlists open other files
JUMP = 10.0  # seconds: a longer step between two frames is a fault of the timestamps, unless all are as long
DISORDER = 1.0  # seconds that a timestamp may lie before the last one without being a restart
UNEVEN = 0.25  # of a frame's time: a step that differs by more is of a variable rate
Timed = tuple[float, np.ndarray]


class UnreadableVideoError(InputError):
    """A file that holds no video which can be read; `reason` is its sentence without the name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {'has' if reason.startswith('no ') else 'is'} {reason}")
        self.reason = reason


@dataclass(frozen=True)
class VideoFacts:
    """What a video is, as its frames are shown."""

    height: int  # pixels, upright and square
    width: int
    fps: float  # frames a second, the mean over the timestamps; 0 where there is one frame and no rate
    count: int  # packets, which is frames where nothing is broken
    steady: bool  # all frames are shown equally long
    ordered: bool  # timestamps rise without a jump, so that a moment can be sought
    origin: float  # timestamp of the first frame, seconds
    notices: tuple[str, ...]  # what has to be converted
    playable: bool  # H.264 in an MP4 as browsers and our own stores take it, with nothing to convert


def open_video(source: Path | BinaryIO) -> InputContainer:
    """A video of a file or an open stream, in one of the documented containers and no other.

    A name is a file's and never a protocol's (concat:, http:), and what the content names is not opened (playlists). Frames
    beyond 8K are refused, also where the size changes later. Raises ValueError, OSError, and av.FFmpegError for what is no video.
    """
    if isinstance(source, Path) and not is_file(source):
        raise Unfit("not a file")
    if isinstance(source, Path) and not source.stat().st_size:
        raise Unfit("empty")
    if not isinstance(source, Path):
        source.seek(0)
    options = {
        "protocol_whitelist": "file",
        "format_whitelist": ",".join(CONTAINERS),
        "max_pixels": str(MAX_FRAME_PIXELS),
    }
    name = f"file:{source}" if isinstance(source, Path) else source
    container = av.open(name, "r", options=options, metadata_errors="replace")
    for stream in container.streams.video:
        if stream.width * stream.height > MAX_FRAME_PIXELS:
            container.close()
            raise Unfit(f"{stream.width}x{stream.height}; at most {MAX_FRAME_PIXELS:,} pixels are supported")
        stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    return container


class Video:
    """A file that can be gone through again and again, with one frame in memory at a time.

    Raises UnreadableVideoError for what is no video, wherever in the file that shows.
    """

    def __init__(self, source: Path | BinaryIO, name: str = "") -> None:
        self.source, self.name = source, name or str(source)

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        """Container and stream; what ffmpeg raises on the way becomes UnreadableVideoError."""
        try:
            with open_video(self.source) as container:
                stream = container.streams.best("video")
                if not isinstance(stream, VideoStream):
                    raise Unfit(f"no video stream{' (audio only)' if container.streams.audio else ''}")
                yield container, stream
        except PermissionError as error:
            raise UnreadableVideoError(self.name, "not a readable file") from error
        except Unfit as error:
            raise UnreadableVideoError(self.name, str(error)) from error
        except (av.FFmpegError, OSError, ValueError) as error:
            raise UnreadableVideoError(self.name, f"not a readable video ({_first_line(error)})") from error

    @cached_property
    def facts(self) -> VideoFacts:
        """Size, rate and what has to be converted, from the first frame and all packets' timestamps."""
        with self._opened() as (container, stream):
            first = next(_decoded(container, stream), None)
            if first is None:
                raise Unfit("no frames")
            look, notices = Look(first, stream.sample_aspect_ratio), notices_of(first, stream.sample_aspect_ratio)
            codec, form = stream.codec_context.name, container.format.name
            origin = _seconds(first) or 0.0
            check_pixels(look.shape[1], look.shape[0])  # by the shape of its pixels
        count, fps, steady, ordered = self._timing()
        if not ordered:
            notices.append("discontinuous timestamps; frames are played without gaps")
        elif not steady:
            notices.append("variable frame rate")
        plain = not notices and first.format.name in ("yuv420p", "yuvj420p") and codec == "h264" and "mp4" in form
        return VideoFacts(*look.shape, fps, count, steady, ordered, origin, tuple(notices), plain)

    def _timing(self) -> tuple[int, float, bool, bool]:
        """Packets, frames a second, whether they are equally long, and whether timestamps rise."""
        with self._opened() as (container, stream):
            rate = stream.average_rate or stream.guessed_rate
            base, clock, steps = float(stream.time_base or 0), _Clock(1 / float(rate) if rate else 1 / 25), _Steps()
            ordered = True
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                stamp = packet.pts if packet.dts is None else packet.dts
                if packet.pts is not None and packet.dts is not None:
                    ordered &= abs(packet.pts - packet.dts) * base <= 2 * DISORDER
                steps.add(clock.at(None if stamp is None else stamp * base))
        count, seconds = steps.count, clock.now
        measured = (count - 1) / seconds if seconds > 0 else 0.0
        stated = float(rate or 0)
        fps = stated if stated and (not measured or abs(measured / stated - 1) < 0.01) else measured
        return count, fps, steps.steady(fps, base), ordered and not clock.repairs

    def frames(self, begins: float = 0.0, size: tuple[int, int] | None = None) -> Iterator[Timed]:
        """(seconds, uint8 [H, W, 3]) of every frame from `begins` on; at another `size` (height, width) where one is given.

        A frame of another shape than the first has black bars.
        """
        facts = self.facts
        height, width = size or (facts.height, facts.width)
        with self._opened() as (container, stream):
            clock = _Clock(1 / facts.fps if facts.fps else 1 / 25, facts.origin)
            if begins > 1 and facts.ordered and stream.time_base and self._seekable(begins):
                container.seek(int((begins + facts.origin) / stream.time_base), stream=stream)
            painter = Painter((height, width), (facts.height, facts.width), stream.sample_aspect_ratio)
            try:
                for frame in _decoded(container, stream):
                    if clock.at(_seconds(frame)) >= begins - 1e-4:
                        yield clock.now, painter(frame)
            except av.FFmpegError as error:
                raise Unfit(f"truncated after {clock.now:.1f} s ({_first_line(error)})") from error

    def _seekable(self, begins: float) -> bool:
        """Whether the frame that is sought for `begins` decodes without those before it.

        Some files mark frames as key frames that are none: from there on all is green until the next true one.
        """
        facts = self.facts
        with self._opened() as (container, stream):
            container.seek(int((begins + facts.origin) / (stream.time_base or 1)), stream=stream)
            first = next(_decoded(container, stream), None)
            return first is not None and not first.is_corrupt


def _first_line(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _decoded(container: InputContainer, stream: VideoStream) -> Iterator[av.VideoFrame]:
    """Frames of a stream. FFmpeg's own decoder of VP9 passes over alpha, so there libvpx decodes."""
    if stream.metadata.get("alpha_mode") != "1" or stream.codec_context.name not in ("vp8", "vp9"):
        yield from container.decode(stream)
        return
    decoder = av.CodecContext.create({"vp8": "libvpx", "vp9": "libvpx-vp9"}[stream.codec_context.name], "r")
    decoder.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
    for packet in container.demux(stream):
        yield from decoder.decode(packet if packet.size else None)  # type: ignore[attr-defined]


def _seconds(frame: av.VideoFrame) -> float | None:
    return float(frame.time) if frame.time is not None else None


class _Clock:
    """Seconds since `origin` out of timestamps; `step` is what a frame takes where its timestamp is wrong or missing."""

    def __init__(self, step: float, origin: float | None = None) -> None:
        self.step, self.offset, self.last, self.now, self.repairs = step, origin, None, 0.0, 0

    def at(self, stamp: float | None) -> float:
        """The time of the next frame."""
        if stamp is None:
            self.now = self.now + self.step if self.last is not None else 0.0
            self.last = self.now + (self.offset or 0.0)
            return self.now
        if self.offset is None:
            self.offset = stamp
        gone = 0.0 if self.last is None else stamp - self.last
        if gone < -DISORDER or gone > max(JUMP, 5 * self.step):
            self.offset, self.repairs = stamp - self.now - self.step, self.repairs + 1
        self.now = stamp - self.offset if self.last is None else max(self.now + 1e-6, stamp - self.offset)
        self.last = stamp
        return self.now


class _Steps:
    """How many frames there are and how many steps between them differ, in the memory of the last ones."""

    def __init__(self) -> None:
        self.count, self.before = 0, 0.0
        self.lengths: dict[int, int] = {}  # milliseconds -> how many steps; at most a thousand different lengths are counted

    def add(self, now: float) -> None:
        """Take in the time of a frame."""
        if self.count:
            length = round((now - self.before) * 1000)
            key = length if length in self.lengths or len(self.lengths) < 1000 else -1
            self.lengths[key] = self.lengths.get(key, 0) + 1
        self.count, self.before = self.count + 1, now

    def steady(self, fps: float, base: float) -> bool:
        """Whether steps are as long as a frame of this rate; `base` is the minimum difference of two timestamps, seconds."""
        if not fps:
            return True
        slack = 1000 * max(UNEVEN / fps, base) + 0.5
        uneven = sum(count for length, count in self.lengths.items() if abs(length - 1000 / fps) > slack)
        return uneven <= max(2, 0.01 * self.count)


def resampled(frames: Iterable[Timed], begins: float, count: int, fps: float) -> Iterator[np.ndarray]:
    """The frame that is on the screen at each of `count` moments from `begins` on, 1 / fps seconds apart; the last one stays."""
    yielded, shown = 0, None
    for time, image in frames:
        while shown is not None and yielded < count and time - begins > (yielded + 0.5) / fps:
            yield shown
            yielded += 1
        if yielded == count:
            return
        shown = image
    while shown is not None and yielded < count:
        yield shown
        yielded += 1


def encode(target: Path | BinaryIO, frames: Iterable[np.ndarray], fps: float, crf: int, preset: str = "medium") -> None:
    """Frames uint8 [H, W, 3] as H.264 in mp4, tagged BT.709 and converted with its matrix; the same frames give the same bytes.

    They go straight into the encoder, so memory does not grow with the video. An odd last row or column is left out. `preset` is
    x264's: quicker ones make larger files of the same quality.
    """
    # With macroblock-tree rate control x264 gives other bits for the same small frames from run to run.
    options = {"crf": str(crf), "preset": preset, "threads": "1", "x264-params": "mbtree=0"}
    place = f"file:{target}" if isinstance(target, Path) else target
    with av.open(place, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(60_060), options=options)
        stream.pix_fmt, coder = "yuv420p", stream.codec_context
        coder.color_primaries = coder.color_trc = coder.colorspace = 1
        coder.color_range = LIMITED
        scaler = VideoReformatter()
        for number, image in enumerate(frames):
            height, width = (side // 2 * 2 for side in image.shape[:2])
            if not number:
                stream.height, stream.width = height, width
            rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(image[:height, :width]), format="rgb24")
            frame = scaler.reformat(
                rgb,
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=LIMITED,
                interpolation=ALL_PIXELS,
                threads=1,
            )
            frame.pts = None
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
