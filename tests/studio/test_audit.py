"""The audit log finds every tampering, survives a crash at any moment; backup and restore; the limit on sign-in."""

import json
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from phantom_s2v.errors import DataError, InputError
from phantom_s2v.studio import audit, backup
from phantom_s2v.studio.schema import Blob
from studio.conftest import PASSWORD, make_studio

COLUMNS = ("at", "actor", "action", "object_id", "details", "previous", "sha256")
LINES = 30


@pytest.fixture
def log(studio):
    """The studio with a log of some more lines."""
    for number in range(LINES):
        with studio.writing() as session:
            audit.append(session, studio.people["maker"], "tried", None, number=number)
    return studio


def verified(studio):
    with studio.reading() as session:
        return audit.verify(session, studio.head)[1]


def tamper(database: sqlite3.Connection, head: Path, rng: random.Random) -> str:
    """Alter the log in one of the ways in which somebody with the disk might; what was done."""
    last = database.execute("select max(number) from audit").fetchone()[0]
    number = rng.randint(1, last)
    kind = rng.choice(("change", "rewrite", "delete", "tail", "add", "swap", "head", "head removed", "renumber"))
    if kind in ("change", "rewrite"):
        column = rng.choice(COLUMNS if kind == "change" else COLUMNS[:5])
        (old,) = database.execute(f"select {column} from audit where number = ?", (number,)).fetchone()
        new = {"details": json.dumps({"changed": rng.random()}), "at": "2020-01-01 00:00:00.000000"}.get(column, "1" * 64)
        assert new != old
        database.execute(f"update audit set {column} = ? where number = ?", (new, number))
    if kind == "rewrite":  # and every hash from there on, as the program would
        rewrite(database)
    elif kind == "delete":
        database.execute("delete from audit where number = ?", (number,))
    elif kind == "tail":
        database.execute("delete from audit where number > ?", (last - rng.randint(1, 5),))
    elif kind == "add":
        database.execute(
            "insert into audit select number + 1, at, actor, action, object_id, details, sha256, sha256 from audit "
            "where number = ?",
            (last,),
        )
        rewrite(database)
    elif kind == "swap":
        other = number % last + 1
        for one, two in ((number, -1), (other, number), (-1, other)):
            database.execute("update audit set number = ? where number = ?", (two, one))
    elif kind == "renumber":
        database.execute("delete from audit where number = ?", (number,))
        database.execute("update audit set number = -number where number > ?", (number,))
        database.execute("update audit set number = -number - 1 where number < 0")
        rewrite(database)
    elif kind == "head":
        signed = json.loads(head.read_bytes())
        signed["ends"][0][rng.randint(0, 1)] = rng.choice((0, last + 1, "0" * 64))
        head.write_text(json.dumps(signed))
    elif kind == "head removed":
        head.unlink()
    database.commit()
    return kind


def rewrite(database: sqlite3.Connection) -> None:
    """Give every line the hashes that the program would, so that the chain alone shows nothing."""
    from datetime import UTC, datetime

    previous = audit.FIRST
    for number, at, actor, action, key, details in database.execute(
        "select number, at, actor, action, object_id, details from audit order by number"
    ).fetchall():
        time = datetime.fromisoformat(at).replace(tzinfo=UTC)
        sha256 = audit.line_hash(number, time, actor, action, key, json.loads(details), previous)
        database.execute("update audit set previous = ?, sha256 = ? where number = ?", (previous, sha256, number))
        previous = sha256


def test_tampering_is_found_100_times_of_100(log, tmp_path):
    assert verified(log) == []
    log.engine.dispose()
    rng, missed, kinds = random.Random(0), [], set()
    for number in range(100):
        copy = tmp_path / str(number)
        copy.mkdir()
        for name in ("studio.sqlite", "audit-head.json", "secret"):
            shutil.copy(log.settings.folder / name, copy / name)
        (copy / "secret").chmod(0o600)
        with closing(sqlite3.connect(copy / "studio.sqlite")) as database:
            for what in ("update", "delete"):
                database.execute(f"drop trigger audit_no_{what}")
            kinds.add(kind := tamper(database, copy / "audit-head.json", rng))
        with backup.opened(copy) as studio:
            if not verified(studio):
                missed.append((number, kind))
    assert missed == []
    assert len(kinds) == 9


def test_an_altered_log_is_written_no_further(log):
    with sqlite3.connect(log.settings.folder / "studio.sqlite") as database:
        database.execute("drop trigger audit_no_delete")
        database.execute("delete from audit where number = (select max(number) from audit)")
    database.close()
    with pytest.raises(DataError, match="audit verify"), log.writing() as session:
        audit.append(session, None, "tried")
    with pytest.raises(DataError, match="audit verify"):
        log.start()


@pytest.mark.parametrize("moment", ["before the commit", "after the commit"])
def test_a_crash_at_any_moment_leaves_a_true_log(log, monkeypatch, moment):
    """The process dies between the head's two versions: before the database's commit, or after it."""
    write = audit.Head.write

    def dying(head, *ends):
        if moment == "after the commit" and len(ends) == 1:
            raise KeyboardInterrupt
        write(head, *ends)
        if moment == "before the commit" and len(ends) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(audit.Head, "write", dying)
    with pytest.raises(KeyboardInterrupt), log.writing() as session:
        audit.append(session, None, "dying")
    monkeypatch.undo()
    assert len(log.head.read()) == 2
    assert verified(log) == []
    with log.reading() as session:
        before = audit.last(session)[0]
    log.start()
    assert len(log.head.read()) == 1
    assert verified(log) == []
    with log.writing() as session:
        audit.append(session, None, "afterwards")
    assert verified(log) == []
    with log.reading() as session:
        assert audit.last(session)[0] == before + 1


