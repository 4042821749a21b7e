"""Files under their SHA-256 below one folder. No name that a person gave is ever part of a path.

A file is staged (written, hashed, synced) outside of any transaction and kept inside one, together with its row. Forgetting goes
the other way round: the row first, the file after the commit. So a crash leaves at most a file without a row, for `sweep`.
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from sqlalchemy import delete, exists, select
from sqlalchemy.orm import Session

from phantom_s2v.files.io import naming
from phantom_s2v.studio.database import writing
from phantom_s2v.studio.problems import TooLarge
from phantom_s2v.studio.schema import Base, Blob

if TYPE_CHECKING:
    from phantom_s2v.studio.context import Studio

CHUNK = 1 << 20
NAME = re.compile(r"[0-9a-f]{64}")
OLD = 24 * 3600  # seconds after which a file without a row is no upload in progress


@dataclass(frozen=True)
class Staged:
    """A file that was written and is not yet kept."""

    path: Path
    sha256: str
    size: int


class Storage:
    """The files of a studio."""

    def __init__(self, folder: Path, studio: "Studio") -> None:
        self.folder, self._studio = folder, studio
        (folder / "incoming").mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, sha256: str) -> Path:
        """Where a file lies. Raises ValueError for what is no hash."""
        if not NAME.fullmatch(sha256):
            raise ValueError("not a SHA-256 in hex")
        return self.folder / sha256[:2] / sha256

    def read(self, sha256: str) -> bytes:
        """The content of a file."""
        return self.path(sha256).read_bytes()

    @contextmanager
    def staged(self, content: bytes | BinaryIO, most: int | None = None) -> Iterator[Staged]:
        """A file being taken in, of at most `most` bytes; what is not kept when the block ends is removed.

        Raises TooLarge, and OutputError where the disk is full.
        """
        path = self.folder / "incoming" / secrets.token_hex(16)
        try:
            with naming(path), path.open("xb") as file:
                os.fchmod(file.fileno(), 0o600)
                digest, size = hashlib.sha256(), 0
                for chunk in _chunks(content):
                    size += len(chunk)
                    if most is not None and size > most:
                        raise TooLarge("The file is too large: at most %(megabytes)d MB are allowed.", megabytes=most >> 20)
                    digest.update(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            yield Staged(path, digest.hexdigest(), size)
        finally:
            path.unlink(missing_ok=True)

    def park(self, content: BinaryIO, most: int) -> str:
        """Take in a file for a form that has to be filled in again; what `parked` takes. It waits for a day. Raises TooLarge."""
        with self.staged(content, most) as staged:
            name = secrets.token_hex(32)
            os.replace(staged.path, self.folder / "incoming" / name)
        return name

    @contextmanager
    def parked(self, name: str) -> Iterator[Staged | None]:
        """A parked file, which is gone when the block ends without a problem; None where there is none of this name."""
        path = self.folder / "incoming" / name
        if not NAME.fullmatch(name) or not path.is_file():
            yield None
            return
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        yield Staged(path, digest, path.stat().st_size)
        path.unlink(missing_ok=True)

    def keep(self, session: Session, staged: Staged, media_type: str) -> str:
        """Put a staged file in its place, with its row; its SHA-256. `session` is one of `database.writing`."""
        target = self.path(staged.sha256)
        with naming(target, staged.path):
            target.parent.mkdir(exist_ok=True, mode=0o700)
            os.replace(staged.path, target)
            _sync_folder(target.parent)
        if session.get(Blob, staged.sha256) is None:
            session.add(Blob(sha256=staged.sha256, size=staged.size, media_type=media_type))
            session.flush()
        return staged.sha256

    def put(self, session: Session, content: bytes, media_type: str) -> str:
        """Stage and keep a small content."""
        with self.staged(content) as staged:
            return self.keep(session, staged, media_type)

    def forget(self, session: Session, hashes: Iterable[str]) -> None:
        """Remove files that nothing refers to any more: their rows now, themselves after the commit."""
        session.flush()
        for sha256 in hashes:
            if not _is_used(session, sha256):
                session.execute(delete(Blob).where(Blob.sha256 == sha256))
                session.info.setdefault("forgotten", []).append(sha256)

    def purge(self, hashes: Iterable[str]) -> None:
        """Remove files without a row. It takes the lock for writing, since the same content may just have been kept again."""
        hashes = list(hashes)
        if not hashes:
            return
        with writing(self._studio.engine, self._studio) as session:
            for sha256 in hashes:
                if session.get(Blob, sha256) is None:
                    self.path(sha256).unlink(missing_ok=True)

    def sweep(self, older: float = OLD) -> int:
        """Remove what crashes left: files without a row and half-written ones, older than so many seconds; how many."""
        before, left = time.time() - older, 0
        for path in (self.folder / "incoming").iterdir():
            if path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
                left += 1
        for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
            names = [path.name for path in folder.iterdir() if path.stat().st_mtime < before and NAME.fullmatch(path.name)]
            with self._studio.reading() as session:
                kept = set(session.scalars(select(Blob.sha256).where(Blob.sha256.startswith(folder.name))))
            lost = [name for name in names if name not in kept]
            self.purge(lost)
            left += len(lost)
        return left


def _chunks(content: bytes | BinaryIO) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content
        return
    while chunk := content.read(CHUNK):
        yield chunk


def _sync_folder(folder: Path) -> None:
    """A new name outlives a power cut only when its folder was written too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_used(session: Session, sha256: str) -> bool:
    columns = [
        column
        for table in Base.metadata.tables.values()
        for column in table.columns
        if any(key.column.table.name == Blob.__tablename__ for key in column.foreign_keys)
    ]
    return any(session.scalar(select(exists().where(column == sha256))) for column in columns)
