"""Verify: what is known of any file that somebody has, whether or not it left this studio as it is now.

Three things are asked, since each sees what the others miss: the register of exports by the SHA-256 of the whole file, which
sees every changed byte; the file's content credentials, which name an export and a signer; and fingerprints, which recognize
copies that were encoded anew. "Unchanged" is said on the register's word alone.
"""

import enum
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, BinaryIO

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from phantom_s2v.studio import certificates, fingerprints, reviews, rights
from phantom_s2v.studio.access import Actor
from phantom_s2v.studio.context import Studio
from phantom_s2v.studio.credentials import Credentials, State
from phantom_s2v.studio.examining import SECONDS
from phantom_s2v.studio.fingerprints import Asked, Match
from phantom_s2v.studio.problems import Problem, TooLarge, in_turn
from phantom_s2v.studio.schema import Export, JobSubject, Member, Right, Video
from phantom_s2v.studio.uploads import child_environment

MAX_BYTES = 64 << 20
LOOKING = BoundedSemaphore(2)  # files that are looked at at once, each by a process of up to 4 GiB
TYPES = ((b"ftyp", 4, "video/mp4"), (b"\x89PNG", 0, "image/png"), (b"\xff\xd8\xff", 0, "image/jpeg"), (b"RIFF", 0, "image/webp"))


class Verdict(enum.StrEnum):
    """What a file is to this studio."""

    UNCHANGED = "unchanged"  # byte for byte an export
    CHANGED = "changed"  # names an export in its credentials, or carries our signature, and is not that file
    COPY = "copy"  # looks like a video of ours: encoded, scaled or cropped anew
    INTERNAL = "internal"  # byte for byte a video that was never exported
    CREDENTIALS = "credentials"  # not of this studio, but says where it is from
    UNKNOWN = "unknown"  # nothing is known


@dataclass(frozen=True)
class RightState:
    """A right behind a video, as it stands now."""

    id: str
    state: str  # see rights.state
    ended_at: datetime | None


@dataclass(frozen=True)
class Finding:
    """What is known of a file."""

    verdict: Verdict
    sha256: str
    credentials: Credentials
    readable: bool  # whether it holds a video at all
    export: Export | None = None
    video: Video | None = None
    similarity: float | None = None
    mirrored: bool = False
    rights: Sequence[RightState] = field(default_factory=list)
    approved: bool | None = None  # under the policy in force; None where there is no video
    member: bool = False  # whether the person may see the video's pages

    @property
    def ended(self) -> list[RightState]:
        """Rights that were revoked or have expired."""
        return [each for each in self.rights if each.state in ("revoked", "expired")]


def examine(studio: Studio, actor: Actor, source: BinaryIO) -> Finding:
    """What is known of a file. Raises Problem for an empty one and TooLarge; anything else has an answer."""
    with tempfile.TemporaryDirectory(prefix="phantom-verify-") as name:
        folder = Path(name)
        sha256, media_type = _take_in(source, folder / "input")
        with in_turn(LOOKING):
            said, readable, windows = _looked_at(studio, folder, media_type)
    with studio.reading() as session:
        found = _find(session, sha256, said, windows)
        finding = _complete(session, actor, sha256, said, readable, *found)
        session.expunge_all()
    return finding


def _take_in(source: BinaryIO, target: Path) -> tuple[str, str]:
    """Write the file where its examiner reads it; SHA-256, and its media type by its first bytes."""
    digest, size, head = hashlib.sha256(), 0, b""
    with target.open("wb") as file:
        while part := source.read(1 << 20):
            size += len(part)
            if size > MAX_BYTES:
                raise TooLarge("The file is too large: at most %(megabytes)d MB are allowed.", "file", megabytes=MAX_BYTES >> 20)
            head = head or part[:16]
            digest.update(part)
            file.write(part)
    if not size:
        raise Problem("Please choose a file that is not empty.", "file")
    kind = next((kind for mark, place, kind in TYPES if head[place:].startswith(mark)), "application/octet-stream")
    return digest.hexdigest(), kind


