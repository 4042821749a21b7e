"""Which copies of a video the studio's Verify still recognizes, and how often it takes another video for one of ours.

    python benchmarks/studio_fingerprints.py [FOLDER_OF_VIDEOS ...] [--mini 6] [--copies 30]

Videos: packaged emoji clips moving over one color, `--mini` videos by phantom-mini, and those of the folders (their first 3 s).
Every second video is kept as ours. Of some of those copies are made, encoded anew and sought: recognized means that the first
answer is the right video. All others, which are not ours, are sought as they are: any answer is a false match.

The last line is JSON: videos, other (videos that are not ours), false (of those), wrong (copies taken for another video of ours),
and the share recognized of each kind of copy.
"""

import argparse
import io
import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.video.stream import VideoStream
from PIL import Image
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import phantom_s2v
from phantom_s2v.errors import InputError
from phantom_s2v.media.videos import Video
from phantom_s2v.studio import fingerprints, labels
from phantom_s2v.studio.fingerprints import Match
from phantom_s2v.studio.schema import Base

CLIPS = Path(phantom_s2v.__file__).parent / "assets" / "held-out" / "clips"
FPS, SIDE, SECONDS = 12, 320, 3.0
Frames = list[np.ndarray]


def emoji(path: Path, seed: int) -> Frames:
    """A packaged clip of 25 frames that moves over one color."""
    rng, frames = np.random.default_rng(seed), []
    color, side = tuple(int(c) for c in rng.integers(40, 220, 3)), int(rng.integers(60, 110))
    down, across = rng.integers(-40, 40, 2)
    with Image.open(path) as clip:
        for number in range(25):
            clip.seek(number * getattr(clip, "n_frames", 1) // 25)
            drawn, gone = clip.convert("RGBA").resize((side, side)), number / 25 - 0.5
            canvas = Image.new("RGB", (160, 160), color)
            canvas.paste(drawn, (int((160 - side) / 2 + across * gone), int((160 - side) / 2 + down * gone)), drawn)
            frames.append(np.asarray(canvas))
    return frames


def excerpt(path: Path) -> Frames:
    """The first seconds of a file at FPS frames a second, at most SIDE pixels long."""
    video, frames, wanted = Video(path), list[np.ndarray](), 0.0
    scale = min(1.0, SIDE / max(video.facts.height, video.facts.width))
    size = (int(video.facts.height * scale) // 2 * 2, int(video.facts.width * scale) // 2 * 2)
    for seconds, image in video.frames(size=size):
        if seconds > SECONDS:
            break
        if seconds >= wanted - 1e-3:
            frames.append(image)
            wanted += 1 / FPS
    return frames


def by_mini(count: int) -> Iterator[tuple[str, Frames]]:
    """Videos that phantom-mini makes of packaged stills."""
    from phantom_s2v.models.memory import Placement
    from phantom_s2v.models.registry import load_preset, model_folder
    from phantom_s2v.pipeline.batch import build_request
    from phantom_s2v.pipeline.generate import generate, load_for

    stills = sorted((CLIPS.parent / "stills").glob("*.webp"))[:: max(1, 120 // max(count, 1))][:count]
    folder = model_folder("phantom-mini")
    preset = load_preset(folder)
    for number, still in enumerate(stills):
        prompt = "The large subject moves to the right on a yellow background."
        request = build_request({"prompt": prompt, "reference": [str(still)], "seed": number}, preset)
        pipe = load_for([request], folder, Placement(device="cpu"))
        yield f"mini {still.stem}", list(generate(request, pipe).video)


def encoded(frames: Frames, codec: str = "libx264", crf: int = 28, fps: float = FPS) -> Iterator[tuple[float, np.ndarray]]:
    """Frames as they are after a codec, with their times."""
    target = io.BytesIO()
    quick = {"preset": "veryfast"} if codec == "libx264" else {"b:v": "0", "cpu-used": "8", "deadline": "realtime"}
    with av.open(target, "w", format="mp4" if codec == "libx264" else "webm") as container:
        options = {"crf": str(crf), "threads": "1", **quick}
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(1000), options=options)
        assert isinstance(stream, VideoStream)
        height, width = (side // 2 * 2 for side in frames[0].shape[:2])
        stream.pix_fmt, stream.height, stream.width = "yuv420p", height, width
        for frame in frames:
            cut = np.ascontiguousarray(frame[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))
        container.mux(stream.encode())
    target.seek(0)
    return Video(target, "copy").frames()


def each(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Frames], Iterator[tuple[float, np.ndarray]]]:
    """A change of every frame, then H.264 at crf 28."""
    return lambda frames: encoded([change(frame) for frame in frames])


def scaled(percent: int) -> Callable[[np.ndarray], np.ndarray]:
    share, how = percent / 100, cv2.INTER_AREA if percent < 100 else cv2.INTER_CUBIC
    return lambda frame: cv2.resize(frame, None, fx=share, fy=share, interpolation=how)


def cropped(percent: int) -> Callable[[np.ndarray], np.ndarray]:
    def cut(frame: np.ndarray) -> np.ndarray:
        down, across = (round(side * percent / 100) for side in frame.shape[:2])
        return frame[down : frame.shape[0] - down, across : frame.shape[1] - across]

    return cut


def barred(down: float, across: float) -> Callable[[np.ndarray], np.ndarray]:
    def add(frame: np.ndarray) -> np.ndarray:
        above, beside = round(frame.shape[0] * down), round(frame.shape[1] * across)
        return cv2.copyMakeBorder(frame, above, above, beside, beside, cv2.BORDER_CONSTANT)

    return add


CHANGES: dict[str, Callable[[Frames], Iterator[tuple[float, np.ndarray]]]] = {
    **{f"h264 crf {crf}": lambda frames, crf=crf: encoded(frames, crf=crf) for crf in (18, 23, 28, 34, 40)},
    **{f"vp9 crf {crf}": lambda frames, crf=crf: encoded(frames, "libvpx-vp9", crf) for crf in (30, 45, 55)},
    **{f"scaled {percent}%": each(scaled(percent)) for percent in (25, 50, 150, 200)},
    **{f"cropped {percent}% a side": each(cropped(percent)) for percent in (2, 5, 8, 10, 12, 15)},
    "letterboxed": each(barred(0.15, 0)),
    "pillarboxed": each(barred(0, 0.2)),
    "mirrored": each(lambda frame: frame[:, ::-1]),
    "darker 30%": each(lambda frame: (frame * 0.7).astype(np.uint8)),
    "labelled": lambda frames: encoded(list(labels.labelled(frames, "AI-generated"))),
    "half the frames": lambda frames: encoded(frames[::2], fps=FPS / 2),
    "first second cut": lambda frames: encoded(frames[FPS:]),
    "20% faster": lambda frames: encoded(frames, fps=1.2 * FPS),
}


def sought(session: Session, frames: Iterator[tuple[float, np.ndarray]]) -> Match | None:
    """The first answer of Verify."""
    found = [
        match for window in fingerprints.looks_at(frames) for asked in window for match in fingerprints.find(session, asked)[:1]
    ]
    return max(found, key=lambda match: match.similarity, default=None)


def videos(folders: list[Path], mini: int) -> dict[str, Frames]:
    """All videos by name, kinds in turn."""
    made = {path.stem: emoji(path, seed) for seed, path in enumerate(sorted(CLIPS.glob("*.webp")))}
    made |= dict(by_mini(mini)) if mini else {}
    for path in (path for folder in folders for path in sorted(folder.iterdir())):
        try:
            frames = excerpt(path)
        except InputError:
            continue
        if len(frames) >= FPS:
            made[path.name] = frames
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--mini", type=int, default=0)
    parser.add_argument("--copies", type=int, default=30)
    options = parser.parse_args()
    made = videos(options.folders, options.mini)
    names = list(made)
    ours, others = names[::2], names[1::2]
    engine = create_engine("sqlite://")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for name in ours:
            fingerprints.keep(session, name, fingerprints.measure((n / FPS, frame) for n, frame in enumerate(made[name])))
        answers = [(name, sought(session, ((n / FPS, f) for n, f in enumerate(made[name])))) for name in others]
        false = [(name, match) for name, match in answers if match]
        for name, match in false:
            print("false:", name, "is taken for", match.video_id, round(match.similarity, 3))
        places = np.linspace(0, len(ours) - 1, min(options.copies, len(ours))).round().astype(int)  # of every kind
        chosen = [ours[place] for place in places]
        shares, wrong = {}, 0
        for kind, change in CHANGES.items():
            found = [(name, sought(session, change(made[name]))) for name in chosen]
            right = sum(match is not None and match.video_id == name for name, match in found)
            wrong += sum(match is not None and match.video_id != name for name, match in found)
            shares[kind] = round(right / len(chosen), 3)
            print(f"{kind}: {right} of {len(chosen)}", [name for name, m in found if not m or m.video_id != name][:5], flush=True)
    print(
        json.dumps(
            {"videos": len(names), "copied": len(chosen), "other": len(others), "false": len(false), "wrong": wrong, **shares}
        )
    )


if __name__ == "__main__":
    main()
