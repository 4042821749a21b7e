"""Images that people upload: decoded by a process of its own, kept as they were written anew, without metadata."""

import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import phantom_s2v
from phantom_s2v.studio.problems import N_, Problem, TooLarge

IMAGE_BYTES = 40 << 20  # of a file
PATIENCE = 60.0  # seconds for the decoder to start, and for one image
PASSED_ON = (
    "PATH",
    "HOME",
    "XDG_CACHE_HOME",
    "LD_LIBRARY_PATH",
    "LANG",
    "TMPDIR",
    "VIRTUAL_ENV",
)  # of the environment: no secret
REFUSED = {
    "empty": N_("The file is empty."),
    "kind": N_("This is not an image that can be read (PNG, JPEG, WebP, GIF, BMP or TIFF)."),
    "pixels": N_("The image has too many pixels; at most 50 million are allowed."),
    "damaged": N_("The image is damaged or cut off. Please save it again as PNG or JPEG."),
    "sliver": N_("The image is too narrow: one side may be at most eight times the other."),
}
CODES = ("small", "blurred", "cropped", "crowded", "dark")


@dataclass(frozen=True)
class Decoded:
    """An image written anew: PNG, a JPEG for lists, size in pixels, and warnings, [{"code", values...}]."""

    image: Path
    thumbnail: Path
    width: int
    height: int
    warnings: list[dict[str, Any]]


class Decoder:
    """Starts the process that decodes at the first image, and again when it has ended. One image at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    @contextmanager
    def decoded(self, source: BinaryIO) -> Iterator[Decoded]:
        """An image as it was written anew, in files that are gone when the block ends.

        Raises Problem with one sentence for what cannot be read, and TooLarge.
        """
        with tempfile.TemporaryDirectory(prefix="phantom-upload-") as name:
            folder = Path(name)
            with (folder / "input").open("wb") as file:
                shutil.copyfileobj(_Limited(source), file)
            with self._lock:
                self._ask(folder)
            yield _result(folder)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, folder: Path) -> None:
        """Have a folder's input decoded. A process that does not answer is ended, and the next image starts another."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._process = _start()
            if not self._answers():
                self._end()
                raise RuntimeError("the process that decodes images does not start")
        assert self._process.stdin
        try:
            self._process.stdin.write(os.fsencode(folder) + b"\n")
            self._process.stdin.flush()
            answers = self._answers()
        except OSError:
            answers = False
        if not answers:
            self._end()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        return bool(ready) and bool(self._process.stdout.readline())

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def child_environment() -> dict[str, str]:
    """What a process needs of the environment that looks at others' files: paths, and no secret."""
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return kept | {"PYTHONPATH": str(Path(phantom_s2v.__file__).parents[1]), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def _start() -> "subprocess.Popen[bytes]":
    """The process that decodes."""
    return subprocess.Popen(
        [sys.executable, "-m", "phantom_s2v.studio.decoding"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env=child_environment(), start_new_session=True,
    )  # fmt: skip


class _Limited:
    """A stream of at most IMAGE_BYTES. Raises TooLarge beyond."""

    def __init__(self, source: BinaryIO) -> None:
        self._source, self._left = source, IMAGE_BYTES

    def read(self, size: int = -1) -> bytes:
        """As the stream's."""
        chunk = self._source.read(size)
        self._left -= len(chunk)
        if self._left < 0:
            raise TooLarge("The file is too large: at most %(megabytes)d MB are allowed.", "images", megabytes=IMAGE_BYTES >> 20)
        return chunk


def _result(folder: Path) -> Decoded:
    """What the child wrote, looked at as what others wrote. Raises Problem where it refused the image, or did not end well."""
    try:
        found = json.loads((folder / "result.json").read_bytes())
        if "refused" in found:
            raise Problem(REFUSED[found["refused"]], "images")
        width, height = int(found["width"]), int(found["height"])
        said = [each for each in found["warnings"] if each["code"] in CODES]
        return Decoded(folder / "image.png", folder / "thumbnail.jpg", width, height, said)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem(REFUSED["damaged"], "images") from error
