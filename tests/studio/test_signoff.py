"""Review, approval, export and verification: who may, what binds, and what a file is afterwards."""

import io
import random
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import select

from phantom_s2v.media.videos import Video as VideoFile
from phantom_s2v.studio import (
    audit,
    certificates,
    credentials,
    examining,
    exports,
    fingerprints,
    labels,
    reviews,
    rights,
    uploads,
    verify,
)
from phantom_s2v.studio.policies import CHECKLIST
from phantom_s2v.studio.problems import Conflict, Forbidden, NotFound, Problem, Problems
from phantom_s2v.studio.schema import AuditLine, Export, Job, JobFile, Notice, Right, Role, SubjectImage, Video, VideoState, now
from phantom_s2v.studio.verify import Verdict
from studio.rows import add_subject, add_video, frames_of, give_role, mp4, set_policy

FRAMES = frames_of("1f431", 3)
CONTENT = mp4(FRAMES)
YES = dict.fromkeys(CHECKLIST, ("yes", ""))


@pytest.fixture
def film(studio):
    """A submittable video of a product with a right, in a project with a policy."""
    set_policy(studio)
    return add_video(studio, CONTENT, subjects=[add_subject(studio)], score={"verdicts": []})


def submit(studio, actor_of, film, person="maker"):
    with studio.writing() as session:
        reviews.submit(session, actor_of(person), session.get_one(Video, film))


def approve(studio, actor, film, answers=YES, **changed):
    with studio.writing() as session:
        video = session.get_one(Video, film)
        bound = {"sha256": video.blob, "policy_version": reviews.sign_off(session, video).policy_version, **changed}
        return reviews.approve(session, actor, video, answers, **bound)


@pytest.fixture
def approved(studio, actor_of, film):
    submit(studio, actor_of, film)
    approve(studio, actor_of("approver"), film)
    return film


@pytest.fixture
def signing(studio):
    certificates.make(studio.settings.folder / "certificate", "A company")


def state_of(studio, film):
    with studio.reading() as session:
        return session.get_one(Video, film).state


def test_who_may_hand_in_sign_and_send_back(studio, actor_of, film):
    for person in ("reviewer", "approver", "admin"):
        with pytest.raises(Forbidden):
            submit(studio, actor_of, film, person)
    submit(studio, actor_of, film)
    with pytest.raises(Conflict):
        submit(studio, actor_of, film)
    for person in ("maker", "reviewer", "admin"):
        with pytest.raises(Forbidden):
            approve(studio, actor_of(person), film)
    give_role(studio, "maker", Role.APPROVER)
    with pytest.raises(Forbidden, match="own video"):
        approve(studio, actor_of("maker"), film)
    with studio.writing() as session:
        reviews.send_back(session, actor_of("reviewer"), session.get_one(Video, film), "The logo is wrong.")
    assert state_of(studio, film) == VideoState.SENT_BACK
    with pytest.raises(Conflict):
        approve(studio, actor_of("approver"), film)
    submit(studio, actor_of, film)
    assert approve(studio, actor_of("approver"), film).approved
    assert state_of(studio, film) == VideoState.APPROVED
    with studio.reading() as session:
        told = {(each.code, each.user_id) for each in session.scalars(select(Notice))}
        assert ("video approved", studio.people["maker"]) in told
        assert ("video submitted", studio.people["reviewer"]) in told
        assert audit.verify(session, studio.head)[1] == []


def test_unanswered_and_wanting_items_block_approval(studio, actor_of, film):
    submit(studio, actor_of, film)
    with pytest.raises(Problems) as told:
        approve(studio, actor_of("approver"), film, {**YES, "face": ("no", "blurred"), "hands": ("", "")})
    assert {each.field for each in told.value.each} == {"check-face", "check-hands"}
    with pytest.raises(Problem):
        approve(studio, actor_of("approver"), film, {})
    assert state_of(studio, film) == VideoState.SUBMITTED
    assert approve(studio, actor_of("approver"), film, {**YES, "text": ("does not apply", "")}).approved


