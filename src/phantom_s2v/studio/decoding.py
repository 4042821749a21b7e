"""The process that decodes what people upload: python -m phantom_s2v.studio.decoding, started by `uploads.Decoder`.

It reads names of folders, one a line. For each it forks a child, which gives itself limits of time, memory and file size, reads
`input` there and writes the image anew, with a thumbnail and what is to be said of it; a child that is not done in time is ended.
What an image does to its decoder thus happens in a process that knows no secret and is gone afterwards.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from phantom_s2v.errors import InputError
from phantom_s2v.media.images import read_alpha, read_image
from phantom_s2v.studio.images import warnings
from phantom_s2v.vision.faces import faces
from phantom_s2v.vision.fetched import fetched

SECONDS, MEMORY_BYTES, FILE_BYTES = 20, 4 << 30, 256 << 20  # of one image
MAX_PIXELS = 50_000_000  # as the file has them
MAX_SIDE, THUMBNAIL_SIDE = 2048, 480  # pixels, of what is kept
REFUSALS = (
    (Image.DecompressionBombError, "pixels"),
    (Image.DecompressionBombWarning, "pixels"),
    (UnidentifiedImageError, "kind"),
)


def decode(folder: Path) -> dict[str, Any]:
    """Write image.png and thumbnail.jpg of the folder's `input`; their size and warnings, or {"refused": why}."""
    source = folder / "input"
    if not source.stat().st_size:
        return {"refused": "empty"}
    try:
        image, _ = read_image(source)
        alpha = read_alpha(source)
    except InputError as error:
        cause = error.__cause__
        if cause is None:
            return {"refused": "sliver"}
        return {"refused": next((why for kind, why in REFUSALS if isinstance(cause, kind)), "damaged")}
    original = image.shape[:2]
    said = warnings(image, alpha if alpha is not None and alpha.shape == original else None)
    kept = Image.fromarray(image)
    kept.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    kept.save(folder / "image.png")
    small = kept.copy()
    small.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    small.save(folder / "thumbnail.jpg", quality=85)
    return {"width": kept.width, "height": kept.height, "warnings": said}


def _limit() -> None:
    """Limits of a child, which it cannot raise again."""
    for what, most in (
        (resource.RLIMIT_CPU, SECONDS), (resource.RLIMIT_AS, MEMORY_BYTES), (resource.RLIMIT_FSIZE, FILE_BYTES),
        (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0),
    ):  # fmt: skip
        resource.setrlimit(what, (most, most))


def _child(folder: Path) -> None:
    """Decode in this process, and end it."""
    try:
        _limit()
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS
        (folder / "result.json").write_text(json.dumps(decode(folder)))
    except MemoryError:
        (folder / "result.json").write_text('{"refused": "pixels"}')
    finally:
        os._exit(0)


def _wait(child: int, seconds: float) -> None:
    """Until a child has ended, or end it."""
    until = time.monotonic() + seconds
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return
        time.sleep(0.002)


def main() -> None:
    """Serve until the other side closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the web process, which closes the pipe
    cv2.setNumThreads(0)
    Image.init()  # Pillow's decoders are loaded here once, and not in every child
    if fetched():
        with contextlib.redirect_stdout(sys.stderr):
            faces(np.zeros((128, 128, 3), np.uint8))  # the network is loaded once, and every child has it
    print("ready", flush=True)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _child(Path(line.rstrip("\n")))
        _wait(child, 1.5 * SECONDS)
        print("done", flush=True)


if __name__ == "__main__":
    main()