def _looked_at(studio: Studio, folder: Path, media_type: str) -> tuple[Credentials, bool, list[Asked]]:
    """Credentials, readability, and looks, by a process of its own. A file that it does not survive cannot be read."""
    asked = {"media_type": media_type, "trusted": certificates.anchors(studio.settings.certificates)}
    try:
        _examine_apart(folder, asked)
        with np.load(folder / "result.npz", allow_pickle=False) as result:
            said = json.loads(str(result["said"]))
            keys = [key.removeprefix("times") for key in result.files if key.startswith("times")]
            windows = [Asked(result[f"times{key}"], result[f"looks{key}"]) for key in keys]
    except (subprocess.SubprocessError, OSError, ValueError, KeyError):
        return Credentials(State.DAMAGED), False, []
    readable = said.pop("readable")
    said |= {"state": State(said["state"]), "failures": tuple(said["failures"])}
    return Credentials(**said), readable, windows


def _examine_apart(folder: Path, asked: dict[str, str]) -> None:
    """Have `examining` look at the folder's input in a process of its own."""
    subprocess.run(
        [sys.executable, "-m", "phantom_s2v.studio.examining", str(folder)], input=json.dumps(asked).encode(), check=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=1.5 * SECONDS, env=child_environment(),
        start_new_session=True,
    )  # fmt: skip


def _find(
    session: Session, sha256: str, said: Credentials, windows: Sequence[Asked]
) -> tuple[Verdict, Export | None, Video | None, Match | None]:
    """The verdict, and what of ours it is about."""
    export = session.scalar(select(Export).where(Export.blob == sha256).limit(1))
    if export is not None:
        return Verdict.UNCHANGED, export, session.get_one(Video, export.video_id), None
    video = session.scalar(select(Video).where(Video.blob == sha256).limit(1))
    if video is not None:
        return Verdict.INTERNAL, None, video, None
    named = said.origin.get("export")
    export = session.get(Export, named) if isinstance(named, str) else None
    match = _best(session, windows)
    if export is not None and (match is None or match.video_id == export.video_id):
        return Verdict.CHANGED, export, session.get_one(Video, export.video_id), match
    if match is not None:
        return Verdict.COPY, None, session.get_one(Video, match.video_id), match
    return Verdict.CREDENTIALS if said.state is not State.NONE else Verdict.UNKNOWN, None, None, None


def _best(session: Session, windows: Sequence[Asked]) -> Match | None:
    """The video that a file is most alike, of those that it is a copy of."""
    matches = [match for asked in windows for match in fingerprints.find(session, asked)[:1]]
    return max(matches, key=lambda match: match.similarity, default=None)


def _complete(
    session: Session, actor: Actor, sha256: str, said: Credentials, readable: bool, verdict: Verdict, export: Export | None,
    video: Video | None, match: Match | None,
) -> Finding:  # fmt: skip
    """With the rights behind the video and its sign-off as they stand now."""
    finding = Finding(verdict, sha256, said, readable)
    if video is None:
        return finding
    behind = select(Right).join(JobSubject, JobSubject.right_id == Right.id).where(JobSubject.job_id == video.job_id)
    states = [
        RightState(right.id, rights.state(right), right.revoked_at or right.valid_until)
        for right in session.scalars(behind.order_by(Right.created_at, Right.id)).unique()
    ]
    member = select(Member.user_id).where(Member.project_id == video.project_id, Member.user_id == actor.id).limit(1)
    values: dict[str, Any] = {
        "export": export,
        "video": video,
        "similarity": match.similarity if match else None,
        "mirrored": bool(match and match.mirrored),
        "rights": states,
        "approved": reviews.sign_off(session, video).approved,
        "member": actor.admin or session.scalar(member) is not None,
    }
    return Finding(**{**finding.__dict__, **values})
