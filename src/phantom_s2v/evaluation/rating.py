"""Blind side-by-side rating: a page that shows two videos of a case without saying whose they are, and keeps votes in SQLite.

Every rater has a secret link, so nobody votes as another. Which system is on the left is determined by case and rater, so that
both sides come up and a reload changes nothing. A vote is the system, not the side. Agreement between raters is Krippendorff's
alpha for nominal data (Krippendorff 2011): 1 is full, 0 is chance.
"""

import contextlib
import hashlib
import ipaddress
import os
import re
import secrets
import socket
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

import krippendorff
import numpy as np
from fastapi import FastAPI, Form, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from PIL import Image

from phantom_s2v.data.clips import store_video
from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.metrics.measures import bootstrap
from phantom_s2v.evaluation.run import SUFFIXES
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.files.reuse import origin_hash
from phantom_s2v.media.images import read_image
from phantom_s2v.media.pages import render
from phantom_s2v.media.videos import Video

QUESTIONS = {
    "better": "Which video is better as a whole?",
    "face": "In which is the face more that of the reference?",
    "expression": "In which are expression and pose more natural?",
    "clothes": "In which are clothes, colors and shape more those of the reference?",
    "logo": "In which are logo and lettering more those of the reference?",
}
NOT_SHOWN = "not shown"
CHOICES = ("left", "right", "equal", NOT_SHOWN)
TABLES = (
    """create table if not exists votes (rater text not null, case_id text not null, first text not null,
second text not null, question text not null, choice text not null, primary key (rater, case_id, first, second, question))""",
    "create table if not exists raters (rater text primary key, secret text not null unique)",
    """create table if not exists shown (case_id text not null, first text not null, second text not null, content text not null,
primary key (case_id, first, second))""",
)
LONGEST_NAME = 80  # characters of a rater's name
SECRET = 24  # random bytes of a rater's link
MAX_FORM_BYTES = 16_384  # bytes of a vote
SHOWN_SIDE = 512  # pixels of a reference on the page, at most
TELLING = ("last-modified", "etag")  # made of a file's age and size: whose videos were made on one day belong together
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; img-src data:; media-src 'self'; style-src 'unsafe-inline'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",  # no-referrer would take the Origin of votes as well
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Pair:
    """Two videos of one case, by system name, with the prompt and the images that they were to show."""

    case: str
    first: str
    second: str
    videos: tuple[Path, Path]
    prompt: str = ""
    references: tuple[Path, ...] = ()

    def sides(self, rater: str) -> tuple[int, int]:
        """Which of the two is on the left and which on the right for a rater."""
        bit = hashlib.sha256(f"{rater}\0{self.case}\0{self.first}\0{self.second}".encode()).digest()[0] & 1
        return (1, 0) if bit else (0, 1)

    @property
    def content(self) -> str:
        """Hash of what a rater sees: both videos, the references and the prompt."""
        seen = [[content_hash(path) for path in some] for some in (self.videos, self.references)]
        return origin_hash({"seen": seen, "prompt": self.prompt})


def bind(file: Path, pairs: Sequence[Pair]) -> None:
    """Note what is shown of every pair. Raises InputError where there are votes on other videos, references or prompts under the
    same names: they would be counted for these.
    """
    with closing(open_votes(file)) as votes, votes:
        for pair in pairs:
            key, now = (pair.case, pair.first, pair.second), pair.content
            row = votes.execute("select content from shown where case_id = ? and first = ? and second = ?", key).fetchone()
            voted = votes.execute("select 1 from votes where case_id = ? and first = ? and second = ? limit 1", key).fetchone()
            if voted and (row is None or row[0] != now):
                before = row[0][:12] if row else "not recorded"
                raise InputError(
                    f"{file} contains votes on other videos of case {pair.case}, {pair.first} and {pair.second} "
                    f"(hash {before}, now "
                    f"{now[:12]}); choose another file with --votes"
                )
            votes.execute("insert or replace into shown values (?, ?, ?, ?)", (*key, now))


