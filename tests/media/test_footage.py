"""What files really contain: each property of videos and images, at each place that reads them, gives the right pixels.

Files are made here from known colors by formulas of our own, with ffmpeg's encoders for nothing but storage.
"""

import io
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from phantom_s2v.data import clips
from phantom_s2v.data.formats.folders import read_captioned
from phantom_s2v.data.formats.items import Reading
from phantom_s2v.data.formats.published import _frame
from phantom_s2v.data.loader import decode
from phantom_s2v.data.pipeline import probe
from phantom_s2v.data.pipeline.config import Config
from phantom_s2v.data.pipeline.frames import WHOLE, encoded, stream_frames
from phantom_s2v.data.triplets import Rights
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.instruments import Instruments, Thresholds
from phantom_s2v.evaluation.run import Asked, score_one
from phantom_s2v.media import color, images, videos
from phantom_s2v.media.videos import Video, encode

HEIGHT, WIDTH = 64, 96
PATCHES = {(0, 0): (180, 60, 40), (0, 1): (60, 170, 80), (1, 0): (40, 70, 180), (1, 1): (150, 150, 150)}
NEAR = 8  # of 255, in the middle of a patch
KR_KB = {"bt709": (0.2126, 0.0722), "smpte170m": (0.299, 0.114), "bt2020nc": (0.2627, 0.0593)}
CODES = {"bt709": 1, "smpte170m": 6, "bt2020nc": 9}
# linear light of BT.709 in BT.2020 and Display P3 (ITU-R BT.2087; SMPTE EG 432), rows are red, green and blue
TO_2020 = np.array([[0.6274, 0.3293, 0.0433], [0.0691, 0.9195, 0.0114], [0.0164, 0.0880, 0.8956]])
TO_P3 = np.array([[0.8225, 0.1774, 0.0], [0.0332, 0.9669, 0.0], [0.0171, 0.0724, 0.9108]])


def scene(alpha=False):
    """Four patches, none like its mirror image; with `alpha` the last one is transparent, and shows white."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for (row, column), shade in PATCHES.items():
        image[row * 32 : row * 32 + 32, column * 48 : column * 48 + 48] = shade
    if alpha:
        image[32:, 48:] = 255
    return image


def same_scene(image, alpha=False, near=NEAR):
    """Whether an image of any size shows the scene: its shape, and the middles of its patches."""
    height, width = image.shape[:2]
    assert abs(width / height - WIDTH / HEIGHT) < 0.05, image.shape
    for (row, column), shade in PATCHES.items():
        y, x = (2 * row + 1) * height // 4, (2 * column + 1) * width // 4
        patch = image[y - height // 16 : y + height // 16, x - width // 16 : x + width // 16].reshape(-1, 3)
        wanted = (255, 255, 255) if alpha and (row, column) == (1, 1) else shade
        assert np.abs(patch.mean(0) - wanted).max() <= near, (row, column, patch.mean(0), wanted)


# Making videos


def light(signal):
    return (signal / 255.0) ** 2.4


def pq(linear):
    """SMPTE ST 2084, of light whose 1 is 203 cd/m2."""
    y = (np.maximum(linear, 0) * 203 / 10000) ** (2610 / 16384)
    return ((3424 / 4096 + 2413 / 128 * y) / (1 + 2392 / 128 * y)) ** (2523 / 32)


def hlg(linear):
    """ITU-R BT.2100: the inverse OOTF of a display of 1,000 cd/m2, then the OETF."""
    shown = linear * 0.203
    luminance = shown @ [0.2627, 0.6780, 0.0593]
    scene_light = shown * (luminance ** (1 / 1.2 - 1))[..., None]
    bent = 0.17883277 * np.log(np.maximum(12 * scene_light - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene_light <= 1 / 12, np.sqrt(3 * scene_light), bent)


def yuv(signal, matrix, full, bits):
    """Planes of R'G'B' in 0..1 as 4:2:0."""
    kr, kb = KR_KB[matrix]
    y = signal @ [kr, 1 - kr - kb, kb]
    cb, cr = (signal[..., 2] - y) / (2 - 2 * kb), (signal[..., 0] - y) / (2 - 2 * kr)
    unit, top = 2 ** (bits - 8), 2**bits - 1
    luma = y * top if full else (16 + 219 * y) * unit
    chroma = [c * top + 128 * unit if full else (128 + 224 * c) * unit for c in (cb, cr)]
    kind = np.uint8 if bits == 8 else np.uint16
    return [np.clip(np.round(p), 0, top).astype(kind) for p in (luma, *(c[::2, ::2] for c in chroma))]