def test_approval_binds_file_and_policy(studio, actor_of, film):
    submit(studio, actor_of, film)
    for changed in ({"sha256": "0" * 64}, {"policy_version": 0}):
        with pytest.raises(Conflict, match="changed since"):
            approve(studio, actor_of("approver"), film, **changed)
    approve(studio, actor_of("approver"), film)
    set_policy(studio, label_text="made by AI")
    with studio.reading() as session:
        stand = reviews.sign_off(session, session.get_one(Video, film))
        assert (stand.approved, stand.outdated) == (False, True)
    assert approve(studio, actor_of("approver"), film).approved


def test_two_signatures_are_of_two_people(studio, actor_of, film):
    set_policy(studio, signatures=2)
    submit(studio, actor_of, film)
    assert not approve(studio, actor_of("approver"), film).approved
    with pytest.raises(Conflict, match="another person"):
        approve(studio, actor_of("approver"), film)
    give_role(studio, "reviewer", Role.APPROVER)
    assert approve(studio, actor_of("reviewer"), film).approved


def test_the_gate_and_rights_stand_before_review(studio, actor_of):
    set_policy(studio)
    failing = add_video(studio, CONTENT, subjects=[add_subject(studio)], score={"verdicts": []}, passed=False)
    with pytest.raises(Conflict, match="KPIs"):
        submit(studio, actor_of, failing)
    with studio.writing() as session:
        video = session.get_one(Video, failing)
        video.override_by, video.override_reason = studio.people["reviewer"], "The client wants it."
    submit(studio, actor_of, failing)
    with studio.writing() as session:
        session.get_one(Video, failing).marked = rights.REVOKED
    with pytest.raises(Problem, match="revoked or has expired"):
        approve(studio, actor_of("approver"), failing)


def test_comments_keep_their_frame_and_place(studio, actor_of, film):
    with studio.writing() as session:
        video, reviewer = session.get_one(Video, film), actor_of("reviewer")
        reviews.comment(session, reviewer, video, "<b>Too dark</b>", 24, (0.25, 1.0))
        reviews.comment(session, reviewer, video, "Nice.")
        for frame, place, field in (
            (25, None, "frame"),
            (-1, None, "frame"),
            (None, (0.5, 0.5), "place"),
            (3, (1.1, 0.0), "place"),
        ):
            with pytest.raises(Problem) as told:
                reviews.comment(session, reviewer, video, "x", frame, place)
            assert told.value.field == field
        said = reviews.comments(session, reviewer, video)
        assert [(each.frame, each.x, each.y, each.text) for each, _ in said] == [
            (None, None, None, "Nice."), (24, 0.25, 1.0, "<b>Too dark</b>"),
        ]  # fmt: skip
        assert reviews.resolve(session, actor_of("maker"), video, said[0][0].id).resolved_at
        assert not reviews.resolve(session, actor_of("maker"), video, said[0][0].id).resolved_at
        with pytest.raises(NotFound):
            reviews.resolve(session, actor_of("maker"), video, "0" * 32)


def exported(studio, actor, film, **options) -> tuple[Export, bytes]:
    made = exports.make(studio, actor, studio.project_id, film, **options)
    with studio.reading() as session:
        found = session.get_one(Export, made)
        session.expunge_all()
    return found, studio.storage.read(found.blob)


def test_an_export_has_label_credentials_poster_and_report(studio, actor_of, approved, signing):
    row, content = exported(studio, actor_of("maker"), approved)
    said = credentials.read(io.BytesIO(content), "video/mp4", certificates.anchors(studio.settings.folder / "certificate"))
    assert (said.state, said.made_by_ai) == (credentials.State.TRUSTED, True)
    assert said.origin["export"] == row.id
    assert len(said.origin["references"]) == len(said.origin["rights"]) == len(said.origin["approvals"]) == 1
    report = studio.storage.read(row.report).decode()
    assert row.blob in report
    for name in (b"Maker", b"Approver", b"maker@example.com", b"Red cup", b"Autumn campaign", b"The cup moves"):
        assert name not in content
        assert name.decode() not in report
    frames = [image for _, image in VideoFile(io.BytesIO(content), "export").frames()]
    assert len(frames) == len(FRAMES)
    plain = [image for _, image in VideoFile(io.BytesIO(CONTENT), "made").frames()]
    for mine, before in zip(frames, plain, strict=True):
        corner, rest = np.abs(mine.astype(int) - before)[-20:, :60], np.abs(mine.astype(int) - before)[:60]
        assert corner.mean() > 20 > 4 > rest.mean()
    assert studio.storage.read(row.poster).startswith(b"\xff\xd8")