def find_pairs(folders: Sequence[Path], descriptions: dict[str, tuple[str, tuple[Path, ...]]]) -> list[Pair]:
    """All pairs of systems on every case that both have; `descriptions` has prompt and references by case. Raises InputError."""
    systems: dict[str, dict[str, Path]] = {}
    for folder in folders:
        name = _system(folder)
        if name in systems or name in CHOICES:
            why = "a second system of this name" if name in systems else "the name of an answer"
            raise InputError(f"{folder} is {why}, {name}, so votes would be ambiguous; rename the folder")
        systems[name] = _videos(folder)
    if len(systems) < 2:
        raise InputError(f"at least two folders with different names are needed (got {len(systems)})")
    pairs = []
    for (first, one), (second, other) in combinations(systems.items(), 2):
        shared = [case for case in one if case in other]
        pairs += [Pair(c, first, second, (one[c], other[c]), *descriptions.get(c, ("", ()))) for c in shared]
    if not pairs:
        raise InputError(f"{' and '.join(systems)} have no videos with the same name")
    return pairs


def as_shown(pairs: Sequence[Pair], scratch: Path, notify: Callable[[str], None]) -> list[Pair]:
    """The pairs with videos that every browser shows as we read them: others are converted into `scratch`, which is `notify`.

    Pairs with a video that cannot be read are named and left out. Raises InputError where none is left.
    """
    ready: dict[Path, Path | None] = {}
    for path in dict.fromkeys(path for pair in pairs for path in pair.videos):
        try:
            ready[path] = path if Video(path).facts.playable else scratch / f"{len(ready)}.mp4"
            if ready[path] != path:
                (scratch / f"{len(ready) - 1}.mp4").write_bytes(store_video(path, notify).video)
        except InputError as error:
            ready[path] = None
            notify(f"skipped: {error}")
    kept = [
        replace(pair, videos=(first, second))
        for pair in pairs
        if (first := ready[pair.videos[0]]) and (second := ready[pair.videos[1]])
    ]
    if not kept:
        raise InputError("no pair has two readable videos")
    return kept


def _image(path: Path) -> np.ndarray:
    """A reference as we read it, whatever a browser makes of its format, uint8 [H, W, 3]."""
    image = Image.fromarray(read_image(path)[0])
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return np.asarray(image)


def _system(folder: Path) -> str:
    return folder.resolve().parent.name if folder.name == "videos" else folder.resolve().name


