"""What the studio refuses: one sentence in the person's language, and the field it belongs to.

The sentence is given in English with places for values, `Problem("at most %(most)d people", most=3)`; pages translate it by that
text.
Texts that are shown and stand apart from a call are marked by `N_`, so that the translations' test finds them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import BoundedSemaphore
from typing import Any, ClassVar

from phantom_s2v.errors import InputError


def N_(text: str) -> str:  # noqa: N802 - gettext's name for it
    """The text itself, marked for translation."""
    return text


class Problem(InputError):  # noqa: N818 - what a person reads, not an error of ours
    """Something that a person asked for and cannot have. `field` is the name of the form's field, "" for the whole."""

    status: ClassVar[int] = 422

    def __init__(self, message: str, field: str = "", **values: Any) -> None:
        self.message, self.field, self.values = message, field, values
        super().__init__(message % values if values else message)


class Problems(Problem):
    """Several problems of one form, each with its field."""

    def __init__(self, each: list[Problem]) -> None:
        self.each = each
        super().__init__(each[0].message, each[0].field, **each[0].values)


class NotSignedIn(Problem):
    """Nobody is signed in, or no longer."""

    status = 401


class Forbidden(Problem):
    """The person's role does not allow it."""

    status = 403


class NotFound(Problem):
    """It does not exist, or the person may not know of it."""

    status = 404

    def __init__(self, message: str = N_("This page does not exist, or you have no access to it."), **values: Any) -> None:
        super().__init__(message, **values)


class Conflict(Problem):
    """It cannot be done in the present state, or someone else was faster."""

    status = 409


class TooLarge(Problem):
    """More bytes than are taken."""

    status = 413


class TooMany(Problem):
    """Asked too often; `seconds` says when to come again."""

    status = 429


class Unavailable(Problem):
    """The studio cannot do it now, whatever is asked; `seconds` says when to come again."""

    status = 503


BUSY = N_("The studio is busy. Please try again in a minute.")
NO_ROOM = N_(
    "The studio can save nothing now: its disk is full, or cannot be written. Nothing was changed. Please tell your "
    "administrator."
)
CHANGED = N_(
    "Somebody else has changed this since you opened the page. Nothing of what you typed was saved yet: look at what is in "
    "force now, then save again to replace it."
)


@contextmanager
def in_turn(turns: BoundedSemaphore, patience: float = 20.0) -> Iterator[None]:
    """Around what is dear: a few at once, others wait for some seconds. Raises TooMany for who would wait longer."""
    if not turns.acquire(timeout=patience):
        raise TooMany(BUSY, seconds=60)
    try:
        yield
    finally:
        turns.release()


@contextmanager
def collecting(found: list[Problem]) -> Iterator[None]:
    """Problems of the block are kept, so that a form shows all of them at once."""
    try:
        yield
    except Problem as problem:
        found += getattr(problem, "each", [problem])


def raise_all(found: list[Problem]) -> None:
    """Raise the problems, if there are any."""
    if len(found) == 1:
        raise found[0]
    if found:
        raise Problems(found)
