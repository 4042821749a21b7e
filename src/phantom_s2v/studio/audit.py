"""The audit log: a line for everything that changed anything, chained by hashes; its end is signed outside the database.

A chain alone cannot show that its end is missing. So the number and hash of the last line also stand in a file beside the
database, signed with a key derived from the studio's secret. Before a transaction with new lines is committed, the file says both
where the log ends and where it is going to end; after it, the new end alone. Whatever dies in between, one of the two is true,
and the next start settles it.

Details hold ids, numbers, codes and keyed hashes, never names or what people wrote: a line is never removed, a person may be.
"""

import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.errors import DataError
from phantom_s2v.files.io import writing
from phantom_s2v.studio.database import Page, paged
from phantom_s2v.studio.schema import AuditLine, now

if TYPE_CHECKING:
    from phantom_s2v.studio.access import Actor

FIRST = "0" * 64  # the hash before the first line
End = tuple[int, str]  # number and hash of the last line
ALTERED = "the audit log does not end as its signed head says; see phantom studio audit verify"
BATCH = 1000  # lines that verify holds at once


def line_hash(
    number: int, at: datetime, actor: str | None, action: str, object_id: str | None, details: Any, previous: str
) -> str:
    """SHA-256 of a line with everything in it."""
    content = [number, at.isoformat(timespec="microseconds"), actor, action, object_id, details, previous]
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode()).hexdigest()


def append(session: Session, actor: str | None, action: str, object_id: str | None = None, **details: Any) -> None:
    """Add a line to the log within the session's transaction. `actor` is a user's id, None the studio itself."""
    number, previous = session.info.get("audit") or _begin(session)
    at = now()
    sha256 = line_hash(number + 1, at, actor, action, object_id, details, previous)
    session.add(
        AuditLine(
            number=number + 1, at=at, actor=actor, action=action, object_id=object_id, details=details, previous=previous,
            sha256=sha256,
        )
    )  # fmt: skip
    session.info["audit"] = (number + 1, sha256)


def of_file(session: Session, sha256: str) -> str:
    """A file as the log names it: who has it and the studio's secret can show that it was this one, nobody else anything."""
    return session.info["studio"].settings.keyed_hash("file", sha256)


def _begin(session: Session) -> End:
    end = session.info["audit_before"] = last(session)
    return end


def last(session: Session) -> End:
    """Number and hash of the last line in the database."""
    row = session.execute(select(AuditLine.number, AuditLine.sha256).order_by(AuditLine.number.desc()).limit(1)).first()
    return (row[0], row[1]) if row else (0, FIRST)


def listed(session: Session, actor: "Actor", after: str | None = None) -> Page[AuditLine]:
    """The log, the newest line first."""
    actor.must_be_admin()
    return paged(session, select(AuditLine), [AuditLine.number], after, size=100)


@dataclass(frozen=True)
class Head:
    """The signed end of the log in a file."""

    file: Path
    key: bytes

    def read(self) -> list[End]:
        """Where the log may end: one end, or two where a transaction was cut off.

        Raises DataError for a file that we did not sign.
        """
        if not self.file.exists():
            raise DataError(f"{self.file} is missing; it holds the audit log's signed head: take it from a backup")
        try:
            signed = json.loads(self.file.read_bytes())
            ends = [(int(number), str(sha256)) for number, sha256 in signed["ends"]]
            if not hmac.compare_digest(self._sign(ends), str(signed["signature"])):
                raise ValueError
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.file} was altered: its signature is not this studio's") from error
        return ends

    def write(self, *ends: End) -> None:
        """Write the ends, signed, all or nothing."""
        with writing(self.file) as file:
            file.write(json.dumps({"ends": ends, "signature": self._sign(list(ends))}).encode())

    def _sign(self, ends: list[End]) -> str:
        return hmac.new(self.key, json.dumps(ends).encode(), hashlib.sha256).hexdigest()

    @contextmanager
    def extended(self, session: Session) -> Iterator[None]:
        """Around the commit of a session: the file follows its new lines. Raises DataError where the log was altered before."""
        after: End | None = session.info.pop("audit", None)
        if after is None:
            yield
            return
        before: End = session.info.pop("audit_before")
        with self._alone():
            if before not in self.read():
                raise DataError(ALTERED)
            self.write(before, after)
            yield
            self.write(after)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process at a time, from before the commit until the file says where the log ends."""
        with self.file.with_suffix(".lock").open("w") as lock:
            os.fchmod(lock.fileno(), 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def settle(self, session: Session) -> None:
        """After a crash: of two ends keep the one that the database has. `session` must hold the lock for writing.

        Raises DataError where the log was altered.
        """
        with self._alone():
            end = last(session)
            if not self.file.exists() and end == (0, FIRST):
                self.write(end)
            ends = self.read()
            if end not in ends:
                raise DataError(ALTERED)
            if len(ends) > 1:
                self.write(end)


def verify(session: Session, head: Head, known: End | None = None) -> tuple[int, list[str]]:
    """Number of lines, and what is wrong with the log: lines altered, missing or added. `known` is an end that was noted before.

    Memory does not grow with the log.
    """
    found: list[str] = []
    number, previous, seen = 0, FIRST, known is None
    try:
        for line in session.scalars(select(AuditLine).order_by(AuditLine.number).execution_options(yield_per=BATCH)):
            found += _wrong(line, number, previous)
            number, previous = line.number, line.sha256
            seen = seen or (number, previous) == known
            session.expunge(line)
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # a time or details that are none
        found.append(f"a line after line {number} was altered and cannot be read ({type(error).__name__})")
    try:
        ends = head.read()
        if (number, previous) not in ends:
            found.append(f"the log ends at line {number}, the signed head at line {ends[-1][0]}, or with another hash")
    except DataError as error:
        found.append(str(error))
    if not seen and known:
        found.append(f"line {known[0]} is not the one that was noted before")
    return number, found


def _wrong(line: AuditLine, number: int, previous: str) -> list[str]:
    """What is wrong with a line after the line of a number and a hash."""
    found = []
    if line.number != number + 1:
        missing = f"line {number + 1} is" if line.number == number + 2 else f"lines {number + 1} to {line.number - 1} are"
        found.append(f"{missing} missing")
    elif line.previous != previous:
        found.append(f"line {line.number} does not follow line {number}: one of them was altered")
    content = (line.number, line.at, line.actor, line.action, line.object_id, line.details, line.previous)
    if line.sha256 != line_hash(*content):
        found.append(f"line {line.number} was altered")
    return found