def write(path, signal, matrix="bt709", full=False, bits=8, tags=None, turn=None, pixel=None, count=12, codec="libx264"):
    """A video of one image, R'G'B' in 0..1. `tags` are (matrix, primaries, transfer) as H.273 has them."""
    height, width = signal.shape[:2]
    space, primaries, transfer = tags or (CODES[matrix], 1, 1)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=Fraction(12), options={"qp": "2"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p" if bits == 8 else f"yuv420p{bits}le"
        coder = stream.codec_context
        coder.colorspace, coder.color_primaries, coder.color_trc = space, primaries, transfer
        coder.color_range = 0 if tags == (2, 2, 2) else 2 if full else 1
        if pixel:
            coder.sample_aspect_ratio = pixel
        if turn:
            stream.set_display_rotation(*turn)
        frame = av.VideoFrame(width, height, stream.pix_fmt)
        for plane, values in zip(frame.planes, yuv(signal, matrix, full, bits), strict=True):
            room = np.zeros((plane.height, plane.line_size // values.itemsize), values.dtype)
            room[:, : values.shape[1]] = values
            plane.update(room.tobytes())
        for number in range(count):
            frame.pts, frame.time_base = number, Fraction(1, 12)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def turned(path, quarters, mirrored=False):
    """Stored so that the display matrix has to turn it by `quarters` counterclockwise, and then to mirror it."""
    stored = np.rot90(scene()[:, ::-1] if mirrored else scene(), -quarters)
    write(path, stored / 255, turn=(90 * quarters, mirrored))


def with_alpha(path, codec, form):
    pixels = np.dstack([scene(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    pixels[32:, 48:] = (9, 9, 9, 0)
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=12, options={"crf": "4"} if codec == "libvpx-vp9" else {})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, form
        for number in range(12):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgba").reformat(format=form)
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


VIDEOS = {
    "as we write it": ("mp4", lambda p: encode(p, [scene()] * 12, 12, 6)),
    **{f"rotated by {90 * q}": ("mp4", lambda p, q=q: turned(p, q)) for q in (1, 2, 3)},
    "mirrored": ("mp4", lambda p: turned(p, 0, True)),
    "mirrored and rotated": ("mp4", lambda p: turned(p, 1, True)),
    "pixels of 2:1": ("mp4", lambda p: write(p, scene()[:, ::2] / 255, pixel=Fraction(2, 1))),
    "pixels of 1:2": ("mp4", lambda p: write(p, scene()[::2] / 255, pixel=Fraction(1, 2))),
    **{
        f"{m} in {'full' if full else 'limited'} range": (
            "mp4",
            lambda p, m=m, full=full: write(p, scene() / 255, m, full, tags=(CODES[m], 1, 1)),
        )
        for m in KR_KB
        for full in (False, True)
    },
    "untagged": ("mp4", lambda p: write(p, scene() / 255, "smpte170m", tags=(2, 2, 2))),
    "10 bits": ("mp4", lambda p: write(p, scene() / 255, bits=10)),
    "PQ": ("mp4", lambda p: write(p, pq(light(scene()) @ TO_2020.T), "bt2020nc", bits=10, tags=(9, 9, 16))),
    "HLG": ("mp4", lambda p: write(p, hlg(light(scene()) @ TO_2020.T), "bt2020nc", bits=10, tags=(9, 9, 18))),
    "BT.2020": ("mp4", lambda p: write(p, (light(scene()) @ TO_2020.T) ** (1 / 2.4), "bt2020nc", bits=10, tags=(9, 9, 14))),
    "Display P3": ("mp4", lambda p: write(p, (light(scene()) @ TO_P3.T) ** (1 / 2.4), tags=(1, 12, 1))),
    "alpha of VP9": ("webm", lambda p: with_alpha(p, "libvpx-vp9", "yuva420p")),
    "alpha of PNG": ("mov", lambda p: with_alpha(p, "png", "rgba")),
}


# Places that read videos


def whole(path):
    return images.read_video(path)[0][3]


def cut(source_video, begins, ends):
    """The mp4 of a span as the data pipeline encodes it, and how many frames it should have."""
    count = max(1, round((ends - begins) * source_video["fps"]))
    span = {"begins": begins, "ends": ends, "crop": WHOLE, "start": 0, "stop": count, "playable": False}
    return encoded({**source_video, **span}, count, 1280), count


def built(path):
    """A clip that the data pipeline cuts out, read again, and its small frames."""
    (source_video,) = probe.run([{"path": str(path)}], Config(), None)
    assert source_video["drop"] == ""
    same_scene(next(iter(stream_frames(source_video, 48)))[1], "alpha" in path.parent.name, 12)
    return images.read_video(io.BytesIO(cut(source_video, 0.0, 0.9)[0]))[0][2]


def imported(path):
    path.with_suffix(".txt").write_text("Four patches.")
    (triplet,) = read_captioned(path.parent, Reading(Rights(), pytest.fail, lambda line: None))
    sample = decode(triplet)
    assert sample.video.shape == (triplet.frames, triplet.height, triplet.width, 3) == (12, *sample.video.shape[1:])
    return sample.video[3]


def published(path):
    return _frame(path, 0.5)


def rated(path):
    """The file that a browser gets."""
    return whole(path if Video(path).facts.playable else _written(path, clips.store_video(path, lambda _: None).video))


def _written(path, content):
    (path.parent / "shown.mp4").write_bytes(content)
    return path.parent / "shown.mp4"


def scored(path):
    tools = Instruments("none", lambda stills: np.ones((len(stills), 1), np.float32), Thresholds())
    each, _ = score_one(path, Asked([], "", tools))
    assert each.score, each.unreadable
    return each.frames[0]


@pytest.mark.parametrize("place", [whole, built, imported, published, scored, rated], ids=lambda p: p.__name__)
@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_is_seen_as_it_is_meant(tmp_path, name, place):
    suffix, make = VIDEOS[name]
    folder = tmp_path / name.replace(":", " to ")
    folder.mkdir()
    make(folder / f"a.{suffix}")
    same_scene(place(folder / f"a.{suffix}"), "alpha" in name)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rotated by 90", ["rotated by 270 degrees"]), ("mirrored", ["mirrored"]),
        ("pixels of 2:1", ["pixels of 2:1 made square"]),
        ("PQ", ["HDR (PQ) converted to BT.709", "10 bits reduced to 8"]),
        ("BT.2020", ["wide color gamut converted to BT.709", "10 bits reduced to 8"]),
        ("alpha of VP9", ["transparency composited on white"]), ("bt709 in full range", []), ("as we write it", []),
    ],
)  # fmt: skip
def test_what_is_converted_is_said_once(tmp_path, name, said):
    suffix, make = VIDEOS[name]
    make(tmp_path / f"a.{suffix}")
    assert list(Video(tmp_path / f"a.{suffix}").facts.notices) == said
    (tmp_path / "a.txt").write_text("x")
    told = []
    list(read_captioned(tmp_path, Reading(Rights(), pytest.fail, told.append)))
    assert len(told) == bool(said) or name.startswith("alpha")
    assert all(each in told[0] for each in said)


def test_what_we_write_says_what_its_colors_are(tmp_path):
    images.write_video(tmp_path / "a.mp4", np.repeat(scene()[None], 3, 0), 12)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
    tags = [(s.colorspace, s.color_primaries, s.color_trc, s.color_range) for s in (stream, frame)]
    assert tags == [(1, 1, 1, 1)] * 2
    planes = yuv(scene() / 255, "bt709", False, 8)
    got = [np.frombuffer(bytes(p), np.uint8).reshape(p.height, p.line_size)[: p.height, : p.width] for p in frame.planes]
    for row, column in ((8, 12), (8, 36), (24, 12)):
        assert [abs(int(g[row, column]) - int(w[row, column])) <= 3 for g, w in zip(got[1:], planes[1:], strict=True)] == [
            True
        ] * 2


def test_hdr_keeps_middle_tones_and_rolls_off_above():
    gray = np.array([[[v] * 3 for v in (0.05, 0.18, 0.5, 1.0, 2.0, 1000 / 203, 40.0)]])
    for transfer, coded in ((color.PQ, pq(gray)), (color.HLG, hlg(np.minimum(gray, 1000 / 203)))):
        shown = color.to_bt709(coded.astype(np.float32), transfer, color.BT2020)[0, :, 0].astype(int)
        assert np.abs(shown[:3] - np.round(gray[0, :3, 0] ** (1 / 2.4) * 255)).max() <= 1
        assert (np.diff(shown[:6]) > 0).all()
        assert 215 <= shown[3] <= 235  # the reference white
        assert shown[5] == shown[6] == 255
    red = color.to_bt709(pq(np.array([[[0.3, 0.0, 0.0]]])).astype(np.float32), color.PQ, color.BT2020)[0, 0]
    assert red[0] > 100 > red[1:].max()  # a red beyond BT.709 stays red


# Times


def paced(path, frames, stamps, rate=100):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"qp": "4", "bf": "0"})
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for image, stamp in zip(frames, stamps, strict=True):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def shade(value, size=(48, 64)):
    return np.full((*size, 3), value, np.uint8)


def test_a_clip_of_a_varying_rate_keeps_to_its_own_shot(tmp_path):
    """A shot of 1 s at 60 frames a second before one of 4 s at 5: at the mean rate, 60 frames would run into the second shot."""
    stamps = [*(round(100 * i / 60) for i in range(60)), *range(100, 500, 20)]
    paced(tmp_path / "v.mp4", [shade(60)] * 60 + [shade(200)] * 20, stamps)
    (source_video,) = probe.run([{"path": str(tmp_path / "v.mp4")}], Config(), None)
    assert any("variable frame rate" in notice for notice in source_video["notices"])
    content, count = cut(source_video, 0.0, 1.0)
    frames = images.read_video(io.BytesIO(content))[0]
    assert len(frames) == count == round(source_video["fps"])
    assert np.abs(frames.mean((1, 2, 3)) - 60).max() < 4
    content, _ = cut(source_video, 1.0, 5.0)
    assert np.abs(images.read_video(io.BytesIO(content))[0].mean((1, 2, 3)) - 200).max() < 4


def concatenated(tmp_path, *parts):
    """Transport streams one after the other: timestamps start again."""
    content = b""
    for number, (value, size) in enumerate(parts):
        paced(tmp_path / f"{number}.ts", [shade(value, size)] * 10, range(0, 200, 20))
        content += (tmp_path / f"{number}.ts").read_bytes()
        (tmp_path / f"{number}.ts").unlink()
    (tmp_path / "joined.ts").write_bytes(content)
    return tmp_path / "joined.ts"


def test_timestamps_that_start_again_go_on(tmp_path):
    video = Video(concatenated(tmp_path, (60, (48, 64)), (200, (48, 64))))
    times, values = zip(*((now, frame.mean()) for now, frame in video.frames()), strict=True)
    assert np.allclose(np.diff(times), 0.2, atol=0.02)
    assert not video.facts.ordered
    assert any("discontinuous" in notice for notice in video.facts.notices)
    assert [round(v / 10) for v in values] == [6] * 10 + [20] * 10
    source_video = next(probe.run([{"path": str(video.source)}], Config(), None))
    content = cut(source_video, times[12], times[16])[0]
    assert np.abs(images.read_video(io.BytesIO(content))[0].mean((1, 2, 3)) - 200).max() < 4


def test_a_size_that_changes_is_shown_within_the_first_one(tmp_path):
    video = Video(concatenated(tmp_path, (60, (48, 64)), (200, (64, 48))))
    frames = [frame for _, frame in video.frames()]
    assert {frame.shape for frame in frames} == {(48, 64, 3)}
    assert frames[15][:, 32].mean() > 195
    assert frames[15][:, :10].max() == 0


def test_a_broken_video_among_good_ones_is_named(tmp_path, call_phantom):
    good = concatenated(tmp_path, (60, (48, 64)), (200, (64, 48)))
    turned(tmp_path / "b.mp4", 2)
    content = (tmp_path / "b.mp4").read_bytes()
    (tmp_path / "c.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "d.mp4").write_bytes(b"no video at all")
    good.rename(good.with_suffix(".mkv"))
    code, said = call_phantom("evaluate", "score", tmp_path, "--features", "phantom-mini", "--reconstruct", "none")
    assert code == 3, said.err
    lines = said.out.splitlines()
    assert [line.split(":")[0] for line in lines[:-1]] == ["b.mp4", "c.mp4", "d.mp4", "joined.mkv"]
    assert ["not measured: " in line.split(";")[0] for line in lines[:-1]] == [False, True, True, False]
    assert "rotated by 180 degrees" in lines[0]


def test_a_defect_of_ours_is_no_missed_kpi(call_phantom, monkeypatch, tmp_path):
    def broken(*_):
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr("phantom_s2v.evaluation.run.find_videos", broken)
    code, said = call_phantom("evaluate", "score", tmp_path)
    assert code == 70
    assert "ZeroDivisionError: a defect" in said.err


# Images


def profile(gamma, to_xyz):
    """An ICC profile of a display with a power law and primaries given as columns of XYZ under D50."""

    def fixed(values):
        return b"".join(struct.pack(">i", round(v * 65536)) for v in values)

    texts = {"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(79), "cprt": b"text" + bytes(4) + b"x\0\0\0"}
    tags = {**texts, "wtpt": b"XYZ " + bytes(4) + fixed((0.9642, 1.0, 0.8249))}
    for column, name in enumerate("rgb"):
        tags[f"{name}XYZ"] = b"XYZ " + bytes(4) + fixed(to_xyz[:, column])
        tags[f"{name}TRC"] = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    start, body, table = 132 + 12 * len(tags), b"", struct.pack(">I", len(tags))
    for name, content in tags.items():
        content += bytes(-len(content) % 4)
        table += name.encode() + struct.pack(">II", start + len(body), len(content))
        body += content
    size = struct.pack(">I", start + len(body))
    head = size + bytes(4) + struct.pack(">I", 0x02400000) + b"mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28)
    return head + fixed((0.9642, 1.0, 0.8249)) + bytes(48) + table + body


P3_XYZ = np.array([[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]])


def srgb_light(signal):
    x = signal / 255.0
    return np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)


def oriented(path, orientation):
    """Stored so that EXIF orientation has to turn it: the inverse of what the viewer does."""
    undo = {2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1], 5: lambda a: a.transpose(1, 0, 2)}
    undo |= {6: lambda a: np.rot90(a, 1), 7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1], 8: lambda a: np.rot90(a, -1)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo[orientation](scene()))).save(path, exif=exif, quality=98)


