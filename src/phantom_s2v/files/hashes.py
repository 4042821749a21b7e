"""Hashes of contents, remembered for large files in the user's cache folder."""

import errno
import hashlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

from platformdirs import user_cache_path

MADE_OF = (".safetensors", ".json", ".model", ".txt")  # what loaders of models read: weights, configurations, tokenizers
LARGE = 1 << 20  # bytes from which on a hash is remembered; below, hashing takes less time than looking it up
SETTLED = 2.0  # seconds after a change before a hash is remembered: a clock's tick may hide a second change
TABLE = "create table if not exists hashes (path blob primary key, stamp text not null, hash text not null)"


def cache_folder() -> Path:
    """Folder of this package under the user's cache: on Linux XDG_CACHE_HOME or ~/.cache."""
    return user_cache_path("phantom-s2v", appauthor=False)


def stamp_of(path: Path) -> str:
    """Size, times of change and inode of a file: while they stay the same, so does its content."""
    facts = path.stat()
    return f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"


def content_hash(path: Path) -> str:
    """SHA-256 of a file's content. That of a large file is remembered in the user's cache for as long as its stamp stays.

    Raises OSError where it is no file that can be read; a pipe, which would be waited for, is none.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise OSError(errno.EINVAL, "not a file", str(path))
    if facts.st_size < LARGE:
        return _read_hash(path)
    before = stamp_of(path)
    if (known := _look_up(path, before)) is not None:
        return known
    value = _read_hash(path)
    if stamp_of(path) == before:
        remember_hash(path, value)
    return value


def remember_hash(path: Path, value: str) -> None:
    """Remember the hash of a large file that was just read or written. Without a cache that can be written nothing is kept."""
    facts = path.stat()
    if facts.st_size < LARGE or time.time() - max(facts.st_mtime, facts.st_ctime) < SETTLED:
        return
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(cache_folder() / "hashes.sqlite")) as known, known:
            known.execute(TABLE)
            known.execute("insert or replace into hashes values (?, ?, ?)", (os.fsencode(path.resolve()), stamp_of(path), value))
    except (OSError, sqlite3.Error):
        pass  # it is only a cache


def _look_up(path: Path, now: str) -> str | None:
    """The hash remembered of a file with this stamp."""
    file = cache_folder() / "hashes.sqlite"
    try:
        if not file.is_file():
            return None
        with closing(sqlite3.connect(file)) as known:
            asked = "select hash from hashes where path = ? and stamp = ?"
            row = known.execute(asked, (os.fsencode(path.resolve()), now)).fetchone()
    except (OSError, sqlite3.Error):
        return None
    return row[0] if row else None


def _read_hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def combined_hash(parts: Iterable[tuple[str, str]]) -> str:
    """One SHA-256 over names and hashes, in the order of the names."""
    return hashlib.sha256("".join(f"{name}\0{value}\n" for name, value in sorted(parts)).encode()).hexdigest()


def folder_hash(folder: Path, suffixes: tuple[str, ...]) -> str:
    """One SHA-256 over the files below a folder whose names end in `suffixes`: their paths within it and their contents."""
    files = (path for path in folder.rglob("*") if path.suffix in suffixes and path.is_file())
    return combined_hash((path.relative_to(folder).as_posix(), content_hash(path)) for path in files)
