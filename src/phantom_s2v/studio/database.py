"""The database: transactions that write one after the other, the audit log's head around each commit, and lists by pages.

SQLite with WAL and synchronous=FULL, so that what was committed outlives a power cut; a URL of PostgreSQL fits as well.
"""

import base64
import binascii
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, Select, create_engine, event, literal, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from phantom_s2v.errors import DataError
from phantom_s2v.studio.problems import NotFound

T = TypeVar("T")
BUSY_MS = 30_000  # that a transaction waits for another
PAGE = 24  # rows of a list that are shown at once
PRAGMAS = ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_MS}", "secure_delete=ON")
MIGRATIONS = Path(__file__).parent / "migrations"


def open_engine(url: str) -> Engine:
    """An engine whose transactions are begun by us: pysqlite's own begin late, so that two could read and then clash.
    Errors name no values, which may be names or hashes of passwords.
    """
    engine = create_engine(url, pool_size=16, max_overflow=48, hide_parameters=True)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _prepare)
        event.listen(engine, "begin", _begin)
    return engine


def _prepare(connection: Any, _: object) -> None:
    connection.isolation_level = None
    for pragma in PRAGMAS:
        connection.execute(f"pragma {pragma}")


def _begin(connection: Connection) -> None:
    if connection.get_execution_options().get("unlinked"):
        connection.exec_driver_sql("pragma foreign_keys=OFF")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


@contextmanager
def reading(engine: Engine, studio: Any) -> Iterator[Session]:
    """A session that sees one moment and changes nothing."""
    with Session(engine, info={"studio": studio}) as session:
        yield session


@contextmanager
def writing(engine: Engine, studio: Any) -> Iterator[Session]:
    """A session whose changes are all kept or none, with the lines of the audit log. It holds the database's one lock for writing
    from the start, so nothing that takes long belongs into it.
    """
    with Session(engine.execution_options(writes=True), info={"studio": studio}, expire_on_commit=False) as session:
        yield session
        session.flush()
        with studio.head.extended(session):
            session.commit()
    studio.storage.purge(session.info.pop("forgotten", []))
    if session.info.pop("erased", False):
        _empty_log(engine)


def _empty_log(engine: Engine) -> None:
    """Bring what was committed into SQLite's file, and empty the log beside it, in which erased rows would stay readable."""
    if engine.dialect.name == "sqlite":
        raw = engine.raw_connection()
        try:
            raw.driver_connection.execute("pragma wal_checkpoint(truncate)")  # type: ignore[union-attr]
        finally:
            raw.close()


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Bring the tables to this version's, in one transaction. Raises DataError for tables of a later version.

    SQLite changes a column by making its table anew, so foreign keys are not followed meanwhile and looked at in the end.
    """
    lite = engine.dialect.name == "sqlite"
    with engine.execution_options(writes=True, unlinked=lite).connect() as connection:
        try:
            with connection.begin():
                if revision == "head" and is_current(connection):
                    return
                command.upgrade(migrations(connection), revision)
                if lite and connection.exec_driver_sql("pragma foreign_key_check").first():
                    raise DataError("the database has rows that refer to nothing; restore a backup")
        except CommandError as error:
            raise DataError(f"the database was written by a later version of phantom-s2v; install that one ({error})") from error
        finally:
            if lite:
                connection.connection.driver_connection.execute("pragma foreign_keys=ON")  # type: ignore[union-attr]


def migrations(connection: Connection) -> Config:
    """Alembic's configuration of our migrations on a connection."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def is_current(connection: Connection) -> bool:
    """Whether the tables are this version's."""
    return MigrationContext.configure(connection).get_current_revision() == ScriptDirectory(str(MIGRATIONS)).get_current_head()


@dataclass(frozen=True)
class Page(Generic[T]):
    """Some rows of a list, and what `paged` takes for the following ones; None after the last."""

    items: Sequence[T]
    following: str | None


def paged(
    session: Session,
    query: Select[T],
    order: Sequence[InstrumentedAttribute[Any]],
    after: str | None = None,
    size: int = PAGE,
    descending: bool = True,
) -> Page[T]:
    """Rows of a query by an index over `order`, the last of which is unique: a late page costs what the first one does."""
    if after:
        bound = tuple_(*_read_cursor(after, order))
        query = query.where(tuple_(*order) < bound if descending else tuple_(*order) > bound)
    query = query.order_by(*(column.desc() if descending else column for column in order)).limit(size + 1)
    rows = session.scalars(query).unique().all()
    return Page(rows[:size], _cursor([getattr(rows[size - 1], column.key) for column in order]) if len(rows) > size else None)


def _cursor(values: Sequence[Any]) -> str:
    text = json.dumps([value.isoformat() if isinstance(value, datetime) else value for value in values])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def _read_cursor(cursor: str, order: Sequence[InstrumentedAttribute[Any]]) -> list[Any]:
    """The values of a cursor, as the columns have them. Raises NotFound for what is none."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        kinds = [column.type.python_type for column in order]
        if not isinstance(values, list) or len(values) != len(order):
            raise ValueError
        read = [datetime.fromisoformat(value) if kind is datetime else value for value, kind in zip(values, kinds, strict=True)]
        if not all(
            type(value) is kind and (kind is not datetime or value.tzinfo) for value, kind in zip(read, kinds, strict=True)
        ):
            raise ValueError
    except (ValueError, TypeError, binascii.Error, UnicodeDecodeError, RecursionError) as error:
        raise NotFound from error
    return [literal(value, column.type) for column, value in zip(order, read, strict=True)]