def with_profile(path, alpha=False):
    p3 = ((srgb_light(scene()) @ TO_P3.T) ** (1 / 1.8) * 255 + 0.5).astype(np.uint8)
    if alpha:
        p3 = np.dstack([p3, np.full((HEIGHT, WIDTH), 255, np.uint8)])
        p3[32:, 48:] = (9, 9, 9, 0)
    Image.fromarray(p3).save(path, icc_profile=profile(1.8, P3_XYZ))


def tiff(path, values, kind):
    """A TIFF without compression; `kind` is 1 for integers and 3 for floating point."""
    height, width, channels = values.shape
    raw, start = values.astype("<" + values.dtype.str[1:]).tobytes(), 8
    bits = struct.pack(f"<{channels}H", *[8 * values.itemsize] * channels)
    kinds = struct.pack(f"<{channels}H", *[kind] * channels)
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 0), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 0)]
    tags += [(277, 3, 1, channels), (278, 4, 1, height), (279, 4, 1, len(raw)), (339, 3, channels, 0)]
    after = start + 2 + 12 * len(tags) + 4
    places = {258: after, 339: after + len(bits), 273: after + len(bits) + len(kinds)}
    entries = b"".join(struct.pack("<HHII", tag, form, n, places.get(tag, value)) for tag, form, n, value in tags)
    path.write_bytes(b"II*\0" + struct.pack("<IH", start, len(tags)) + entries + bytes(4) + bits + kinds + raw)


