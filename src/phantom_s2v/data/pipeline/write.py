"""Write: clips, and the pairs that were kept, as rows of the triplet store."""

import json
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator
from itertools import islice

from phantom_s2v.data.pipeline.config import Record
from phantom_s2v.data.pipeline.index import SubjectIndex
from phantom_s2v.data.triplets import Rights, Triplet, TripletReference
from phantom_s2v.geometry import MAX_IMAGES

BATCH = 32  # clips that are in memory at once, with their videos and images


def run(
    pairs: Callable[[set[str]], Iterable[Record]], repeated: Container[str], subject_index: SubjectIndex, rights: Rights
) -> Iterator[Triplet]:
    """Triplets of every clip that stays: each subject by its partners (cross-pair), else by another moment of the clip (in-pair).

    `pairs` gives those of some subjects; clips that are `repeated` are left out. `rights` hold where a source video came
    without its own.
    """
    kept = (clip for clip in subject_index.rows("clips", ["video", "facts"], "`drop` = ''") if clip["id"] not in repeated)
    while batch := list(islice(kept, BATCH)):
        clips = [(json.loads(clip["facts"]), clip["video"]) for clip in batch]
        wanted = {subject for facts, _ in clips for subject in facts["subjects"]}
        partners: dict[str, list[Record]] = defaultdict(list)
        for pair in pairs(wanted):
            if not pair["drop"]:
                partners[pair["subject"]].append(pair)
        others = [pair for group in partners.values() for pair in group]
        views = subject_index.subjects(wanted | {pair["partner"] for pair in others})
        sources = subject_index.clip_facts({pair["partner_clip"] for pair in others})
        for facts, video in clips:
            yield _triplet(facts, video, partners, views, sources, rights)


def _triplet(
    facts: Record,
    video: bytes,
    partners: dict[str, list[Record]],
    views: dict[str, Record],
    sources: dict[str, Record],
    rights: Rights,
) -> Triplet:
    """A clip's triplet; `views` are subjects by id, `sources` the facts of the clips that partners come from."""
    own = _own(facts, rights)
    references: list[TripletReference] = []
    for number in facts["subjects"]:
        subject, pairs = views[number], partners.get(number, [])
        for pair in pairs:
            shown = views[pair["partner"]]["views"]
            theirs = _own(sources[pair["partner_clip"]], rights)
            pairing = "same-shot" if pair["kind"] == "same-shot" else "cross-pair"
            references.append(_reference(shown[len(shown) // 2], subject["name"], pairing, pair["similarity"], theirs))
        if not pairs:
            references.append(_reference(subject["views"][-1], subject["name"], "in-pair", 1.0, own))
    return Triplet(
        video=video,
        caption=facts["caption"],
        references=tuple(references[:MAX_IMAGES]),
        fps=facts["fps"],
        frames=facts["frames"],
        height=facts["height"],
        width=facts["width"],
        scores=facts["scores"],
        rights=own,
    )


def _reference(view: Record, name: str, pairing: str, score: float, rights: Rights) -> TripletReference:
    left, top, right, bottom = view["inner"]
    return TripletReference(view["image"], name, pairing, (left, top, right, bottom), view["mask"], score, rights)


def _own(facts: Record, rights: Rights) -> Rights:
    """Rights of a source video as they were found beside it, else those of the whole run; the source is at least the file's
    name.
    """
    rights_beside = Rights(**facts["rights"]) if facts.get("rights") else rights
    return rights_beside if rights_beside.source else Rights(facts["name"], rights_beside.license, rights_beside.consent)
