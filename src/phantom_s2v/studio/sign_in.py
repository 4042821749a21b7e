"""Who is there: passwords, sessions, one-time links, tokens of the API, and limits on guessing."""

import hashlib
import secrets
import threading
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session, contains_eager

from phantom_s2v.studio import audit
from phantom_s2v.studio.access import Actor, enlisted, with_project
from phantom_s2v.studio.context import studio_of
from phantom_s2v.studio.problems import N_, Conflict, NotFound, NotSignedIn, Problem, TooMany
from phantom_s2v.studio.schema import Credential, Notice, Project, User, now
from phantom_s2v.studio.texts import line

HASHER = PasswordHasher()  # Argon2id with RFC 9106's second recommendation: 64 MiB and 0.18 s here
AT_ONCE = threading.BoundedSemaphore(4)  # passwords hashed at the same time, 256 MiB
SHORTEST, LONGEST = 12, 200  # characters of a password; what is longer would only cost time
DUMMY = HASHER.hash("nobody's password")  # so that an unknown address takes as long as a wrong password
WRONG = N_("The e-mail address or the password is wrong.")
USED_LINK = N_("This link was used already, or it is too old. Ask an administrator for a new one.")
TRIES, PER_ADDRESS, WINDOW = 8, 60, 900.0  # wrong passwords of an account and from one address, within seconds
REMEMBERED = 10_000  # accounts and addresses whose tries are counted
MAX_TOKENS = 50  # of the API, of one person: all are on the account's page
TOUCH = timedelta(minutes=10)  # a session is prolonged no more often