def test_credentials_name_the_references_that_the_video_was_made_of(studio, actor_of, approved, signing):
    """Not those that its subjects have by now."""
    with studio.writing() as session:
        used = session.scalars(select(SubjectImage)).one()
        key = studio.settings.key("references")
        expected = [credentials.keyed_hash(key, used.blob)]
        job = session.get_one(Job, session.get_one(Video, approved).job_id)
        session.add(JobFile(job_id=job.id, blob=used.blob))
        used.blob = studio.storage.put(session, b"another image", "image/png")
    _, content = exported(studio, actor_of("maker"), approved)
    assert credentials.read(io.BytesIO(content), "video/mp4", "").origin["references"] == expected


def test_the_label_is_left_out_for_a_reason_and_never_for_real_things(studio, actor_of, approved, signing):
    with pytest.raises(Problem, match="real people and objects") as told:
        exports.make(studio, actor_of("maker"), studio.project_id, approved, label=False, reason="Looks better.")
    assert told.value.field == "label"
    drawn = add_video(
        studio, mp4(frames_of("1f984", 5)), subjects=[add_subject(studio, kind="character")], score={"verdicts": []}
    )
    submit(studio, actor_of, drawn)
    approve(studio, actor_of("approver"), drawn)
    with pytest.raises(Problem) as told:
        exports.make(studio, actor_of("maker"), studio.project_id, drawn, label=False)
    assert told.value.field == "reason"
    row, _ = exported(studio, actor_of("maker"), drawn, label=False, reason="A label stands beside the video.")
    assert (row.labelled, row.label_reason) == (False, "A label stands beside the video.")


def test_only_what_is_approved_now_can_be_exported(studio, actor_of, film, signing):
    def refused(match, kind=Conflict, person="maker"):
        with pytest.raises(kind, match=match):
            exports.make(studio, actor_of(person), studio.project_id, film)

    refused("approved")
    submit(studio, actor_of, film)
    refused("approved")
    approve(studio, actor_of("approver"), film)
    refused("role", Forbidden, "reviewer")
    set_policy(studio)
    refused("approved")
    approve(studio, actor_of("approver"), film)
    with studio.writing() as session:
        right = session.scalars(select(Right)).one()
        right.valid_from, right.valid_until = now() - timedelta(days=2), now() - timedelta(seconds=1)
    refused("expired")
    with studio.writing() as session:
        session.get_one(Right, right.id).valid_until = None
        session.get_one(Video, film).marked = rights.REVOKED
    refused("revoked")


def test_without_a_certificate_nothing_is_exported(studio, actor_of, approved):
    with pytest.raises(Conflict, match="sets the signature up"):
        exports.make(studio, actor_of("maker"), studio.project_id, approved)


def boxes(content: bytes) -> dict[str, tuple[int, int]]:
    """Name -> place and length of the boxes of an mp4's first level."""
    found, place = {}, 0
    while place < len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        found[content[place + 4 : place + 8].decode("latin-1")] = (place, length)
        place += length
    return found


def find_out(studio, actor, content):
    return verify.examine(studio, actor, io.BytesIO(content))


