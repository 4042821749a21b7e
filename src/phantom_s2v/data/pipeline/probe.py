"""Probe: is this file a video that can be read, and what is in it?"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import av

from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.errors import InputError
from phantom_s2v.media import open_video

SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".gif")
LARGE = 4320  # lines of 8K
RIGHTS = ("source", "licence", "consent")


def find(folder: Path) -> Iterator[Path]:
    """Video files below a folder, sorted, by name alone. Links to folders are not followed, so a loop of them does no harm."""
    if folder.is_file():
        yield folder
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        yield folder  # probe says what is wrong with it
        return
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            yield from find(entry)
        elif entry.suffix.lower() in SUFFIXES:
            yield entry


def stamp(path: Path) -> str:
    """Size and time of change of a file: while they are the same, so is the file."""
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns}"


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Records with "path" -> a film's record; what cannot be read gets its reason in "drop"."""
    for record in records:
        path = Path(record["path"])
        film = {"kind": "film", "film": "", "name": path.name, "notices": [], "drop": "", "clips": 0, **record}
        try:
            film |= {"stamp": stamp(path), **_look(path)}
        except (av.FFmpegError, OSError, ValueError, InputError) as error:
            film["drop"] = _reason(error)
        yield film


def _look(path: Path) -> Record:
    """The facts of a file; ValueError with the reason where it holds no video."""
    if not path.is_file():
        raise ValueError("not a file that can be read")
    if not path.stat().st_size:
        raise ValueError("empty")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()[:32]
    found: Record = {"film": digest}
    with open_video(path) as container:
        if not container.streams.video:
            raise ValueError("no video, only sound" if container.streams.audio else "no video")
        stream = container.streams.video[0]
        first = next(container.decode(stream), None)
        if first is None:
            raise ValueError("no frame")
        turned = first.rotation % 180 != 0
        height, width = (first.width, first.height) if turned else (first.height, first.width)
        rate, base = stream.average_rate, stream.base_rate or stream.guessed_rate
        if not rate:
            raise ValueError("no frame rate")
        notices = []
        if base and abs(float(base) / float(rate) - 1) > 0.02:
            notices.append("variable frame rate: clips are resampled to its mean")
        if first.rotation:
            notices.append(f"turned by {-first.rotation % 360} degrees, as its flag says")
        if first.format.components[0].bits > 8:
            notices.append(f"{first.format.components[0].bits} bits: read as 8")
        if max(height, width) >= LARGE:
            notices.append(f"{width}x{height}: scaled down")
        found |= {"fps": float(rate), "height": height, "width": width, "rotation": first.rotation, "notices": notices}
    return found | _beside(path)


def _beside(path: Path) -> Record:
    """Caption and rights out of NAME.json (caption, source, licence, consent) or, the caption alone, NAME.txt."""
    said: Record = {"caption": ""}
    text, facts = path.with_suffix(".txt"), path.with_suffix(".json")
    if facts.is_file():
        try:
            given = json.loads(facts.read_text(encoding="utf-8"))
            said = {"caption": str(given.get("caption", ""))}
            if any(name in given for name in RIGHTS):
                said["rights"] = {name: str(given.get(name, "")) for name in RIGHTS}
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{facts.name} is no JSON object ({error})") from error
    elif text.is_file():
        said["caption"] = text.read_text(encoding="utf-8", errors="replace").strip()
    return said


def _reason(error: Exception) -> str:
    """What is wrong with a file, in a few words that are the same for all files that it is wrong with."""
    if isinstance(error, PermissionError):
        return "no permission to read"
    if isinstance(error, av.FFmpegError):
        return f"not a video that can be read ({error.strerror})"
    return str(error)