class Limit:
    """Counts failures by key within a window. In memory: a restart forgets them, which a guesser cannot cause."""

    def __init__(self, most: int, window: float) -> None:
        self.most, self.window = most, window
        self._lock, self._times = threading.Lock(), OrderedDict[str, list[float]]()

    def attempt(self, key: str) -> float:
        """Count an attempt as failed, before it is looked at: many at once are no more than one after the other. What it gives
        takes it back (`succeeded`). Raises TooMany where a key has failed too often.
        """
        with self._lock:
            times, at = self._recent(key), time.monotonic()
            if len(times) >= self.most:
                wait = max(1, round(times[0] + self.window - at))
                raise TooMany(
                    "Too many attempts. Please wait %(minutes)d minutes and try again.", minutes=-(-wait // 60), seconds=wait
                )
            self._times[key] = [*times, at]
            self._times.move_to_end(key)
            while len(self._times) > REMEMBERED:
                self._times.popitem(last=False)
            return at

    def succeeded(self, key: str, at: float) -> None:
        """The attempt was none that failed."""
        with self._lock:
            self._times[key] = [moment for moment in self._recent(key) if moment != at]

    def forget(self, key: str) -> None:
        """Start anew, after a success."""
        with self._lock:
            self._times.pop(key, None)

    def _recent(self, key: str) -> list[float]:
        since = time.monotonic() - self.window
        return [moment for moment in self._times.get(key, ()) if moment > since]


class Guard:
    """The limits on sign-in of one web process."""

    def __init__(self) -> None:
        self.accounts, self.addresses = Limit(TRIES, WINDOW), Limit(PER_ADDRESS, WINDOW)


def hash_password(password: str) -> str:
    """Argon2id of a new password. Raises Problem for one that is too short or too long."""
    if not SHORTEST <= len(password) <= LONGEST:
        raise Problem("A password must have %(low)d to %(high)d characters.", "password", low=SHORTEST, high=LONGEST)
    with AT_ONCE:
        return HASHER.hash(password)


def is_password(hashed: str | None, password: str) -> bool:
    """Whether it is the password; as slow for nobody's."""
    if len(password) > LONGEST:
        return False
    try:
        with AT_ONCE:
            return HASHER.verify(hashed or DUMMY, password) and hashed is not None
    except (VerificationError, InvalidHashError):
        return False


def _folded(email: str) -> str:
    """An address as it is stored and looked for."""
    return unicodedata.normalize("NFKC", email).strip().lower()


def normal_email(email: str) -> str:
    """An e-mail address in lower case. Raises Problem for what cannot be one."""
    email = _folded(email)
    if not email:
        raise Problem("Please fill this in.", "email")
    name, _, domain = email.partition("@")
    if (
        not name
        or "." not in domain
        or len(email) > 254
        or any(c.isspace() or not c.isprintable() for c in email)
        or "@" in domain
    ):
        raise Problem("This is not an e-mail address.", "email")
    return email


def sign_in(session: Session, guard: Guard, email: str, password: str, address: str) -> str:
    """The id of the person whose password it is. Raises NotSignedIn, and TooMany after too many wrong passwords.

    `session` only reads, since hashing takes long.
    """
    key = _folded(email)[:254]
    at = guard.addresses.attempt(address)
    guard.accounts.attempt(key)
    user = session.scalar(select(User).where(User.email == key))
    right = is_password(user.password_hash if user and user.active else None, password)
    if not right or user is None:
        raise NotSignedIn(WRONG)
    guard.accounts.forget(key)
    guard.addresses.succeeded(address, at)
    return user.id


def begin_session(session: Session, user_id: str) -> str:
    """The token of a new session of a person who has shown who they are."""
    settings = studio_of(session).settings
    audit.append(session, user_id, "signed in", user_id)
    return _credential(session, user_id, "session", timedelta(hours=settings.session_hours))


def end_session(session: Session, token: str) -> None:
    """Sign out."""
    found = session.get(Credential, _sha256(token))
    if found is not None and found.kind == "session":
        audit.append(session, found.user_id, "signed out", found.user_id)
        session.delete(found)


@dataclass(frozen=True)
class Known:
    """The person behind a request: by which credential, with which roles in the address's project, and how many notices they
    have not read.
    """

    credential: Credential
    actor: Actor
    project: Project | None
    unread: int


def who(session: Session, token: str, kind: str, project_id: str | None = None) -> Known | None:
    """The person of a session's or the API's token, in one query; None for nobody."""
    unread = select(func.count()).where(Notice.user_id == Credential.user_id, Notice.read_at.is_(None)).scalar_subquery()
    query: Any = (
        select(Credential, unread)
        .select_from(Credential)
        .join(User, User.id == Credential.user_id)
        .options(contains_eager(Credential.user))
    )
    query = query.where(Credential.sha256 == _sha256(token), Credential.kind == kind)
    rows: Any = session.execute(with_project(query, project_id) if project_id else query).unique().all()
    if not rows or not rows[0][0].user.active or (rows[0][0].expires_at is not None and rows[0][0].expires_at <= now()):
        return None
    actor, project = enlisted(rows[0][0].user, project_id, [(row[2], row[3]) for row in rows] if project_id else [])
    return Known(rows[0][0], actor, project, rows[0][1])


def touch(session: Session, token: str) -> None:
    """Prolong a session that is in use."""
    hours = studio_of(session).settings.session_hours
    session.execute(
        update(Credential)
        .where(Credential.sha256 == _sha256(token))
        .values(used_at=now(), expires_at=now() + timedelta(hours=hours))
    )


def needs_touch(credential: Credential) -> bool:
    """Whether it was last prolonged a while ago."""
    return now() - (credential.used_at or credential.created_at) > TOUCH


def make_link(session: Session, actor: Actor, user: User) -> str:
    """The token of a new one-time link by which a person sets their password; older links and sessions of theirs end."""
    actor.must_be_admin()
    session.execute(delete(Credential).where(Credential.user_id == user.id, Credential.kind.in_(("link", "session"))))
    audit.append(session, actor.id, "link made", user.id)
    return _credential(session, user.id, "link", timedelta(hours=studio_of(session).settings.link_hours))


def link_user(session: Session, token: str) -> User:
    """Whose link it is. Raises NotFound for one that was used or is too old."""
    found = who(session, token, "link")
    if found is None:
        raise NotFound(USED_LINK)
    return found.credential.user


def use_link(session: Session, token: str, password_hash: str, language: str) -> User:
    """Set the password of a link's person, and the language in which they read its page; the link is used up."""
    user = link_user(session, token)
    session.delete(session.get(Credential, _sha256(token)))
    user.password_hash = password_hash
    audit.append(session, user.id, "password set", user.id)
    if language != user.language:
        user.language = language
        audit.append(session, user.id, "language chosen", user.id, language=language)
    return user


def make_token(session: Session, actor: Actor, name: str) -> str:
    """A token of the API with the rights of its person; it is shown once."""
    name = line(name, "token_name")
    if len(tokens(session, actor)) >= MAX_TOKENS:
        raise Conflict("You have %(most)d tokens already. Revoke one first.", "token_name", most=MAX_TOKENS)
    audit.append(session, actor.id, "token made", actor.id)
    return _credential(session, actor.must_be_person(), "token", None, name)


def end_token(session: Session, actor: Actor, sha256: str) -> None:
    """Revoke a token of one's own."""
    found = session.get(Credential, sha256)
    if found is None or found.user_id != actor.id or found.kind != "token":
        raise NotFound
    audit.append(session, actor.id, "token ended", actor.id)
    session.delete(found)


def _credential(session: Session, user_id: str, kind: str, lifetime: timedelta | None, name: str = "") -> str:
    token = secrets.token_urlsafe(32)
    expires = now() + lifetime if lifetime else None
    session.add(Credential(sha256=_sha256(token), user_id=user_id, kind=kind, name=name, expires_at=expires))
    return token


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def tokens(session: Session, actor: Actor) -> Sequence[Credential]:
    """A person's tokens of the API."""
    query = select(Credential).where(Credential.user_id == actor.must_be_person(), Credential.kind == "token")
    return session.scalars(query.order_by(Credential.created_at).limit(MAX_TOKENS)).unique().all()


def check_password(session: Session, guard: Guard, actor: Actor, password: str) -> None:
    """Raise Problem where it is not the person's own, and TooMany after too many tries."""
    user = session.get_one(User, actor.must_be_person())
    guard.accounts.attempt(user.email)
    if not is_password(user.password_hash, password):
        raise Problem("The password is wrong.", "old")
    guard.accounts.forget(user.email)


def change_password(session: Session, actor: Actor, password_hash: str, token: str) -> None:
    """Set another password; all sessions but that of `token` end, and links too."""
    user = session.get_one(User, actor.must_be_person())
    user.password_hash = password_hash
    others = delete(Credential).where(Credential.user_id == user.id, Credential.kind.in_(("session", "link")))
    session.execute(others.where(Credential.sha256 != _sha256(token)))
    audit.append(session, actor.id, "password set", user.id)
