"""Copies of a video are recognized, other videos are not, and a query does not read all rows."""

import io
from dataclasses import replace

import cv2
import numpy as np
import pytest
from sqlalchemy import func, select

from phantom_s2v.media.videos import Video
from phantom_s2v.studio import fingerprints
from phantom_s2v.studio.schema import Fingerprint, FingerprintBand
from studio.rows import FPS, add_video, frames_of, mp4

NAMES = ("1f431", "1f984", "1f412", "1f41d", "1f438", "1f692")


@pytest.fixture(scope="module")
def clips():
    return {name: frames_of(name, seed) for seed, name in enumerate(NAMES)}


def timed(frames, fps=FPS):
    return [(number / fps, frame) for number, frame in enumerate(frames)]


def found(session, frames):
    """Ids of what a file is taken for, as verify does."""
    matches = []
    for window in fingerprints.looks_at(frames):
        for asked in window:
            matches += fingerprints.find(session, asked)
    return matches


@pytest.fixture
def kept(studio, clips):
    """name -> id of a video that is findable."""
    ids = {name: add_video(studio, name.encode()) for name in NAMES[:-1]}
    with studio.writing() as session:
        for name, video in ids.items():
            fingerprints.keep(session, video, fingerprints.measure(timed(clips[name])))
    return ids


def letterboxed(frame):
    return cv2.copyMakeBorder(frame, 20, 20, 0, 0, cv2.BORDER_CONSTANT)


def cropped(frame):
    return frame[5:-5, 6:-6]


CHANGES = {
    "smaller": lambda frame: cv2.resize(frame, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
    "larger": lambda frame: cv2.resize(frame, None, fx=2, fy=2),
    "letterboxed": letterboxed,
    "cropped by 5% a side": cropped,
    "mirrored": lambda frame: frame[:, ::-1],
    "darker": lambda frame: (frame * 0.8).astype(np.uint8),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_and_compressed_copies_are_recognized(studio, clips, kept, change):
    with studio.reading() as session:
        for name in NAMES[:3]:
            content = io.BytesIO(mp4([change(frame) for frame in clips[name]], crf=32))
            matches = found(session, Video(content, "copy").frames())
            assert matches, name
            best = max(matches, key=lambda match: match.similarity)
            assert (best.video_id, best.mirrored) == (kept[name], change is CHANGES["mirrored"])


def test_another_video_is_not_taken_for_ours(studio, clips, kept):
    with studio.reading() as session:
        assert found(session, timed(clips[NAMES[-1]])) == []
        assert found(session, timed([np.zeros((64, 64, 3), np.uint8)] * 24)) == []  # black is like any black
        assert found(session, []) == []


def test_a_copy_inside_a_longer_film_and_at_another_rate(studio, clips, kept):
    film = [*clips[NAMES[-1]], *clips[NAMES[1]], *clips[NAMES[-1]]]
    with studio.reading() as session:
        best = max(found(session, timed(film)), key=lambda match: match.similarity)
        assert best.video_id == kept[NAMES[1]]
        assert best.begins == pytest.approx(25 / FPS, abs=0.2)
        assert {m.video_id for m in found(session, timed(clips[NAMES[1]][::2], FPS / 2))} == {kept[NAMES[1]]}
        assert {m.video_id for m in found(session, timed(clips[NAMES[1]][4:]))} == {kept[NAMES[1]]}  # the beginning cut off


def test_a_query_reads_candidates_only(studio, clips, kept, statements):
    with studio.reading() as session:
        asked, _ = next(iter(fingerprints.looks_at(timed(clips[NAMES[0]]))))
        plan = session.connection().exec_driver_sql(
            "explain query plan select video_id, count(*) from fingerprint_bands where value in (1, 2, 3) group by video_id"
        )
        assert any("SEARCH" in str(row) and "value=?" in str(row) for row in plan)
        statements.texts.clear()
        fingerprints.find(session, replace(asked))
        assert len(statements.texts) < 60


def test_what_is_forgotten_is_gone(studio, clips, kept):
    with studio.writing() as session:
        before = session.scalar(select(func.count()).select_from(FingerprintBand))
        fingerprints.keep(session, kept[NAMES[0]], fingerprints.measure(timed(clips[NAMES[0]])))
        assert session.scalar(select(func.count()).select_from(FingerprintBand)) == before  # kept once
        fingerprints.forget(session, kept[NAMES[0]])
    with studio.reading() as session:
        for table in (Fingerprint, FingerprintBand):
            assert not session.scalar(select(func.count()).select_from(table).where(table.video_id == kept[NAMES[0]]))
        assert found(session, timed(clips[NAMES[0]])) == []
