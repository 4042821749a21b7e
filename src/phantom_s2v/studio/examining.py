"""The process that looks at a file of anybody's: python -m phantom_s2v.studio.examining FOLDER, started by `verify`.

It reads `input` there, within limits of time and memory, and writes `result.npz`: what the file's credentials say, and looks at
it by which a copy of ours is recognized. What a file does to a decoder thus happens in a process that knows no secret.
"""

import json
import resource
import sys
from collections.abc import Iterator
from dataclasses import asdict
from itertools import takewhile
from pathlib import Path

import cv2
import numpy as np

from phantom_s2v.errors import InputError
from phantom_s2v.media.videos import Video
from phantom_s2v.studio import credentials, fingerprints

SECONDS, MEMORY_BYTES, FILE_BYTES = 120, 4 << 30, 256 << 20
LONG = 600.0  # seconds of a video that are looked at


def examine(folder: Path, media_type: str, trusted: str) -> None:
    """Write result.npz: `said`, JSON of the credentials, and times and looks of each window, whole and without bars."""
    source = folder / "input"
    with source.open("rb") as file:
        said = credentials.read(file, media_type, trusted)
    found: dict[str, np.ndarray] = {}
    readable = True
    try:
        for number, windows in enumerate(fingerprints.looks_at(_frames(source))):
            for inside, asked in enumerate(windows):
                found[f"times-{number}-{inside}"], found[f"looks-{number}-{inside}"] = asked.times, asked.looks
    except InputError:
        readable = bool(found)
    np.savez(folder / "result.npz", said=json.dumps({**asdict(said), "readable": readable}), **found)  # type: ignore[arg-type]


def _frames(source: Path) -> Iterator[tuple[float, np.ndarray]]:
    """(seconds, image) of the first LONG seconds of a video."""
    return takewhile(lambda timed: timed[0] <= LONG, Video(source, "the file").frames())


def main() -> None:
    """Examine the folder of the command line; the media type and trusted roots come in on stdin as JSON."""
    for what, most in (
        (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))
    cv2.setNumThreads(1)
    asked = json.load(sys.stdin)
    examine(Path(sys.argv[1]), asked["media_type"], asked["trusted"])


if __name__ == "__main__":
    main()
