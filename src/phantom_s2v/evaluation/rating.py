"""Blind side-by-side rating: a page that shows two videos of a case without saying whose they are, and keeps votes in SQLite.

Which system stands at the left follows from case and rater, so that both sides come up and a reload changes nothing. A vote is
the system, not the side. Agreement between raters is Krippendorff's alpha for nominal data (Krippendorff 2011): 1 is full, 0 is
chance.
"""

import base64
import hashlib
import html
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import numpy as np
from fastapi import FastAPI, Form, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse

from phantom_s2v.errors import InputError
from phantom_s2v.evaluation.metrics import bootstrap
from phantom_s2v.evaluation.run import SUFFIXES
from phantom_s2v.pages import page

QUESTIONS = {
    "better": "Which video is better as a whole?",
    "face": "In which is the face more that of the reference?",
    "expression": "In which are expression and pose more natural?",
    "clothes": "In which are clothes, colours and shape more those of the reference?",
    "logo": "In which are logo and lettering more those of the reference?",
}
NOT_SHOWN = "not shown"
CHOICES = ("left", "right", "equal", NOT_SHOWN)
LAYOUT = (
    "video{width:46%;margin:1%}fieldset{margin:.5em 0;border:1px solid #ddd}label{margin-right:1.2em}img{height:9em;margin:2px}"
)
TABLE = """create table if not exists votes (rater text not null, case_id text not null, first text not null,
second text not null, question text not null, choice text not null, primary key (rater, case_id, first, second, question))"""


@dataclass(frozen=True)
class Pair:
    """Two videos of one case, by system name, with the prompt and the pictures that they were to show."""

    case: str
    first: str
    second: str
    videos: tuple[Path, Path]
    prompt: str = ""
    references: tuple[Path, ...] = ()

    def sides(self, rater: str) -> tuple[int, int]:
        """Which of the two stands at the left and which at the right for a rater."""
        bit = hashlib.sha256(f"{rater}\0{self.case}\0{self.first}\0{self.second}".encode()).digest()[0] & 1
        return (1, 0) if bit else (0, 1)


def find_pairs(folders: Sequence[Path], told: dict[str, tuple[str, tuple[Path, ...]]]) -> list[Pair]:
    """All pairs of systems on every case that both have; `told` has prompt and references by case. Raises InputError."""
    systems = {_system(folder): _videos(folder) for folder in folders}
    if len(systems) < 2:
        raise InputError(f"{len(systems)} system was given; rating side by side needs two or more folders of different names")
    pairs = []
    for (first, one), (second, other) in combinations(systems.items(), 2):
        shared = [case for case in one if case in other]
        pairs += [Pair(c, first, second, (one[c], other[c]), *told.get(c, ("", ()))) for c in shared]
    if not pairs:
        raise InputError(f"{' and '.join(systems)} have no video of the same name")
    return pairs


def _system(folder: Path) -> str:
    return folder.resolve().parent.name if folder.name == "videos" else folder.resolve().name


def _videos(folder: Path) -> dict[str, Path]:
    place = folder / "videos" if (folder / "videos").is_dir() else folder
    return {path.stem: path for path in sorted(place.glob("*")) if path.suffix.lower() in SUFFIXES}


def open_votes(file: Path) -> sqlite3.Connection:
    """The votes' file, made where there is none. Raises InputError where it is no SQLite file."""
    try:
        votes = sqlite3.connect(file, timeout=10)
        votes.execute(TABLE)
        votes.commit()
    except sqlite3.Error as error:
        raise InputError(
            f"{file} is no file of votes ({error}); it is an SQLite file that phantom evaluate rate makes"
        ) from error
    return votes


