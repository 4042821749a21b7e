"""The studio as one object: settings, database, files, and the head of the audit log. Sessions carry it (`studio_of`)."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from phantom_s2v.studio import database
from phantom_s2v.studio.audit import Head
from phantom_s2v.studio.config import Settings
from phantom_s2v.studio.storage import Storage


@dataclass
class Studio:
    """An opened studio. Web process, workers and commands each open their own."""

    settings: Settings
    engine: Engine = field(init=False)
    storage: Storage = field(init=False)
    head: Head = field(init=False)

    def __post_init__(self) -> None:
        self.engine = database.open_engine(self.settings.database_url)
        self.head = Head(self.settings.folder / "audit-head.json", self.settings.key("audit head"))
        self.storage = Storage(self.settings.folder / "files", self)

    def start(self) -> None:
        """Bring the tables to this version's and settle the audit log's head. Raises DataError where the log was altered."""
        database.upgrade(self.engine)
        with self.writing() as session:
            self.head.settle(session)

    def reading(self) -> AbstractContextManager[Session]:
        """A session that changes nothing."""
        return database.reading(self.engine, self)

    def writing(self) -> AbstractContextManager[Session]:
        """A session whose changes are kept, all or none; see `database.writing`."""
        return database.writing(self.engine, self)


def studio_of(session: Session) -> Studio:
    """The studio that a session belongs to."""
    return session.info["studio"]