def deep_png(path):
    coder = av.CodecContext.create("png", "w")
    coder.width, coder.height, coder.pix_fmt, coder.time_base = WIDTH, HEIGHT, "rgb48be", Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(scene().astype(np.uint16) * 257, format="rgb48le").reformat(format="rgb48be")
    path.write_bytes(b"".join(bytes(packet) for packet in [*coder.encode(frame), *coder.encode(None)]))


def clear_png(path, mode="RGBA"):
    pixels = np.dstack([scene(), np.full((HEIGHT, WIDTH), 255, np.uint8)])
    pixels[32:, 48:] = (9, 9, 9, 0)
    image = Image.fromarray(pixels)
    (image if mode == "RGBA" else image.quantize(16)).save(path, lossless=True)


IMAGES = {
    "plain": ("png", lambda p: Image.fromarray(scene()).save(p)),
    **{f"EXIF orientation {n}": ("jpg", lambda p, n=n: oriented(p, n)) for n in range(2, 9)},
    "TIFF orientation 6": ("tiff", lambda p: oriented(p, 6)),
    "ICC profile": ("png", with_profile),
    "alpha beside an ICC profile": ("png", lambda p: with_profile(p, True)),
    "a broken ICC profile": ("png", lambda p: Image.fromarray(scene()).save(p, icc_profile=b"no profile" * 30)),
    "16 bits": ("png", deep_png),
    "TIFF of 16 bits": ("tiff", lambda p: tiff(p, scene().astype(np.uint16) * 257, 1)),
    "TIFF of floating point": ("tiff", lambda p: tiff(p, scene().astype(np.float32) / 255, 3)),
    "alpha": ("png", clear_png),
    "alpha of a palette": ("png", lambda p: clear_png(p, "P")),
    "alpha of WebP": ("webp", clear_png),
}


