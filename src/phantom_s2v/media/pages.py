"""HTML pages that open anywhere: images and videos inside, from the templates of assets/templates on one base.

A long report is several files, page.html, page.2.html and so on, each with a bounded number of cases.
"""

import base64
import io
import json
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from phantom_s2v.errors import InputError
from phantom_s2v.files.io import beside, check_outputs, ours, write_text
from phantom_s2v.media.videos import Video, encode, resampled

TEMPLATES = Path(__file__).parents[1] / "assets" / "templates"
SIDE = 480  # pixels, the longer side of images and videos on a page
PREVIEW_SECONDS, PREVIEW_FPS, PREVIEW_CRF = 20.0, 15.0, 28  # of a video on a page
CASES = 10  # on a page


@dataclass(frozen=True)
class Headline:
    """What a page says first: how things stand ("good", "mixed" or "bad"), one figure, what it counts, and (term, words)."""

    state: str
    figure: str
    words: str
    points: list[tuple[str, str]] = field(default_factory=list)
    label: str = "Verdict"  # what a screen reader calls it


def share_state(part: int, whole: int) -> str:
    """How things stand where `part` of `whole` is right."""
    return "good" if part == whole and whole else "mixed" if part else "bad"


def render(template: str, **values: Any) -> str:
    """A template with its values. Texts are escaped; images, uint8 [H, W, 3], become data URLs by the filters jpeg and png."""
    return environment().get_template(template).render(values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write a rendered template to a file that is sealed as ours."""
    write_text(path, render(template, **values), sealed=True)


@cache
def environment() -> Environment:
    """The one environment of all pages. A value that a template names and nobody gave raises UndefinedError."""
    jinja = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    jinja.filters |= {"jpeg": jpeg, "png": png, "data_url": data_url, "percent": percent}
    return jinja


def percent(share: float) -> str:
    """A share in whole percent, never 0 or 100 unless it is exactly that."""
    whole = round(100 * share)
    return "<1%" if share > 0 and not whole else ">99%" if share < 1 and whole == 100 else f"{whole}%"


class Cases:
    """Rendered cases of a long report in the order of their ranks, in a temporary file of SQLite's: memory does not grow."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("")  # a file without a name, gone with the connection
        self._rows.execute("create table cases (a real, b real, c real, number integer primary key, facts text, body text)")
        self._rows.execute("create index rank on cases (a, b, c, number)")

    def add(self, rank: Sequence[float], facts: dict[str, Any], body: str) -> None:
        """Take in a case: up to three numbers that rank it, the least first, what lists say of it, and its HTML."""
        a, b, c = (*rank, 0.0, 0.0, 0.0)[:3]
        row = (a, b, c, json.dumps(facts), body.encode("utf-8", "backslashreplace").decode())
        self._rows.execute("insert into cases (a, b, c, facts, body) values (?, ?, ?, ?, ?)", row)

    def __len__(self) -> int:
        return self._rows.execute("select count(*) from cases").fetchone()[0]

    def pages(self, size: int = CASES) -> Iterator[list[dict[str, Any]]]:
        """Cases of each page, with "number" from 1 and "body"; of none one page without any."""
        chosen = "select facts, body from cases order by a, b, c, number limit ? offset ?"
        for start in range(0, max(1, len(self)), size):
            rows = self._rows.execute(chosen, (size, start)).fetchall()
            yield [{**json.loads(facts), "number": start + i, "body": body} for i, (facts, body) in enumerate(rows, 1)]


def write_pages(
    path: Path,
    template: str,
    cases: Cases,
    complete: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    size: int = CASES,
    **values: Any,
) -> None:
    """Write a report page after page, `size` cases each: `path`, then its later_page 2 and so on; pages of a longer report before
    go.

    `complete` adds to a case what is made only when it is written, such as its video.
    """
    count = max(1, -(-len(cases) // size))
    files = [path, *(later_page(path, number) for number in range(2, count + 1))]
    check_outputs(files, force=True)
    names = [file.name for file in files]
    for number, some in enumerate(cases.pages(size), 1):
        shown = [complete(case) for case in some]
        write_page(files[number - 1], template, cases=shown, pages=names, page=number, total=len(cases), **values)
    for left in later_pages(path):
        if left not in files and ours(left):
            left.unlink()


def later_page(path: Path, number: int) -> Path:
    """The file of a report's page: of page.html and 2 page.2.html."""
    return beside(path, f"{number}.html")


def later_pages(path: Path) -> list[Path]:
    """Files that stand where the later pages of a report go."""
    pattern = re.compile(re.escape(path.stem) + r"\.([2-9]|[1-9]\d+)\.html")
    return sorted(each for each in path.parent.glob("*.html") if pattern.fullmatch(each.name))


@dataclass(frozen=True)
class Preview:
    """A video as a page plays it: mp4, and its first frame, uint8 [H, W, 3], for before it is played and for paper."""

    content: bytes
    poster: np.ndarray


def preview(source: Path | bytes, around: float = 0.0) -> Preview | None:
    """A small H.264 copy of a video, or of PREVIEW_SECONDS of it around a moment (seconds); None where it cannot be read."""
    video = Video(source if isinstance(source, Path) else io.BytesIO(source), "a video")
    target = io.BytesIO()
    try:
        facts = video.facts
        seconds, fps = facts.count / facts.fps if facts.fps else 0.0, min(PREVIEW_FPS, facts.fps or PREVIEW_FPS)
        begins = max(0.0, min(around - PREVIEW_SECONDS / 2, seconds - PREVIEW_SECONDS))
        height, width = _fitted(facts.height, facts.width, SIDE)
        count = max(1, round(min(seconds, PREVIEW_SECONDS) * fps))
        frames = resampled(video.frames(begins, (height // 2 * 2, width // 2 * 2)), begins, count, fps)
        first = next(frames)
        encode(target, chain([first], frames), fps, PREVIEW_CRF)
    except (InputError, StopIteration):
        return None
    return Preview(target.getvalue(), first)


def _fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """Height and width with the longer side at most `side`, at least 2 pixels each."""
    scale = min(1.0, side / max(height, width))
    return max(2, round(height * scale)), max(2, round(width * scale))


def shown(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """An image, uint8 [H, W, 3], at a size for a page: at most `side` pixels long."""
    height, width = _fitted(image.shape[0], image.shape[1], side)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA) if height < image.shape[0] else image


def jpeg(image: np.ndarray) -> str:
    """An image as a data URL, small."""
    return _url(image, "JPEG", quality=85)


def png(image: np.ndarray) -> str:
    """An image as a data URL, exact."""
    return _url(image, "PNG")


def _url(image: np.ndarray, kind: str, **options: Any) -> str:
    target = io.BytesIO()
    Image.fromarray(image).save(target, kind, **options)
    return data_url(target.getvalue(), f"image/{kind.lower()}")


def data_url(content: bytes, kind: str) -> str:
    """The content of a file as a data URL, such as of kind video/mp4."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
