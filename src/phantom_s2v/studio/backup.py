"""Backup and restore: one tar with the database, every file that a row refers to, the audit log's head and the secret.

Whoever has it can read everything and sign as the studio: it is written for its owner alone, and belongs where secrets are kept.
"""

import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import select

from phantom_s2v.errors import DataError, InputError
from phantom_s2v.files.hashes import content_hash
from phantom_s2v.files.io import writing, writing_folder
from phantom_s2v.studio import audit
from phantom_s2v.studio.config import Settings
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.schema import Blob

DATABASE, FILES = "studio.sqlite", "files"
BESIDE = ("certificate", "secret")  # of the folder, beside database, head and files; what else lies there is not the studio's
MEMBER = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*")  # names in a backup: below the folder, none hidden


def back_up(studio: Studio, target: Path) -> int:
    """Write a backup, while people work; how many files of the storage it holds.

    Raises InputError for another database than SQLite, whose own tools do this, and DataError where a file is missing.
    """
    if studio.engine.dialect.name != "sqlite":
        raise InputError("backup copies an SQLite database; of another one use its own tools, and copy the folder beside it")
    if os.path.lexists(target):
        raise InputError(f"{target} exists; give a name that is free")
    with tempfile.TemporaryDirectory(dir=studio.settings.folder, prefix=".backup-") as name:
        copy = Path(name)
        with studio.writing():  # nothing is committed meanwhile, so that database and head belong together
            _copy_database(studio.settings.folder / DATABASE, copy / DATABASE)
            shutil.copy2(studio.head.file, copy)
        with writing(target) as file, tarfile.open(fileobj=file, mode="w") as tar:
            os.fchmod(file.fileno(), 0o600)
            for path in sorted(copy.iterdir()):
                tar.add(path, path.name)
            for name in BESIDE:
                path = (studio.settings.folder / name).resolve()
                if path.exists():
                    tar.add(path, name, filter=_whole)
            return _add_files(studio, copy / DATABASE, tar)


def _whole(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A file or folder that `restore` takes; None for what a crash left half-written, under a hidden name."""
    return member if MEMBER.fullmatch(member.name) and (member.isfile() or member.isdir()) else None


def _copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
        new.execute("pragma journal_mode=delete")


def _add_files(studio: Studio, database: Path, tar: tarfile.TarFile) -> int:
    """Files of the rows that the copied database has, one after the other."""
    count = 0
    with closing(sqlite3.connect(database)) as rows:
        for (sha256,) in rows.execute("select sha256 from blobs order by sha256"):
            path = studio.storage.path(sha256)
            if not path.is_file():
                with studio.reading() as session:  # forgotten while the backup was being written
                    if session.get(Blob, sha256) is None:
                        continue
                raise DataError(f"the file {sha256} of the studio is missing on disk; restore it from an older backup first")
            tar.add(path, f"{FILES}/{path.relative_to(studio.storage.folder)}")
            count += 1
    return count


def restore(source: Path, settings_folder: Path) -> tuple[int, int]:
    """Make a studio's folder of a backup; how many files and audit lines it has. The folder must not exist, or be empty.

    Everything is checked before the folder gets its name: names, hashes of files, the database, and the audit log. Raises
    InputError for what is no backup, and DataError for a damaged one.
    """
    if not source.is_file():
        raise InputError(f"{source} is not a file; it must be a backup of phantom studio backup")
    if settings_folder.exists() and (not settings_folder.is_dir() or any(settings_folder.iterdir())):
        raise InputError(f"{settings_folder} is not empty; restore into a new folder")
    if settings_folder.exists():
        settings_folder.rmdir()
    with writing_folder(settings_folder) as folder:
        folder.chmod(0o700)
        try:
            with tarfile.open(source, "r:") as tar:
                for member in _members(tar):
                    tar.extract(member, folder, filter="data")
        except (tarfile.TarError, EOFError) as error:
            raise InputError(f"{source} is not a backup of phantom studio, or is cut off ({error})") from error
        if not (folder / DATABASE).is_file():
            raise InputError(f"{source} is not a backup of phantom studio: it has no {DATABASE}")
        return _checked(folder)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Files and folders of a backup. Raises InputError for links and for names that lead elsewhere."""
    for member in tar:
        if not (member.isfile() or member.isdir()) or not MEMBER.fullmatch(member.name):
            raise InputError(f"the backup holds {member.name!r}, which no backup of phantom studio does")
        member.mode = 0o700 if member.isdir() else 0o600
        yield member


def _checked(folder: Path) -> tuple[int, int]:
    """Files and audit lines of a folder that was unpacked."""
    with opened(folder) as studio, studio.reading() as session:
        try:
            (answer,) = session.connection().exec_driver_sql("pragma integrity_check").one()
        except Exception as error:  # a damaged file fails in many ways
            raise DataError(f"the database of the backup is damaged ({type(error).__name__})") from error
        if answer != "ok":
            raise DataError(f"the database of the backup is damaged: {answer}")
        count = 0
        for sha256 in session.scalars(select(Blob.sha256).execution_options(yield_per=1000)):
            path = studio.storage.path(sha256)
            if not path.is_file() or content_hash(path) != sha256:
                raise DataError(f"the backup is damaged: the file {sha256} is missing or altered")
            count += 1
        lines, found = audit.verify(session, studio.head)
        if found:
            raise DataError(f"the audit log of the backup was altered: {found[0]}")
        return count, lines


@contextmanager
def opened(folder: Path) -> Iterator[Studio]:
    """The studio of a folder as it is, with the secret that lies there or the environment's."""
    from phantom_s2v.studio.config import load_settings

    loaded = load_settings(folder)
    studio = Studio(Settings(folder, loaded.secret))
    try:
        yield studio
    finally:
        studio.engine.dispose()