def read(path):
    return images.read_image(path)[0]


def as_content(path):
    return images.read_image(path.read_bytes())[0]


def as_reference(path):
    """As `phantom generate --reference` reads it."""
    from phantom_s2v.pipeline.generate import request_images
    from phantom_s2v.pipeline.request import Reference, Request

    values = dict.fromkeys(
        (
            "height",
            "width",
            "num_frames",
            "fps",
            "seed",
            "num_inference_steps",
            "shift",
            "image_guidance_scale",
            "guidance_scale",
        ),
        1,
    )
    request = Request(prompt="", references=(Reference(str(path), "it"),), solver="euler", **values)
    return request_images(request)[0][0]


def as_scored(path):
    from phantom_s2v.evaluation.run import name_references

    (path.parent / "v.mp4").write_bytes(b"")
    images.write_video(path.parent / "w.mp4", np.repeat(scene()[None], 3, 0), 12)
    tools = Instruments("none", lambda stills: np.ones((len(stills), 1), np.float32), Thresholds())
    return score_one(path.parent / "w.mp4", Asked(name_references([f"it={path}"]), "", tools))[0].references[0]


def as_imported(path):
    images.write_video(path.parent / "w.mp4", np.repeat(scene()[None], 3, 0), 12)
    (path.parent / "w.txt").write_text("x")
    if path.suffix == ".tiff":  # not among the images of a folder
        path = path.rename(path.with_suffix(".png"))
    path.rename(path.with_name(f"w.it{path.suffix}"))
    (triplet,) = read_captioned(path.parent, Reading(Rights(), pytest.fail, lambda line: None))
    return decode(triplet).references[0]