def test_a_changed_byte_anywhere_is_seen(studio, actor_of, approved, signing, monkeypatch):
    """100 of 100: in every box of the file, our own and ftyp among them, and in boxes appended or left out."""
    row, content = exported(studio, actor_of("maker"), approved)
    monkeypatch.setattr(verify, "_looked_at", lambda *_: (seen, True, []))  # the process of its own is tried below
    seen = credentials.read(io.BytesIO(content), "video/mp4", "")
    actor, found, rng = actor_of("approver"), boxes(content), random.Random(0)
    assert find_out(studio, actor, content).verdict == Verdict.UNCHANGED
    assert {"ftyp", "uuid", "moov", "mdat"} <= set(found)
    places = [place + rng.randrange(length) for place, length in found.values() for _ in range(100 // len(found))]
    places += [rng.randrange(len(content)) for _ in range(100 - len(places))]
    changed = [content[:p] + bytes([content[p] ^ (1 << rng.randrange(8))]) + content[p + 1 :] for p in places]
    free = (16).to_bytes(4, "big") + b"free" + bytes(8)
    for each in (*changed, content + free, free + content, content[:-1]):
        finding = find_out(studio, actor, each)
        assert finding.verdict == Verdict.CHANGED
        assert finding.export
        assert finding.export.id == row.id


@pytest.fixture
def in_process(monkeypatch):
    """Files are looked at in the test's own process, which takes a second less each."""
    monkeypatch.setattr(verify, "_examine_apart", lambda folder, asked: examining.examine(folder, **asked))


def test_files_are_looked_at_by_a_process_without_secrets(studio, actor_of, approved, signing, monkeypatch):
    row, content = exported(studio, actor_of("maker"), approved)
    monkeypatch.setenv("PHANTOM_STUDIO_SECRET", "s" * 40)
    assert "PHANTOM_STUDIO_SECRET" not in uploads.child_environment()
    found = find_out(studio, actor_of("admin"), content + b"!")
    assert (found.verdict, found.export and found.export.id, found.readable) == (Verdict.CHANGED, row.id, True)


def test_what_verify_says_of_any_file(studio, actor_of, approved, signing, in_process):
    row, content = exported(studio, actor_of("maker"), approved)
    actor = actor_of("admin")
    found = find_out(studio, actor, content)
    assert (found.verdict, found.credentials.state, found.ended, found.approved) == (
        Verdict.UNCHANGED, credentials.State.TRUSTED, [], True,
    )  # fmt: skip
    frames = [image for _, image in VideoFile(io.BytesIO(content), "export").frames()]
    copy = find_out(studio, actor, mp4(frames, crf=34))
    assert (copy.verdict, copy.credentials.state) == (Verdict.COPY, credentials.State.NONE)
    assert copy.video
    assert copy.video.id == approved
    assert find_out(studio, actor, CONTENT).verdict == Verdict.INTERNAL
    nothing = find_out(studio, actor, mp4(frames_of("1f692", 9)))
    assert (nothing.verdict, nothing.readable) == (Verdict.UNKNOWN, True)
    text = find_out(studio, actor, b"no video <script>")
    assert (text.verdict, text.readable) == (Verdict.UNKNOWN, False)
    with pytest.raises(Problem, match="not empty"):
        find_out(studio, actor, b"")
    place = content.index(b"c2pa.assertions")
    damaged = find_out(studio, actor, content[:place] + bytes(8) + content[place + 8 :])
    assert damaged.verdict in (Verdict.CHANGED, Verdict.COPY)
    with studio.writing() as session:
        right = session.scalars(select(Right)).first()
        rights.revoke(session, actor_of("admin"), right, studio.project_id, "The contract has ended.")
    after = find_out(studio, actor, content)
    assert [each.state for each in after.ended] == ["revoked"]
    assert [each.state for each in find_out(studio, actor, mp4(frames, crf=34)).ended] == ["revoked"]
    assert row.id == after.export.id


def test_copies_of_the_video_and_of_its_labelled_export_are_recognized(studio, actor_of, approved, signing):
    """At this size the label covers too much for one to be taken for the other, so both are kept."""
    with studio.writing() as session:
        made = fingerprints.measure(VideoFile(io.BytesIO(CONTENT), "made").frames())
        fingerprints.keep(session, approved, made)
    _, content = exported(studio, actor_of("maker"), approved)
    labelled = [image for _, image in VideoFile(io.BytesIO(content), "export").frames()]
    with studio.reading() as session:
        for frames in (FRAMES, labelled):
            windows = list(fingerprints.looks_at(VideoFile(io.BytesIO(mp4(frames, crf=34)), "copy").frames()))
            match = fingerprints.find(session, windows[0][0])[0]
            assert (match.video_id, match.similarity > 0.98) == (approved, True)


def test_labels_fit_and_fall_back():
    small, large = (np.zeros((side, side, 3), np.uint8) for side in (32, 400))
    for frame in (small, large):
        marked = next(labels.labelled([frame], "AI-generated"))
        assert marked.any()
        assert not frame.any()
    assert labels.drawn_text("AI-generated", "") == "AI-generated"
    assert labels.drawn_text("\U0001fae0", "") in ("\U0001fae0", labels.FALLBACK)


def test_the_log_has_every_step(studio, actor_of, approved, signing):
    exported(studio, actor_of("maker"), approved)
    with studio.reading() as session:
        done = [line.action for line in session.scalars(select(AuditLine).where(AuditLine.object_id == approved))]
    assert done == ["video submitted", "video signed", "video exported"]
