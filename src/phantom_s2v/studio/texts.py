"""Texts and numbers that people type. Texts are kept as they are, but for what no text may hold.

Digits may be full-width, as Japanese input methods write them, and thousands may be grouped by commas.
"""

import re
import unicodedata

from phantom_s2v.studio.problems import Problem

LINE, TEXT = 200, 10_000  # characters
GROUPED = re.compile(r"[0-9]{1,3}(,[0-9]{3})+(\.[0-9]*)?")


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


def plain(value: str) -> str:
    """What was typed of a number or a day, in ASCII where that is meant, thousands no longer grouped."""
    value = unicodedata.normalize("NFKC", value).strip()
    return value.replace(",", "") if GROUPED.fullmatch(value) else value


def whole(value: str, field: str, low: int, high: int) -> int:
    """A whole number between two others."""
    value = plain(value)
    if not value.isascii() or not value.isdigit() or len(value) > 20 or not low <= int(value) <= high:
        raise Problem("Please enter a whole number from %(low)d to %(high)d.", field, low=low, high=high)
    return int(value)


def decimal(value: str, field: str, low: float, high: float) -> float:
    """A number between two others, with a point or a comma."""
    try:
        number = float(plain(value).replace(",", "."))
    except ValueError:
        number = float("nan")
    if not low <= number <= high:
        raise Problem("Please enter a number from %(low)s to %(high)s.", field, low=f"{low:g}", high=f"{high:g}")
    return number