def as_rated(path):
    import base64

    from phantom_s2v.evaluation.rating import _image
    from phantom_s2v.media.pages import png

    with Image.open(io.BytesIO(base64.b64decode(png(_image(path)).split(",")[1]))) as image:
        return np.asarray(image)


@pytest.mark.parametrize("place", [read, as_content, as_reference, as_scored, as_imported, as_rated], ids=lambda p: p.__name__)
@pytest.mark.parametrize("name", IMAGES)
def test_a_image_is_seen_as_it_is_meant(tmp_path, name, place):
    suffix, make = IMAGES[name]
    make(tmp_path / f"a.{suffix}")
    same_scene(place(tmp_path / f"a.{suffix}"), name.startswith("alpha"), 4)


def test_one_channel_of_any_depth(tmp_path):
    ramp = np.linspace(0, 1, 16).reshape(4, 4)
    wanted = ramp * 255
    kinds = {
        "f": (ramp, np.float32),
        "255": (ramp * 255, np.float32),
        "i": (ramp * 65535, np.int32),
        "s": (ramp * 65535, np.uint16),
    }
    for name, (values, kind) in kinds.items():
        Image.fromarray(values.astype(kind)).save(tmp_path / f"{name}.tiff")
        assert np.abs(images.read_image(tmp_path / f"{name}.tiff")[0][..., 0] - wanted).max() <= 1, name
    Image.fromarray((ramp * 200).astype(np.uint16)).save(tmp_path / "dark.png")  # of 65,535: nearly black
    assert images.read_image(tmp_path / "dark.png")[0].max() <= 1
    Image.fromarray(np.array([[np.nan, 1.0]], np.float32)).save(tmp_path / "nan.tiff")
    with pytest.raises(InputError, match="not finite"):
        images.read_image(tmp_path / "nan.tiff")


