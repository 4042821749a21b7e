"""What comes from outside is data: JSON within bounds, and text that a terminal, a log or an error message can show.

Files, archives, names and answers of servers are written by others. Nothing here runs them, and every failure is a ValueError
or one of our own errors, with one sentence.
"""

import errno
import json
import os
import re
import stat
import tomllib
import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from phantom_s2v.errors import InputError

T = TypeVar("T")
LARGEST_NUMBER = 2**63 - 1
MAX_TEXT_BYTES = 1 << 20  # bytes of a small text, such as a caption
# Fields of dataclasses that name files: any name there is.
FILE_FIELDS = ("path", "first_frame", "background", "segmenter", "reference", "img_paths")
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
    return _UNSEEN.sub(lambda match: json.dumps(match[0])[1:-1], str(text))


def without_credentials(text: str) -> str:
    """A text without the user names, passwords and queries of the addresses in it.

    >>> without_credentials("no answer of https://me:secret@example.org/v1?key=secret#model")
    'no answer of https://***@example.org/v1?***#model'
    """
    return _QUERY.sub(r"\1?***", _CREDENTIALS.sub(r"\1***@", text))


def parse_json(text: str | bytes) -> Any:
    """JSON that others wrote. Raises ValueError for what is none, for NaN and Infinity, and for what is nested too deep."""
    try:
        return json.loads(text, parse_constant=not_json)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def parse_toml(text: str) -> dict[str, Any]:
    """TOML that others wrote. Raises ValueError for what is none, and for what is nested too deep."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def not_json(name: str) -> Any:
    """Raise ValueError for NaN and Infinity."""
    raise ValueError(f"{name} is not a JSON number")


def exists(path: Path) -> bool:
    """Whether something has this name; a name that cannot be one, such as a whole prompt, has nothing."""
    try:
        return path.exists()
    except OSError:
        return False


def is_file(path: Path) -> bool:
    """Whether a file, or a link to one, has this name; not a pipe, and not what cannot be a name."""
    try:
        return path.is_file()
    except OSError:
        return False


def read_small(path: Path) -> bytes:
    """The content of a file that a user named, at most a megabyte. Raises ValueError for what is larger or no file."""
    if not is_file(path):
        raise ValueError(f"{path.name} is not a file")
    with path.open("rb") as file:
        content = file.read(MAX_TEXT_BYTES + 1)
    if len(content) > MAX_TEXT_BYTES:
        raise ValueError(f"{path.name} must have at most {MAX_TEXT_BYTES:,} bytes")
    return content


def check_regular(path: Path, max_bytes: int) -> None:
    """Raise InputError for a link, a pipe or anything else of a folder that others filled which is no regular file, and for what
    has more than `max_bytes` bytes.
    """
    try:
        facts = path.lstat()
    except (OSError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read ({getattr(error, 'strerror', error)})") from error
    if stat.S_ISLNK(facts.st_mode):
        raise InputError(f"{path.name} is a symbolic link (not followed)")
    if not stat.S_ISREG(facts.st_mode):
        raise InputError(f"{path.name} is not a regular file")
    if facts.st_size > max_bytes:
        raise InputError(f"{path.name} must have at most {max_bytes:,} bytes (got {facts.st_size:,})")


def read_regular(path: Path, max_bytes: int) -> bytes:
    """The content of a file of a folder that others filled, at most `max_bytes` bytes.

    Raises InputError for a link, which may point anywhere, for a pipe, which may never end, and for what is larger.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        link = getattr(error, "errno", None) == errno.ELOOP
        reason = "is a link, which is not followed" if link else f"cannot be read ({getattr(error, 'strerror', error)})"
        raise InputError(f"{path.name} {reason}") from error
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise InputError(f"{path.name} is not a regular file")
        if facts.st_size > max_bytes:
            raise InputError(f"{path.name} must have at most {max_bytes:,} bytes (got {facts.st_size:,})")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return file.read(max_bytes)
    finally:
        os.close(descriptor)


def typed(kind: type[T], values: Any, what: str = "it", **own: Any) -> T:
    """A dataclass of values that others wrote, each of the type of its field; `own` are our own.

    Lists become tuples, whole numbers floats. Raises ValueError that names the field, what was got and what is allowed.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} must be an object (got {_brief(values)})")
    hints = get_type_hints(kind)
    legal = [name for name in hints if name not in own]
    if extra := sorted(set(map(str, values)) - set(legal)):
        near = get_close_matches(extra[0], legal, 1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{what} has an unknown key {_brief(extra[0])}{meant}; keys are {', '.join(legal)}")
    checked = {name: _of_type(value, hints[name], name) for name, value in values.items()}
    try:
        return kind(**checked, **own)
    except TypeError as error:
        needed = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING]  # type: ignore[arg-type]
        lacking = [name for name in needed if name not in checked and name not in own]
        raise ValueError(f"{what} is missing {', '.join(lacking)}") from error


def _of_type(value: Any, hint: Any, name: str) -> Any:
    """A value as its type hint has it."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _of_type(value, next(each for each in inner if each is not type(None)), name)
    if is_dataclass(hint) and isinstance(hint, type):
        return typed(hint, value, name)
    if origin is tuple and isinstance(value, list | tuple):
        each = inner[:1] * len(value) if inner[1:] == (...,) else inner
        if len(each) == len(value):
            return tuple(_of_type(v, h, name) for v, h in zip(value, each, strict=True))
    if origin is dict and isinstance(value, dict):
        return {str(_of_type(k, inner[0], name)): _of_type(v, inner[1], name) for k, v in value.items()}
    if hint in (int, float) and (number := _number(value, hint)) is not None:
        return number
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str) and (is_text(value) or (name in FILE_FIELDS and is_file_name(value))):
        return value
    raise ValueError(f"{name} must be {_words(hint)} (got {_brief(value)})")


def _number(value: Any, kind: type) -> float | int | None:
    """A finite number of moderate size, a whole one where `kind` is int, None for anything else; NumPy's are numbers as well."""
    if isinstance(value, bool) or not isinstance(value, Integral if kind is int else Real):
        return None
    number: Any = value
    return kind(number) if abs(number) <= LARGEST_NUMBER else None


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8: JSON may hold half of a surrogate pair."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_file_name(value: str) -> bool:
    """Whether a string can name a file: a name that is not UTF-8 reads as text with bytes U+DC80 to U+DCFF (os.fsdecode)."""
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def _words(hint: Any) -> str:
    known = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    inner = [each for each in get_args(hint) if each is not ...]
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join("null" if each is type(None) else _words(each) for each in inner)
    if get_origin(hint) is tuple:
        return f"a list of {_words(inner[0])}" if len(inner) == 1 else f"a list of {len(inner)}"
    return known.get(hint, "an object")


def _brief(value: Any) -> str:
    """A value in a sentence; deep and long ones are not written out."""
    if isinstance(value, dict | list | tuple):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) <= LARGEST_NUMBER else "a very large number"
    return text if len(text) <= 60 else f"{text[:57]}..."
