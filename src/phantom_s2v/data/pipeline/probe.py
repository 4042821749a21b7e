"""Probe: is this file a video that can be read, and what is in it?"""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from phantom_s2v.data.clips import VIDEOS
from phantom_s2v.data.pipeline.config import Config, Models, Record
from phantom_s2v.errors import InputError
from phantom_s2v.files.hashes import combined_hash, content_hash
from phantom_s2v.files.io import read_json, read_text
from phantom_s2v.files.untrusted import MAX_TEXT_BYTES, check_regular
from phantom_s2v.media.videos import UnreadableVideoError, Video

LARGE = 4320  # lines of 8K
BESIDE = (".json", ".txt")  # suffixes of what tells caption and rights
RIGHTS = ("source", "license", "consent")


def find(folder: Path) -> Iterator[Path]:
    """Video files below a folder, sorted, by name alone. Links to folders are not followed, so a loop of them does no harm."""
    if folder.is_file():
        yield folder.resolve() if folder.is_symlink() else folder  # the user named it
        return
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        yield folder  # probe says what is wrong with it
        return
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            yield from find(entry)
        elif entry.suffix.lower() in VIDEOS:
            yield entry


def source_hash(path: Path) -> str:
    """Hash of the contents of a source video and of the files beside it."""
    files = [path, *(each for suffix in BESIDE if (each := path.with_suffix(suffix)).is_file())]
    return combined_hash((each.suffix, content_hash(each)) for each in files)


def run(records: Iterable[Record], config: Config, models: Models) -> Iterator[Record]:
    """Records with "path" -> a source video's record; what cannot be read gets its reason in "drop"."""
    for record in records:
        path = Path(record["path"])
        source_video = {
            "kind": "source_video",
            "source_video": "",
            "name": path.name,
            "notices": [],
            "drop": "",
            "clips": 0,
            **record,
        }
        try:
            source_video |= {**_look(path), "source": source_hash(path)}
        except UnreadableVideoError as error:
            source_video["drop"] = error.reason
        except (InputError, OSError, ValueError) as error:
            source_video["drop"] = getattr(error, "strerror", None) or str(error)
        yield source_video


def _look(path: Path) -> Record:
    """The facts of a file; UnreadableVideoError where it holds no video."""
    if path.is_symlink():
        raise ValueError("a symbolic link (not followed)")
    facts = Video(path).facts
    if not facts.fps:
        raise ValueError("no frame rate")
    notices = list(facts.notices)
    if not facts.steady:
        notices.append(f"clips use its mean frame rate, {facts.fps:.3g}")
    if max(facts.height, facts.width) >= LARGE:
        notices.append(f"{facts.width}x{facts.height}: scaled down")
    metadata: Record = {
        "source_video": content_hash(path)[:32],
        "fps": facts.fps,
        "height": facts.height,
        "width": facts.width,
        "count": facts.count,
        "playable": facts.playable and facts.steady,
        "notices": notices,
    }
    return metadata | _beside(path)


def has_caption(path: Path) -> bool:
    """Whether a caption lies beside a source video."""
    try:
        return bool(_beside(path)["caption"])
    except (InputError, OSError, ValueError):
        return False


def _beside(path: Path) -> Record:
    """Caption and rights out of NAME.json (caption, source, license, consent) or, the caption alone, NAME.txt."""
    metadata: Record = {"caption": ""}
    text, facts = path.with_suffix(".txt"), path.with_suffix(".json")
    for each in (text, facts):
        if os.path.lexists(each):
            check_regular(each, MAX_TEXT_BYTES)
    if facts.is_file():
        try:
            values = read_json(facts)
            metadata = {"caption": str(values.get("caption", ""))}
            if any(name in values for name in RIGHTS):
                metadata["rights"] = {name: str(values.get(name, "")) for name in RIGHTS}
        except (ValueError, AttributeError) as error:
            raise ValueError(f"{facts.name} is not a JSON object ({error})") from error
    elif text.is_file():
        metadata["caption"] = read_text(text).strip()
    return metadata
