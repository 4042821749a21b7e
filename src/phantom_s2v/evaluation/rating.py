"""Blind side-by-side rating: a page that shows two videos of a case without saying whose they are.

Every rater has a secret link, so nobody votes as another. Which system is on the left is determined by case and rater, so that
both sides come up and a reload changes nothing.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from fastapi import FastAPI, Form, HTTPException, Request
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from PIL import Image

from phantom_s2v.evaluation.pairs import CHOICES, NOT_SHOWN, QUESTIONS, Pair, order
from phantom_s2v.evaluation.votes import bind, keep, open_votes
from phantom_s2v.files.hosts import is_own, own_names
from phantom_s2v.media.images import read_image
from phantom_s2v.media.pages import render

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
class _Ballots:
    """What a rater is shown and answers, each known by the secret in their link: the functions behind the addresses."""

    pairs: Sequence[Pair]
    file: Path

    def rater(self, secret: str) -> str:
        """Whose link it is."""
        with closing(open_votes(self.file)) as votes:
            row = votes.execute("select rater from raters where secret = ?", (secret,)).fetchone()
        if row is None:
            raise HTTPException(404, "this is not a rater's link")
        return row[0]

    def following(self, secret: str) -> str:
        """The page of the next pair."""
        rater, pairs = self.rater(secret), self.pairs
        with closing(open_votes(self.file)) as votes:
            done = set(votes.execute("select distinct case_id, first, second from votes where rater = ?", (rater,)))
        left = [i for i in order(pairs, rater) if (pairs[i].case, pairs[i].first, pairs[i].second) not in done]
        if not left:
            return render("rated.html", title="Thank you", total=len(pairs))
        return _ballot(pairs[left[0]], left[0], secret, len(pairs) - len(left), len(pairs))

    def video(self, secret: str, number: int, side: int) -> FileResponse:
        """The video on one side of a pair."""
        rater = self.rater(secret)
        if not (0 <= number < len(self.pairs) and side in (0, 1)):
            raise HTTPException(404)
        return FileResponse(self.pairs[number].videos[self.pairs[number].sides(rater)[side]], media_type="video/mp4")

    def vote(
        self,
        secret: str,
        number: int,
        better: Annotated[str, Form()],
        face: Annotated[str, Form()] = NOT_SHOWN,
        expression: Annotated[str, Form()] = NOT_SHOWN,
        clothes: Annotated[str, Form()] = NOT_SHOWN,
        logo: Annotated[str, Form()] = NOT_SHOWN,
    ) -> RedirectResponse:
        """Keep the answers on a pair; back to the next one."""
        rater = self.rater(secret)
        answers = {"better": better, "face": face, "expression": expression, "clothes": clothes, "logo": logo}
        if not 0 <= number < len(self.pairs) or any(choice not in CHOICES for choice in answers.values()):
            raise HTTPException(422, f"the answer must be one of {', '.join(CHOICES)}")
        with closing(open_votes(self.file)) as votes, votes:
            keep(votes, self.pairs[number], rater, answers)
        return RedirectResponse(f"/rate/{secret}", status_code=303)


def application(pairs: Sequence[Pair], file: Path, host: str = "127.0.0.1") -> FastAPI:
    """The web application, served at `host`. Names of systems and paths of files never reach the browser.

    Who rates is known by the secret in their link (`votes.links`), so nobody votes as another.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(partial(_guard, own_names(host)))
    bind(file, pairs)
    ballots = _Ballots(pairs, file)
    app.get("/rate/{secret}", response_class=HTMLResponse)(ballots.following)
    app.get("/rate/{secret}/video/{number}/{side}")(ballots.video)
    app.post("/rate/{secret}/vote/{number}")(ballots.vote)
    return app


async def _guard(names: frozenset[str], request: Request, following: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse requests for another host, votes out of another page and large bodies; let no header tell the systems apart."""
    host = request.headers.get("host", "")
    if not is_own(host, names):
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


def _image(path: Path) -> np.ndarray:
    """A reference as we read it, whatever a browser makes of its format, uint8 [H, W, 3]."""
    image = Image.fromarray(read_image(path)[0])
    image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return np.asarray(image)