def test_the_first_frame_is_read_likewise(tmp_path, tiny_models, monkeypatch):
    from phantom_s2v.pipeline import generate
    from phantom_s2v.pipeline.request import with_defaults

    oriented(tmp_path / "start.jpg", 6)
    seen = []

    def stop(self, **given):
        seen.append(given["image"])
        raise InputError("enough")

    monkeypatch.setattr(type(tiny_models), "__call__", stop)
    request = with_defaults(
        tiny_models.preset, prompt="x", references=(), first_frame=str(tmp_path / "start.jpg"), height=32, width=48
    )
    with pytest.raises(InputError, match="enough"):
        generate.generate(request, tiny_models)
    same_scene(images.letterbox(seen[0], 32, 48), near=10)


def test_paths_are_names_and_not_protocols(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encode(Path("concat:a.mp4"), [scene()] * 3, 12, 6)
    assert Path("concat:a.mp4").is_file()
    same_scene(images.read_video(Path("concat:a.mp4"))[0][0])


def test_steps_past_a_thousand_lengths_are_all_counted():
    steps, now = videos._Steps(), 0.0
    for number in range(3001):
        steps.add(now)
        now += (number % 1500 + 1) / 1000
    assert sum(steps.lengths.values()) == 3000
    assert len(steps.lengths) <= 1001


def test_a_video_with_metadata_that_is_no_text_is_read():
    """Some cameras write handler_name in another encoding than UTF-8."""
    frames = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3)).astype(np.uint8)
    content = images.encode_video(frames, 8)
    assert content.count(b"VideoHandler") == 1
    broken = content.replace(b"VideoHandler", b"Vid\xff\xfe\xe9oHa\x80er")
    with pytest.raises(UnicodeDecodeError):
        av.open(io.BytesIO(broken))
    assert len(images.read_video(io.BytesIO(broken))[0]) == 5
