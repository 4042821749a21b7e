"""Texts that people type: kept as they are, but for what no text may hold."""

import unicodedata

from phantom_s2v.studio.problems import Problem

LINE, TEXT = 200, 10_000  # characters


def line(value: str, field: str, most: int = LINE) -> str:
    """A text on one line, such as a name. Raises Problem for an empty or too long one and for control characters."""
    value = unicodedata.normalize("NFC", value).strip()
    _check_length(value, field, most, needed=True)
    _check(value, field, "")
    return value


def text(value: str, field: str, most: int = TEXT, needed: bool = True) -> str:
    """A text that may have several lines and, unless `needed`, be empty. Raises Problem as `line` does."""
    value = unicodedata.normalize("NFC", value).replace("\r\n", "\n").strip()
    _check_length(value, field, most, needed)
    _check(value, field, "\n\t")
    return value


def _check_length(value: str, field: str, most: int, needed: bool) -> None:
    if needed and not value:
        raise Problem("Please fill this in.", field)
    if len(value) > most:
        raise Problem("Please enter at most %(most)d characters, not %(count)d.", field, most=most, count=len(value))


def _check(value: str, field: str, allowed: str) -> None:
    """Raise Problem for control characters and halves of surrogate pairs, which no file and no database can keep."""
    if any(unicodedata.category(c) in ("Cc", "Cs") and c not in allowed for c in value):
        raise Problem("The text has characters that cannot be shown.", field)