def _videos(folder: Path) -> dict[str, Path]:
    place, paths = folder / "videos" if (folder / "videos").is_dir() else folder, dict[str, Path]()
    for path in sorted(place.glob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file() and paths.setdefault(path.stem, path) != path:
            raise InputError(
                f"{place} contains two videos of case {path.stem}: {paths[path.stem].name} and {path.name}; remove one"
            )
    return paths


def open_votes(file: Path) -> sqlite3.Connection:
    """The votes' file, made where there is none, for its owner alone: it holds names. Raises InputError if it is no such file."""
    if file.is_symlink():
        raise InputError(f"{file} is a symbolic link; give the votes file itself")
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        votes = sqlite3.connect(file, timeout=10)
        there = {name for (name,) in votes.execute("select name from sqlite_master where type = 'table'")}
        if there and "votes" not in there:
            raise sqlite3.DatabaseError(f"its tables are {', '.join(sorted(there))}")
        for table in TABLES:
            votes.execute(table)
        votes.commit()
        file.chmod(0o600)
    except (sqlite3.Error, OSError) as error:
        raise InputError(f"{file} is not a votes file ({error}); it must be an SQLite file of phantom evaluate rate") from error
    return votes


def links(file: Path, raters: Sequence[str]) -> dict[str, str]:
    """Rater -> the secret in their link, of those named and of all that the file knows already. Raises InputError for a name."""
    for rater in raters:
        if not rater.strip() or len(rater) > LONGEST_NAME:
            raise InputError(f"a rater's name must have 1 to {LONGEST_NAME} characters and not be blank (got {len(rater)})")
    with closing(open_votes(file)) as votes, votes:
        rows = [(rater, secrets.token_urlsafe(SECRET)) for rater in raters]
        votes.executemany("insert or ignore into raters values (?, ?)", rows)
        return dict(votes.execute("select rater, secret from raters order by rowid"))


def application(pairs: Sequence[Pair], file: Path, host: str = "127.0.0.1") -> FastAPI:
    """The web application, served at `host`. Names of systems and paths of files never reach the browser.

    Who rates is known by the secret in their link (`links`), so nobody votes as another.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(partial(_guard, own_names(host)))
    bind(file, pairs)

    def known(secret: str) -> str:
        with closing(open_votes(file)) as votes:
            row = votes.execute("select rater from raters where secret = ?", (secret,)).fetchone()
        if row is None:
            raise HTTPException(404, "this is not a rater's link")
        return row[0]

    @app.get("/rate/{secret}", response_class=HTMLResponse)
    def following(secret: str) -> str:
        rater = known(secret)
        with closing(open_votes(file)) as votes:
            done = set(votes.execute("select distinct case_id, first, second from votes where rater = ?", (rater,)))
        left = [i for i in order(pairs, rater) if (pairs[i].case, pairs[i].first, pairs[i].second) not in done]
        if not left:
            return render("rated.html", title="Thank you", total=len(pairs))
        return _ballot(pairs[left[0]], left[0], secret, len(pairs) - len(left), len(pairs))

    @app.get("/rate/{secret}/video/{number}/{side}")
    def video(secret: str, number: int, side: int) -> FileResponse:
        rater = known(secret)
        if not (0 <= number < len(pairs) and side in (0, 1)):
            raise HTTPException(404)
        return FileResponse(pairs[number].videos[pairs[number].sides(rater)[side]], media_type="video/mp4")

    @app.post("/rate/{secret}/vote/{number}")
    def vote(
        secret: str,
        number: int,
        better: Annotated[str, Form()],
        face: Annotated[str, Form()] = NOT_SHOWN,
        expression: Annotated[str, Form()] = NOT_SHOWN,
        clothes: Annotated[str, Form()] = NOT_SHOWN,
        logo: Annotated[str, Form()] = NOT_SHOWN,
    ) -> RedirectResponse:
        rater = known(secret)
        answers = {"better": better, "face": face, "expression": expression, "clothes": clothes, "logo": logo}
        if not 0 <= number < len(pairs) or any(choice not in CHOICES for choice in answers.values()):
            raise HTTPException(422, f"the answer must be one of {', '.join(CHOICES)}")
        with closing(open_votes(file)) as votes, votes:
            keep(votes, pairs[number], rater, answers)
        return RedirectResponse(f"/rate/{secret}", status_code=303)

    return app


def own_names(host: str) -> frozenset[str]:
    """Names under which the page may be asked for, beside addresses in numbers: a page of another site that points its own
    name at this machine is thereby refused.
    """
    return frozenset({"localhost", host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()})


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address to serve at."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


async def _guard(names: frozenset[str], request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse requests for another host, votes out of another page and large bodies; let no header tell the systems apart."""
    host = request.headers.get("host", "")
    if not _is_own(host, names):
        return Response("this page is served under another name", 421)
    if request.method not in ("GET", "HEAD"):
        origin = request.headers.get("origin", "")
        if origin not in (f"http://{host}", f"https://{host}"):
            return Response("a vote comes from the page itself", 403)
        length = request.headers.get("content-length", "")
        if not (length.isascii() and length.isdigit()) or int(length) > MAX_FORM_BYTES:
            return Response("a vote is short", 413)
    response = await following(request)
    for name in TELLING:
        if name in response.headers:
            del response.headers[name]
    response.headers.update(HEADERS)
    return response


def _is_own(host: str, names: frozenset[str]) -> bool:
    """Whether a Host header is an address in numbers or one of our names, with or without a port."""
    name = host.rsplit(":", 1)[0] if re.search(r":\d*$", host) and not host.endswith("]") else host
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower().rstrip(".") in names
    return True


def order(pairs: Sequence[Pair], rater: str) -> list[int]:
    """The pairs in a rater's own order, so that tiredness does not fall on the same cases."""
    seed = int.from_bytes(hashlib.sha256(rater.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).permutation(len(pairs)).tolist()


def keep(votes: sqlite3.Connection, pair: Pair, rater: str, answers: dict[str, str]) -> None:
    """Keep a rater's answers to the questions, as systems and not as sides; an answer given again replaces the former one."""
    names = (pair.first, pair.second)
    left, right = pair.sides(rater)
    systems = {"left": names[left], "right": names[right]}
    rows = [(rater, pair.case, *names, question, systems.get(choice, choice)) for question, choice in answers.items()]
    votes.executemany("insert or replace into votes values (?, ?, ?, ?, ?, ?)", rows)


def _ballot(pair: Pair, number: int, secret: str, done: int, total: int) -> str:
    return render(
        "ballot.html",
        title=f"Comparison {done + 1} of {total}",
        prompt=pair.prompt,
        references=[_image(path) for path in pair.references],
        questions=QUESTIONS,
        choices=CHOICES,
        not_shown=NOT_SHOWN,
        secret=secret,
        number=number,
    )


def results(file: Path) -> list[dict[str, Any]]:
    """For every pair of systems and question: wins, ties, the second's share (a tie is half) with its 95% interval over cases,
    and agreement. Raises InputError where there are no votes.
    """
    if not file.is_file():
        raise InputError(f"{file} is not a file; it must be a votes file of phantom evaluate rate")
    columns = ", ".join(f"cast({name} as text)" for name in ("first", "second", "question", "rater", "case_id", "choice"))
    asked = f"select {columns} from votes where choice != ?"
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True, timeout=10)) as votes:
            rows = list(votes.execute(asked, (NOT_SHOWN,)))
    except sqlite3.Error as error:
        raise InputError(f"{file} is not a valid votes file of phantom evaluate rate ({error})") from error
    if not rows:
        raise InputError(f"{file} contains no votes yet")
    kinds = sorted({row[:3] for row in rows})
    return [_counted(kind, [row[3:] for row in rows if row[:3] == kind]) for kind in kinds]