def application(pairs: Sequence[Pair], file: Path) -> FastAPI:
    """The web application. Names of systems and paths of files never reach the browser."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    open_votes(file).close()

    @app.get("/", response_class=HTMLResponse)
    def enter() -> str:
        said = "<p>Two videos of one request, and which one meets it better. Your answers are kept under the name you give.</p>"
        form = (
            "<form action=/next><label>Your name <input name=rater required maxlength=80></label> <button>Begin</button></form>"
        )
        return page("Side by side", [said, form])

    @app.get("/next", response_class=HTMLResponse)
    def following(rater: str) -> str:
        with closing(open_votes(file)) as votes:
            done = set(votes.execute("select distinct case_id, first, second from votes where rater = ?", (rater,)))
        left = [i for i in order(pairs, rater) if (pairs[i].case, pairs[i].first, pairs[i].second) not in done]
        if not left:
            return page("Thank you", [f"<p>All {len(pairs)} comparisons are done. You can close this page.</p>"])
        return _ballot(pairs[left[0]], left[0], rater, len(pairs) - len(left), len(pairs))

    @app.get("/video/{number}/{side}")
    def video(number: int, side: int, rater: str) -> FileResponse:
        if not (0 <= number < len(pairs) and side in (0, 1)):
            raise HTTPException(404)
        return FileResponse(pairs[number].videos[pairs[number].sides(rater)[side]], headers={"Cache-Control": "no-store"})

    @app.post("/vote/{number}")
    def vote(
        number: int,
        rater: Annotated[str, Form(min_length=1, max_length=80)],
        better: Annotated[str, Form()],
        face: Annotated[str, Form()] = NOT_SHOWN,
        expression: Annotated[str, Form()] = NOT_SHOWN,
        clothes: Annotated[str, Form()] = NOT_SHOWN,
        logo: Annotated[str, Form()] = NOT_SHOWN,
    ) -> RedirectResponse:
        said = {"better": better, "face": face, "expression": expression, "clothes": clothes, "logo": logo}
        if not 0 <= number < len(pairs) or any(choice not in CHOICES for choice in said.values()):
            raise HTTPException(422, f"an answer is one of {', '.join(CHOICES)}")
        with closing(open_votes(file)) as votes, votes:
            keep(votes, pairs[number], rater, said)
        return RedirectResponse(f"/next?{_query(rater)}", status_code=303)

    return app


def order(pairs: Sequence[Pair], rater: str) -> list[int]:
    """The pairs in a rater's own order, so that tiredness does not fall on the same cases."""
    seed = int.from_bytes(hashlib.sha256(rater.encode()).digest()[:8], "big")
    return np.random.default_rng(seed).permutation(len(pairs)).tolist()


def keep(votes: sqlite3.Connection, pair: Pair, rater: str, said: dict[str, str]) -> None:
    """Keep a rater's answers to the questions, as systems and not as sides; an answer given again replaces the former one."""
    names = (pair.first, pair.second)
    left, right = pair.sides(rater)
    systems = {"left": names[left], "right": names[right]}
    rows = [(rater, pair.case, *names, question, systems.get(choice, choice)) for question, choice in said.items()]
    votes.executemany("insert or replace into votes values (?, ?, ?, ?, ?, ?)", rows)


def _query(rater: str) -> str:
    return urlencode({"rater": rater})


def _ballot(pair: Pair, number: int, rater: str, done: int, total: int) -> str:
    name, query = html.escape(rater, quote=True), html.escape(_query(rater))
    pictures = "".join(
        f'<img alt="reference" src="data:;base64,{base64.b64encode(p.read_bytes()).decode()}">' for p in pair.references
    )
    videos = "".join(
        f'<video controls loop muted autoplay src="/video/{number}/{side}?{query}" aria-label="{word}"></video>'
        for side, word in ((0, "left"), (1, "right"))
    )
    fields = "".join(_question(question, words) for question, words in QUESTIONS.items())
    hidden = f'<input type=hidden name=rater value="{name}">'
    form = f"<form method=post action=/vote/{number}>{hidden}{fields}<button>Next</button></form>"
    title = f"Comparison {done + 1} of {total}"
    return page(title, [f"<p>{html.escape(pair.prompt)}</p>{pictures}<div>{videos}</div>", form], LAYOUT)


def _question(question: str, words: str) -> str:
    """Radio buttons; only whether a video is better as a whole has to be answered."""
    must = question == "better"
    marks = "".join(
        f'<label><input type=radio name={question} value="{c}"{" required" * must}{" checked" * (c == NOT_SHOWN)}> {c}</label>'
        for c in CHOICES
        if not (must and c == NOT_SHOWN)
    )
    return f"<fieldset><legend>{words}</legend>{marks}</fieldset>"


def results(file: Path) -> list[dict[str, Any]]:
    """For every pair of systems and question: wins, ties, the second's share (a tie is half) with its 95% interval over cases,
    and agreement. Raises InputError where there are no votes.
    """
    if not file.is_file():
        raise InputError(f"{file} is not a file; it is what phantom evaluate rate wrote")
    with closing(open_votes(file)) as votes:
        asked = "select first, second, question, rater, case_id, choice from votes where choice != ?"
        rows = list(votes.execute(asked, (NOT_SHOWN,)))
    if not rows:
        raise InputError(f"{file} holds no vote yet")
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
    kept = [unit for unit in units if len(unit) > 1]
    total = Counter(answer for unit in kept for answer in unit)
    count = sum(total.values())
    if count < 2 or len(total) < 2:
        return None
    differ = sum((len(unit) ** 2 - sum(n * n for n in Counter(unit).values())) / (len(unit) - 1) for unit in kept) / count
    chance = (count**2 - sum(n * n for n in total.values())) / (count * (count - 1))
    return round(1 - differ / chance, 4)
