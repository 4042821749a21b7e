"""Exports: an approved video as a file that may leave the studio, with label, content credentials, poster and report.

The register of exports holds the SHA-256 of each whole file, since credentials do not see every change. Files and report hold ids
and keyed hashes; names of people stay in the studio.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from PIL import Image
from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.media.videos import Video as VideoFile
from phantom_s2v.media.videos import encode
from phantom_s2v.studio import audit, certificates, credentials, fingerprints, labels, queue, report, reviews, rights, webhooks
from phantom_s2v.studio.access import Actor, find
from phantom_s2v.studio.certificates import Certificate
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.database import Page, paged
from phantom_s2v.studio.problems import Conflict, NotFound, Problem, in_turn
from phantom_s2v.studio.reviews import SignOff
from phantom_s2v.studio.schema import Export, Job, JobSubject, Right, Role, Video, new_id
from phantom_s2v.studio.texts import text

CRF = 16  # of the labelled video
ENCODING = BoundedSemaphore(2)  # exports that are made at once
MAY = (Role.MAKER, Role.APPROVER, Role.ADMIN)


@dataclass(frozen=True)
class _Order:
    """All that an export is made of, read at one moment."""

    export_id: str
    video: Video
    stand: SignOff
    label: str  # "" for none
    reason: str
    origin: dict[str, Any]
    model: str


def make(studio: Studio, actor: Actor, project_id: str, video_id: str, label: bool = True, reason: str = "") -> str:
    """Export an approved video; the export's id. Drawing, encoding and signing hold no lock of the database.

    Without a label a written reason is needed, and some videos have to carry one. Raises Problem.
    """
    certificate = signature(studio)
    with studio.reading() as session:
        order = _order(session, studio, actor, project_id, video_id, label, reason)
        session.expunge_all()
    with tempfile.TemporaryDirectory(prefix="phantom-export-") as name, ExitStack() as stack:
        stack.enter_context(in_turn(ENCODING))
        unsigned, signed = Path(name) / "unsigned.mp4", Path(name) / "signed.mp4"
        poster = _write_video(studio, order, unsigned)
        claims = credentials.manifest(order.model, order.origin)
        with unsigned.open("rb") as source, signed.open("w+b") as target:
            credentials.sign(source, target, claims, certificate, studio.settings.timestamps or None)
        signed_file = stack.enter_context(studio.storage.staged(stack.enter_context(signed.open("rb"))))
        page = report.render(
            report.Facts(
                order.export_id, order.model, order.origin, order.video, order.stand, order.label, signed_file.sha256, poster,
                certificate.organization or certificate.subject,
            ),
            actor.language,
        )  # fmt: skip
        still = stack.enter_context(studio.storage.staged(_jpeg(poster)))
        page_file = stack.enter_context(studio.storage.staged(page.encode()))
        looks = fingerprints.measure(VideoFile(signed, "the export").frames())
        session = stack.enter_context(studio.writing())
        video, stand = reviews.opened(session, actor, project_id, video_id)
        _check_exportable(session, video, stand)
        if video.blob != order.video.blob:
            raise Conflict("The video has changed in the meantime. Please try again.")
        made = Export(
            id=order.export_id, video_id=video_id, user_id=actor.must_be_person(), labelled=bool(order.label),
            label_reason=order.reason, blob=studio.storage.keep(session, signed_file, "video/mp4"),
            poster=studio.storage.keep(session, still, "image/jpeg"), report=studio.storage.keep(session, page_file, "text/html"),
        )  # fmt: skip
        session.add(made)
        fingerprints.keep(session, video_id, looks, version=int(made.labelled))
        audit.append(
            session,
            actor.id,
            "video exported",
            video_id,
            export=made.id,
            file=audit.of_file(session, signed_file.sha256),
            labelled=made.labelled,
        )
        webhooks.emit(session, project_id, "video.exported", video=video_id, export=made.id, sha256=signed_file.sha256)
    return order.export_id


def signature(studio: Studio) -> Certificate:
    """The certificate that signs exports. Raises Conflict where there is none that is valid."""
    folder = studio.settings.certificates
    if not certificates.is_there(folder):
        raise Conflict("Exports cannot be signed yet. An administrator of the studio sets the signature up.")
    certificate = certificates.load(folder)
    if certificate.expired:
        raise Conflict("The certificate that signs exports has expired. An administrator of the studio renews it.")
    return certificate


def of_video(session: Session, actor: Actor, video: Video, after: str | None = None) -> Page[Export]:
    """Exports of a video, the newest first."""
    actor.must(video.project_id)
    return paged(session, select(Export).where(Export.video_id == video.id), [Export.created_at, Export.id], after)


def export_of(session: Session, actor: Actor, project_id: str, video_id: str, export_id: str) -> Export:
    """An export of a video of a project. Raises NotFound for any other."""
    actor.must(project_id)
    video, found = find(session, Video, video_id, project_id), session.get(Export, export_id)
    if found is None or found.video_id != video.id:
        raise NotFound
    return found


def _order(session: Session, studio: Studio, actor: Actor, project_id: str, video_id: str, label: bool, reason: str) -> _Order:
    actor.must(project_id, *MAY)
    video, stand = reviews.opened(session, actor, project_id, video_id)
    _check_exportable(session, video, stand)
    assert stand.rules
    if not label:
        if stand.must_be_labelled:
            raise Problem("The policy asks for the label on videos of real people and objects.", "label")
        reason = text(reason, "reason", 1000)
    export_id, job = new_id(), session.get_one(Job, video.job_id)
    links = session.scalars(select(JobSubject).where(JobSubject.job_id == job.id)).all()
    key = studio.settings.key("references")
    origin = {
        "export": export_id,
        "video": video.id,
        "policy": stand.policy_version,
        "approvals": sorted(each.id for each in stand.signatures),
        "rights": sorted(link.right_id for link in links),
        "references": sorted({credentials.keyed_hash(key, blob) for blob in queue.files_of(job)}),
    }
    words = labels.drawn_text(stand.rules.label_text, studio.settings.label_font) if label else ""
    model = str(video.details.get("model") or "phantom-s2v")
    return _Order(export_id, video, stand, words, "" if label else reason, origin, Path(model).name)


def _check_exportable(session: Session, video: Video, stand: SignOff) -> None:
    behind = select(Right).join(JobSubject, JobSubject.right_id == Right.id).where(JobSubject.job_id == video.job_id)
    # a right that has just ended may not have marked the video yet
    if video.marked or not all(rights.is_valid(right) for right in session.scalars(behind)):
        raise Conflict("A right behind this video was revoked or has expired.")
    if not stand.approved:
        raise Conflict("Only an approved video can be exported, under the policy that is in force.")


def _write_video(studio: Studio, order: _Order, target: Path) -> np.ndarray:
    """Write the video, labelled where it is to be; its middle frame, uint8 [H, W, 3]."""
    source = studio.storage.path(order.video.blob)
    if order.label:
        frames = (image for _, image in VideoFile(source, "the video").frames())
        encode(target, labels.labelled(frames, order.label, studio.settings.label_font), order.video.fps, CRF)
    else:
        target.write_bytes(source.read_bytes())
    return next(_from(target, order.video.num_frames // 2))


def _from(path: Path, number: int) -> Iterator[np.ndarray]:
    return (image for _, image in islice(VideoFile(path, "the video").frames(), number, None))


def _jpeg(image: np.ndarray) -> bytes:
    target = io.BytesIO()
    Image.fromarray(image).save(target, "JPEG", quality=90)
    return target.getvalue()