def _counted(kind: tuple[str, str, str], answers: list[tuple[str, str, str]]) -> dict[str, Any]:
    """Votes (rater, case, choice) on one question about two systems."""
    first, second, question = kind
    by_case: dict[str, list[str]] = {}
    for _, case, choice in answers:
        by_case.setdefault(case, []).append(choice)
    counts = Counter(choice for _, _, choice in answers)
    mean, low, high = bootstrap([_share(choices, second) for choices in by_case.values()])
    return {
        "first": first,
        "second": second,
        "question": question,
        "cases": len(by_case),
        "raters": len({rater for rater, _, _ in answers}),
        "first_wins": counts[first],
        "second_wins": counts[second],
        "equal": counts["equal"],
        "second_share": round(mean, 4),
        "interval": [round(low, 4), round(high, 4)],
        "agreement": agreement(by_case.values()),
    }


def _share(choices: list[str], system: str) -> float:
    """Share of a case's votes for a system, a tie counting half to each."""
    return float(np.mean([1.0 if c == system else 0.5 if c == "equal" else 0.0 for c in choices]))


def agreement(units: Iterable[list[str]]) -> float | None:
    """Krippendorff's alpha of nominal answers, a list of them a case; None where no case has two answers or all are the same."""
    kept = [Counter(unit) for unit in units if len(unit) > 1]
    answers = sorted({answer for unit in kept for answer in unit})
    if len(answers) < 2:
        return None
    counts = np.array([[unit[answer] for answer in answers] for unit in kept])
    return round(float(krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")), 4)
