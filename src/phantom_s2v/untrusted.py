"""What comes from outside is data: JSON within bounds, and text that a terminal, a log or an error message can show.

Files, archives, names and answers of servers are written by others. Nothing here runs them, and every failure is a ValueError
or one of our own errors, with one sentence.
"""

import json
import re
from typing import Any

# Control characters (ESC begins a terminal's commands), lone surrogates (names that are not UTF-8), marks that turn the direction
# of writing, and the separators that some readers take for the end of a line.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
_CREDENTIALS = re.compile(r"(\w+://)[^\s/]*@")
_QUERY = re.compile(r"(\w+://[^\s?#]*)\?[^\s#]*")


def printable(text: object) -> str:
    """Text on one line that changes nothing on a terminal: what is no plain character is written as \\u001b.

    Within JSON it stays the same JSON, since its strings are escaped in the same way.

    >>> printable("a\\x1b[2J\\n")
    'a\\\\u001b[2J\\\\n'
    """
    return _UNSEEN.sub(lambda found: json.dumps(found[0])[1:-1], str(text))


def without_credentials(text: str) -> str:
    """A text without the user names, passwords and queries of the addresses in it.

    >>> without_credentials("no answer of https://me:secret@example.org/v1?key=secret#model")
    'no answer of https://***@example.org/v1?***#model'
    """
    return _QUERY.sub(r"\1?***", _CREDENTIALS.sub(r"\1***@", text))


def parse_json(text: str | bytes) -> Any:
    """JSON that others wrote. Raises ValueError for what is none, for NaN and Infinity, and for what is nested too deep."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")