def test_a_noted_end_shows_that_everything_was_set_back(log, tmp_path):
    shutil.copytree(log.settings.folder, tmp_path / "old")
    with log.writing() as session:
        audit.append(session, None, "later")
    known = log.head.read()[-1]
    log.engine.dispose()
    with backup.opened(tmp_path / "old") as old, old.reading() as session:
        assert audit.verify(session, old.head)[1] == []
        assert "noted before" in audit.verify(session, old.head, known)[1][0]


def test_verify_on_the_command_line(log, call_phantom):
    code, printed = call_phantom("studio", "audit", "verify", "--folder", log.settings.folder)
    assert code == 0
    assert "none altered or missing" in printed.out
    log.head.file.unlink()
    code, printed = call_phantom("studio", "audit", "verify", "--folder", log.settings.folder)
    assert code == 1
    assert "signed head" in printed.out


def test_backup_and_restore(log, tmp_path, call_phantom):
    with log.writing() as session:
        kept = log.storage.put(session, b"a video", "video/mp4")
        audit.append(session, None, "put")
    target, folder = tmp_path / "backup.tar", tmp_path / "restored"
    assert call_phantom("studio", "backup", target, "--folder", log.settings.folder)[0] == 0
    assert target.stat().st_mode & 0o777 == 0o600
    assert call_phantom("studio", "restore", target, "--folder", log.settings.folder)[0] == 2  # not empty
    code, printed = call_phantom("studio", "restore", target, "--folder", folder)
    assert code == 0, printed.err
    restored = make_studio(folder)
    assert verified(restored) == []
    assert restored.storage.read(kept) == b"a video"
    with restored.reading() as session:
        assert session.get_one(Blob, kept).media_type == "video/mp4"
    restored.engine.dispose()


@pytest.mark.parametrize("damage", ["cut off", "a byte of a file", "foreign", "path"])
def test_a_damaged_backup_restores_nothing(log, tmp_path, damage):
    import io
    import tarfile

    with log.writing() as session:
        log.storage.put(session, b"a video" * 100, "video/mp4")
    target = tmp_path / "backup.tar"
    backup.back_up(log, target)
    content = target.read_bytes()
    if damage == "cut off":
        target.write_bytes(content[: len(content) // 2])
    elif damage == "a byte of a file":
        target.write_bytes(content.replace(b"a videoa video", b"a videoa Video", 1))
    elif damage == "foreign":
        target.write_bytes(b"no backup" * 1000)
    else:
        with tarfile.open(target, "a") as tar:
            member = tarfile.TarInfo("../evil")
            member.size = 4
            tar.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises((InputError, DataError)):
        backup.restore(target, tmp_path / "restored")
    assert not (tmp_path / "restored").exists()
    assert not (tmp_path / "evil").exists()
    assert not list(tmp_path.glob(".*partial"))


def test_guessing_a_password_is_slowed_down(browser, studio, monkeypatch):
    from phantom_s2v.studio import sign_in

    client, data = browser(None), {"email": "maker@example.com", "password": "wrong"}
    statuses = [client.submit("/sign-in", data).status_code for _ in range(sign_in.TRIES + 1)]
    assert statuses == [401] * sign_in.TRIES + [429]
    right = client.submit("/sign-in", {**data, "password": PASSWORD})
    assert right.status_code == 429  # even the right one, until the window has passed
    assert int(right.headers["retry-after"]) > 0
    other = browser(None)
    assert other.submit("/sign-in", {"email": "reviewer@example.com", "password": PASSWORD}).status_code == 200
    monkeypatch.setattr(sign_in.time, "monotonic", lambda: 1e9)
    assert client.submit("/sign-in", {**data, "password": PASSWORD}).status_code == 200


def test_metrics_health_and_logs(browser, studio, caplog):
    assert browser(None).get("/health").json() == {"status": "ok"}
    assert browser(None).get("/ready").json()["status"] == "ready"
    boss = browser("boss")
    boss.get("/")
    text = boss.get("/metrics").text
    assert "studio_queue_length 0" in text
    assert 'studio_requests_total{route="/",status="200"} 1.0' in text
    with caplog.at_level("INFO", "phantom_s2v.studio"):
        answer = boss.get("/", headers={"X-Request-Id": "abc-123-def"})
    assert answer.headers["x-request-id"] == "abc-123-def"
    assert caplog.records[-1].values["route"] == "/"
    studio.head.file.unlink()
    assert browser(None).get("/ready").status_code == 503


def test_what_is_not_the_studios_keeps_no_backup_from_being_restored(log, tmp_path):
    """Notes of an administrator, and what a crash left half-written; a certificate that lies elsewhere is taken along."""
    folder, elsewhere = log.settings.folder, tmp_path / "keys"
    elsewhere.mkdir()
    (elsewhere / "chain.pem").write_text("chain")
    (elsewhere / ".key.pem.partial").write_text("half")
    (folder / "certificate").symlink_to(elsewhere)
    (folder / "My notes (old).txt").write_text("notes")
    target = tmp_path / "backup.tar"
    backup.back_up(log, target)
    backup.restore(target, tmp_path / "restored")
    assert (tmp_path / "restored" / "certificate" / "chain.pem").read_text() == "chain"
    assert sorted(path.name for path in (tmp_path / "restored").iterdir() if path.name != "audit-head.lock") == [
        "audit-head.json", "certificate", "files", "secret", "studio.sqlite",
    ]  # fmt: skip
